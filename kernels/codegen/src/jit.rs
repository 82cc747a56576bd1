//! Kernels made executable in this process, with cranelift-jit.
//!
//! Calling machine code and freeing it have no safe form; this is the only
//! file of the crate that may use `unsafe`.
#![allow(unsafe_code)]

use crate::{Isa, Unsupported};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, ModuleError, default_libcall_names};
use omex_kernels::KernelSpec;
use omex_kernels::abi::MatmulArgs;
use std::fmt;

/// A generated matmul. The caller guarantees that every argument points at the
/// bytes that `KernelSpec::operands` states.
pub type Entry = unsafe extern "C" fn(*const MatmulArgs);

/// Why no code was made.
#[derive(Debug)]
pub enum Error {
    Unsupported(Unsupported),
    /// Executable memory could not be had, or another fault below cranelift-jit.
    Module(Box<ModuleError>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unsupported(e) => e.fmt(f),
            Error::Module(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<Unsupported> for Error {
    fn from(e: Unsupported) -> Error {
        Error::Unsupported(e)
    }
}

impl From<ModuleError> for Error {
    fn from(e: ModuleError) -> Error {
        Error::Module(Box::new(e))
    }
}

/// Owner of executable code. Its memory is writable or executable, never both.
pub struct JitCode {
    /// `None` only while dropped.
    module: Option<JITModule>,
    entries: Vec<Entry>,
}

impl JitCode {
    /// The code of each spec, in the order of `specs`. Valid as long as `self`.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl fmt::Debug for JitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JitCode")
            .field("entries", &self.entries.len())
            .finish()
    }
}

impl Drop for JitCode {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: `entries` borrows from `self`; calling an `Entry` after
            // its owner is gone breaks that contract, not this one.
            unsafe { module.free_memory() };
        }
    }
}

/// Generates the code of all specs for `isa`, which this CPU must have.
///
/// Errors: a spec has no generated code, or there is no executable memory.
pub fn compile_all(specs: &[KernelSpec], isa: &Isa) -> Result<JitCode, Error> {
    let blobs = crate::compile_all(specs, isa)?;
    let builder = JITBuilder::with_isa(isa.cranelift(), default_libcall_names());
    // From here on the owner frees what the module allocates, on errors too.
    let mut code = JitCode {
        module: Some(JITModule::new(builder)),
        entries: Vec::new(),
    };
    let module = code.module.as_mut().expect("made above");
    let signature = module.make_signature();
    let mut ids = Vec::with_capacity(blobs.len());
    for (i, blob) in blobs.iter().enumerate() {
        let id = module.declare_function(&format!("kernel{i}"), Linkage::Local, &signature)?;
        module.define_function_bytes(id, blob.align as u64, &blob.code, &[])?;
        ids.push(id);
    }
    module.finalize_definitions()?;
    code.entries = ids
        .into_iter()
        .map(|id| {
            let address = module.get_finalized_function(id);
            // SAFETY: the address is that of a blob's code, which follows the
            // signature of `Entry` and the platform's calling convention.
            unsafe { std::mem::transmute::<*const u8, Entry>(address) }
        })
        .collect();
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use omex_kernels::WeightFormat;
    use omex_kernels::spec::Activation;

    /// Two kernels of one module compute; the bits are those of `compile`,
    /// which shares the function builder and is tested on its own.
    #[test]
    fn compiled_kernels_compute() {
        let specs = [1, 2].map(|panels| KernelSpec::Matmul {
            format: WeightFormat::F32,
            rows: 16 * panels,
            k: 16,
            bias: false,
            residual: false,
        });
        let code = compile_all(&specs, &Isa::host().unwrap()).unwrap();
        for (entry, panels) in code.entries().iter().zip(1u64..) {
            let weights: Vec<f32> = (0..16 * 16 * panels).map(|i| (i % 16) as f32).collect();
            let activations = [1.0f32; 16];
            assert_eq!(Activation::F32.stride_bytes(16), 64);
            let mut out = vec![0.0f32; 16 * panels as usize];
            let args = MatmulArgs {
                weights: weights.as_ptr().cast(),
                activations: activations.as_ptr().cast(),
                out: out.as_mut_ptr(),
                bias: std::ptr::null(),
                residual: std::ptr::null(),
                panels,
                columns: 1,
            };
            // SAFETY: weights, activations and out are as large as the spec's
            // operands for one column.
            unsafe { entry(&args) };
            let expected: Vec<f32> = (0..16 * panels)
                .map(|row| 16.0 * (row % 16) as f32)
                .collect();
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn refused_specs_are_named() {
        let host = Isa::host().unwrap();
        let error = compile_all(&[KernelSpec::Quantize { len: 32 }], &host).unwrap_err();
        assert!(
            matches!(error, Error::Unsupported(Unsupported::Operation)),
            "{error}"
        );
    }
}
