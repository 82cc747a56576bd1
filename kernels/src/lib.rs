//! Numeric contract, quantized formats, kernel specifications and the scalar
//! reference kernels.
//!
//! The functions of [`reference`] ARE the specification of every operation: a
//! back end that produces other bits has a bug. `NUMERICS.md` and `FORMATS.md`
//! beside this crate say in prose what the code says exactly.
//!
//! Arithmetic rules that hold everywhere: f32 with round to nearest even,
//! multiply and add kept separate, denormals kept, `max(a, b)` is
//! `if a > b { a } else { b }`, no libm.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod activation;
pub mod attention;
pub mod block;
pub mod elementwise;
pub mod format;
pub mod lanes;
pub mod math;
pub mod output;
pub mod panel;
pub mod reference;
pub mod spec;

pub use format::WeightFormat;
pub use spec::KernelSpec;

/// Version of the numeric contract. Plans built under another version compute
/// other bits, so the runtime refuses them by name.
pub const NUMERICS_VERSION: u32 = 2;

/// Output rows that one panel interleaves; every padded extent is a multiple.
pub const PANEL_ROWS: u32 = 16;

/// `len` rounded up to a whole number of panels: the stride, in elements, of
/// every f32 column buffer.
pub const fn pad_to_panel(len: u32) -> u32 {
    len.div_ceil(PANEL_ROWS) * PANEL_ROWS
}
