//! Gemma 2: norms on both sides, capped scores and logits, every second layer
//! slides. The converter adds the one that its norms add to their weights.

use omex_kernels::spec::GateFunction;

use super::{Family, PLAIN, QueryScalar, Sliding, Softcap};

pub(super) const FAMILY: Family = Family {
    name: "gemma2",
    gate: GateFunction::GeluTanh,
    post_norms: true,
    scaled_embeddings: true,
    // The 27B model's.
    query_scalar: QueryScalar::EmbeddingPerHead { layers: 46 },
    sliding: Sliding::Pattern {
        step: 2,
        window: Some(4096),
        rope_base: None,
    },
    attention_softcap: Softcap::Default(50.0),
    output_softcap: Softcap::Default(30.0),
    ..PLAIN
};
