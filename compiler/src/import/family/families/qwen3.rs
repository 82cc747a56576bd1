//! Qwen 3: norms of the heads.

use super::{Family, PLAIN};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    head_norms: true,
    ..PLAIN
};
