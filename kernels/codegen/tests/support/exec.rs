//! Mapping generated code and calling it. Executing machine code has no safe
//! form, so this file alone of the tests may use `unsafe`.
#![allow(unsafe_code)]

use memmap2::{Mmap, MmapMut};
use omex_codegen::CodeBlob;
use omex_kernels::abi::MatmulArgs;
use omex_kernels::spec::Activation;
use omex_kernels::{KernelSpec, pad_to_panel};

pub(crate) struct Executable(Mmap);

impl Executable {
    pub(crate) fn new(blob: &CodeBlob) -> Executable {
        let mut map = MmapMut::map_anon(blob.code.len()).expect("memory");
        map.copy_from_slice(&blob.code);
        Executable(map.make_exec().expect("executable memory"))
    }

    /// Runs a matmul over all panels.
    pub(crate) fn matmul(
        &self,
        spec: &KernelSpec,
        columns: u32,
        weights: &[u8],
        activations: &[u8],
        bias: &[f32],
        residual: &[f32],
    ) -> Vec<f32> {
        // SAFETY: the map holds a compiled kernel from its first byte on.
        let entry: unsafe extern "C" fn(*const MatmulArgs) =
            unsafe { std::mem::transmute(self.0.as_ptr()) };
        call(entry, spec, columns, weights, activations, bias, residual)
    }
}

/// Calls `entry` after checking that every argument is as large as `spec` says.
pub(crate) fn call(
    entry: unsafe extern "C" fn(*const MatmulArgs),
    spec: &KernelSpec,
    columns: u32,
    weights: &[u8],
    activations: &[u8],
    bias: &[f32],
    residual: &[f32],
) -> Vec<f32> {
    let KernelSpec::Matmul {
        format,
        rows,
        k,
        bias: has_bias,
        residual: has_residual,
    } = *spec
    else {
        panic!("not a matmul")
    };
    let stride = pad_to_panel(rows);
    let panels = stride / 16;
    let mut out = vec![f32::NAN; (stride * columns) as usize];
    assert_eq!(weights.len() as u64, panels as u64 * format.panel_bytes(k));
    assert_eq!(
        activations.len() as u64,
        columns as u64 * Activation::for_weights(format).stride_bytes(k)
    );
    assert!(!has_bias || bias.len() as u32 == stride);
    assert!(!has_residual || residual.len() == out.len());
    let args = MatmulArgs {
        weights: weights.as_ptr(),
        activations: activations.as_ptr(),
        out: out.as_mut_ptr(),
        bias: bias.as_ptr(),
        residual: residual.as_ptr(),
        panels: panels as u64,
        columns: columns as u64,
    };
    // SAFETY: the kernel reads and writes the ranges of `KernelSpec::operands`,
    // whose sizes were checked above.
    unsafe { entry(&args) };
    out
}
