//! The table of families: one file each.

mod gemma2;
mod gemma3;
mod llama;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use omex_kernels::spec::{GateFunction, RopePairing};

use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::import::gguf::Gguf;

/// What the models of an architecture are made of, beyond their metadata.
///
/// All have RMSNorms before attention and feed-forward, grouped-query
/// attention, a gated feed-forward, biases where they are in the file, and a
/// tied or untied output head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// How the converter orders the rows of Q and K.
    pub(super) pairing: RopePairing,
    pub(super) gate: GateFunction,
    /// `ffn_up` holds the gate's rows before its own.
    pub(super) fused_gate: bool,
    /// `attn_q_norm` and `attn_k_norm`: RMSNorms of the heads before RoPE.
    pub(super) head_norms: bool,
    /// `post_attention_norm` and `post_ffw_norm`.
    pub(super) post_norms: bool,
    /// Embeddings are multiplied by the square root of their length.
    pub(super) scaled_embeddings: bool,
    /// What scores are divided by the root of.
    pub(super) query_scalar: QueryScalar,
    pub(super) sliding: Sliding,
    /// `attn_logit_softcapping` where the key is missing; `None`: the key has
    /// no meaning.
    pub(super) attention_softcap: Softcap,
    /// `final_logit_softcapping`, the same way.
    pub(super) output_softcap: Softcap,
    /// Every so many-th layer does not rotate.
    pub(super) no_rope_step: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum QueryScalar {
    HeadLen,
    /// The head's length, but `embedding_len / head_count` in the model of so
    /// many layers.
    EmbeddingPerHead {
        layers: u32,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Softcap {
    /// The key has no meaning and is refused.
    Unknown,
    Optional,
    Default(f32),
}

/// How `attention.sliding_window` is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sliding {
    /// Models of the family have no windows; the key is refused.
    Never,
    /// Every layer slides where the key is above 0.
    All,
    /// All but every `step`-th layer slide, unless
    /// `attention.sliding_window_pattern` says otherwise.
    Pattern {
        step: u32,
        /// Where the key is missing; `None`: then nothing slides.
        window: Option<u32>,
        /// RoPE's base in sliding layers, unscaled, unless
        /// `rope.freq_base_swa` gives another; `None`: the rotation is the same.
        rope_base: Option<f32>,
    },
}

/// What most families share.
const PLAIN: Family = Family {
    name: "",
    pairing: RopePairing::Halves,
    gate: GateFunction::Silu,
    fused_gate: false,
    head_norms: false,
    post_norms: false,
    scaled_embeddings: false,
    query_scalar: QueryScalar::HeadLen,
    sliding: Sliding::Never,
    attention_softcap: Softcap::Unknown,
    output_softcap: Softcap::Unknown,
    no_rope_step: None,
};

const FAMILIES: [&Family; 7] = [
    &llama::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &smollm3::FAMILY,
];

/// The family of a model file.
///
/// # Errors
///
/// A file that is no model, or of an architecture that is not in the table.
pub(super) fn of(gguf: &Gguf<'_>) -> Result<&'static Family, ImportError> {
    let unsupported = |message: String| ImportError::new(Code::ModelUnsupported, message);
    if let Some(kind) = gguf.get_str("general.type")?
        && kind != "model"
    {
        let kind = quoted(kind);
        return Err(unsupported(format!(
            "general.type is {kind}; a model is needed"
        )));
    }
    if let Some(parts) = gguf.get_u32("split.count")?
        && parts > 1
    {
        let error = unsupported(format!("the model is split into {parts} files"));
        return Err(error.help("merge them with llama-gguf-split --merge"));
    }
    if let Some(version) = gguf.get_u32("general.quantization_version")?
        && version != 2
    {
        return Err(unsupported(format!(
            "general.quantization_version is {version}; 2 is read"
        )));
    }
    let name = gguf.required("general.architecture", Gguf::get_str)?;
    let family = FAMILIES.into_iter().find(|f| f.name == name);
    family.ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
        unsupported(format!(
            "architecture {} is not supported; supported: {}",
            quoted(name),
            known.join(", ")
        ))
    })
}
