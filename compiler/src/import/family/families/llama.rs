//! Llama 1 to 3, Mistral and the many models of their shape. Llama 3's RoPE
//! scaling is in the file as factors (`rope_freqs.weight`).

use omex_kernels::spec::RopePairing;

use super::{Family, PLAIN, Sliding};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    // The converter permutes the rows of Q and K.
    pairing: RopePairing::Adjacent,
    // Mistral's first versions.
    sliding: Sliding::All,
    ..PLAIN
};
