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
    let len = out_len(spec, columns);
    assert!(!has_residual(spec) || residual.len() == len);
    let mut out = vec![f32::NAN; len];
    call_at(
        entry,
        spec,
        columns,
        weights,
        activations,
        bias,
        residual.as_ptr(),
        &mut out,
    );
    out
}

/// The same with the residual in the output buffer.
pub(crate) fn call_in_place(
    entry: unsafe extern "C" fn(*const MatmulArgs),
    spec: &KernelSpec,
    columns: u32,
    weights: &[u8],
    activations: &[u8],
    bias: &[f32],
    residual: &[f32],
) -> Vec<f32> {
    assert_eq!(residual.len(), out_len(spec, columns));
    let mut out = residual.to_vec();
    let residual = out.as_mut_ptr();
    call_at(
        entry,
        spec,
        columns,
        weights,
        activations,
        bias,
        residual,
        &mut out,
    );
    out
}

fn has_residual(spec: &KernelSpec) -> bool {
    matches!(spec, KernelSpec::Matmul { residual: true, .. })
}

fn out_len(spec: &KernelSpec, columns: u32) -> usize {
    let KernelSpec::Matmul { rows, .. } = *spec else {
        panic!("not a matmul")
    };
    (pad_to_panel(rows) * columns) as usize
}

#[allow(clippy::too_many_arguments, reason = "the arguments of the ABI")]
fn call_at(
    entry: unsafe extern "C" fn(*const MatmulArgs),
    spec: &KernelSpec,
    columns: u32,
    weights: &[u8],
    activations: &[u8],
    bias: &[f32],
    residual: *const f32,
    out: &mut [f32],
) {
    let KernelSpec::Matmul {
        format,
        rows,
        k,
        bias: has_bias,
        ..
    } = *spec
    else {
        panic!("not a matmul")
    };
    let stride = pad_to_panel(rows);
    let panels = stride / 16;
    assert_eq!(weights.len() as u64, panels as u64 * format.panel_bytes(k));
    assert_eq!(
        activations.len() as u64,
        columns as u64 * Activation::for_weights(format).stride_bytes(k)
    );
    assert!(!has_bias || bias.len() as u32 == stride);
    assert_eq!(out.len(), out_len(spec, columns));
    let args = MatmulArgs {
        weights: weights.as_ptr(),
        activations: activations.as_ptr(),
        out: out.as_mut_ptr(),
        bias: bias.as_ptr(),
        residual,
        panels: panels as u64,
        columns: columns as u64,
    };
    // SAFETY: the kernel reads and writes the ranges of `KernelSpec::operands`;
    // their sizes were checked above and, for the residual, by the callers.
    unsafe { entry(&args) };
}
