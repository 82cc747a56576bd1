//! Gemma 3: norms on both sides and of the heads, five sliding layers to a full
//! one, each kind with a RoPE base of its own. The converter adds the one that
//! its norms add to their weights.

use omex_kernels::spec::GateFunction;

use super::{Family, PLAIN, QueryScalar, Sliding, Softcap};

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    gate: GateFunction::GeluTanh,
    head_norms: true,
    post_norms: true,
    scaled_embeddings: true,
    // The 27B model's.
    query_scalar: QueryScalar::EmbeddingPerHead { layers: 62 },
    sliding: Sliding::Pattern {
        step: 6,
        window: None,
        rope_base: Some(10_000.0),
    },
    output_softcap: Softcap::Optional,
    ..PLAIN
};
