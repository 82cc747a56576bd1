//! Qwen 2 and 2.5: biases on Q, K and V.

use super::{Family, PLAIN};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    ..PLAIN
};
