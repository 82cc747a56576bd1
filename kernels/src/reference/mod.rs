//! The scalar reference kernels: the specification of every operation.
//!
//! Each function computes one work unit of a [`crate::KernelSpec`] on plain
//! slices. The loops are written so that a compiler may vectorise them without
//! changing a bit: lanes are independent, reductions have fixed lanes.

mod attention;
mod elementwise;
mod matmul;

pub use attention::{AttentionHead, HeadTransform, KvHead, KvRing, KvRingMut, attend, kv_store};
pub(crate) use elementwise::quantize_scale;
pub use elementwise::{
    Q8Blocks, Q8BlocksMut, SumOfSquares, add, embed_panels, embed_rows, gate, layer_moments,
    layer_scale, quantize, rms_norm, rms_reciprocal, rms_scale, rms_scale_in_place, rope_table,
    rotate_head, softcap_all, sum_lanes,
};
pub use matmul::{epilogue, matmul_panel_f32, matmul_panel_q8};

/// An activation or score was NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFinite;
