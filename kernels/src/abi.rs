//! The calling convention between the runtime and generated code.

/// Arguments of a generated matmul kernel, `extern "C" fn(*const MatmulArgs)`.
///
/// The kernel computes `columns` columns of `panels` consecutive panels. All
/// strides are constants of the kernel's spec: panels lie
/// `format.panel_bytes(k)` apart, activation columns `Q8Layout::new(k).stride`
/// bytes (f32 activations: `pad_to_panel(k)` floats), output, residual columns
/// `pad_to_panel(rows)` floats. `out`, `bias` and `residual` point at the first
/// row of the first panel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MatmulArgs {
    pub weights: *const u8,
    pub activations: *const u8,
    pub out: *mut f32,
    /// Read only when the spec has a bias; one float per row.
    pub bias: *const f32,
    /// Read only when the spec has a residual; may equal `out`.
    pub residual: *const f32,
    pub panels: u64,
    pub columns: u64,
}

/// Version of this convention, part of every code section's key.
pub const ABI_VERSION: u32 = 2;
