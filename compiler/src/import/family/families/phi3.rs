//! Phi 3 and 4: Q, K and V in one tensor, gate and up in another, LongRoPE.

use super::{Family, PLAIN, Sliding};

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    fused_gate: true,
    sliding: Sliding::All,
    ..PLAIN
};
