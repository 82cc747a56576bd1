//! SmolLM 3: every fourth layer does not rotate.

use omex_kernels::spec::RopePairing;

use super::{Family, PLAIN};

pub(super) const FAMILY: Family = Family {
    name: "smollm3",
    // The converter permutes the rows of Q and K, as for llama.
    pairing: RopePairing::Adjacent,
    no_rope_step: Some(4),
    ..PLAIN
};
