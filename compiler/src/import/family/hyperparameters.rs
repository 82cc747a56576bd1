//! The hyperparameters in the metadata of a model.

use omex_kernels::math::sqrt;

use super::families::{self, Family, QueryScalar, Softcap};
use super::keys::{Keys, Neutral};
use super::rope::{self, Rope};
use super::{Hyperparameters, Sliding, SlidingLayers};
use crate::diagnostic::Code;
use crate::import::ImportError;
use crate::import::gguf::{Gguf, Value};

/// Keys (behind the architecture's prefix) that change the computation and are
/// not built, each with the value that means "absent".
const UNSUPPORTED_KEYS: &[(&str, Neutral)] = &[
    ("attention.causal", Neutral::Bool(true)),
    ("attention.clamp_kqv", Neutral::Number(0.0)),
    ("attention.key_length_swa", Neutral::Absent),
    ("attention.max_alibi_bias", Neutral::Number(0.0)),
    ("attention.output_scale", Neutral::Number(1.0)),
    ("attention.temperature_length", Neutral::Number(0.0)),
    ("attention.temperature_scale", Neutral::Number(0.0)),
    ("attention.value_length_swa", Neutral::Absent),
    ("attention.value_scale", Neutral::Number(1.0)),
    ("embedding_scale", Neutral::Number(1.0)),
    ("expert_count", Neutral::Number(0.0)),
    ("leading_dense_block_count", Neutral::Number(0.0)),
    ("logit_scale", Neutral::Number(1.0)),
    ("pooling_type", Neutral::Number(0.0)),
    ("residual_scale", Neutral::Number(1.0)),
    ("rope.dimension_count_swa", Neutral::Absent),
    ("rope.dimension_sections", Neutral::Absent),
    ("rope.scaling.yarn_attn_factor", Neutral::Number(1.0)),
    ("rope.scaling.yarn_ext_factor", Neutral::Number(1.0)),
    ("use_parallel_residual", Neutral::Bool(false)),
];

/// Keys of families that have windows.
const SLIDING_KEYS: &[(&str, Neutral)] = &[
    ("attention.sliding_window", Neutral::Number(0.0)),
    ("attention.sliding_window_pattern", Neutral::Absent),
    ("rope.freq_base_swa", Neutral::Absent),
];

/// Reads all hyperparameters but `vocab_len`, which the token embedding's shape
/// gives, and the RoPE factors, which are tensors.
pub(super) fn read(gguf: &Gguf<'_>, family: &Family) -> Result<Hyperparameters, ImportError> {
    let keys = Keys {
        gguf,
        prefix: family.name,
    };
    for &(name, neutral) in UNSUPPORTED_KEYS {
        keys.refuse_unless(name, neutral)?;
    }

    let layer_count = keys.count("block_count")?;
    let embedding_len = keys.count("embedding_length")?;
    let head_count = keys.count("attention.head_count")?;
    let kv_head_count = keys
        .optional_count("attention.head_count_kv")?
        .unwrap_or(head_count);
    if !head_count.is_multiple_of(kv_head_count) {
        return Err(keys.fault(
            "attention.head_count_kv",
            format!(
                "{kv_head_count} key-value heads cannot be shared evenly by {head_count} heads"
            ),
        ));
    }
    let head_len = head_len(&keys, embedding_len, head_count)?;
    let rms_epsilon = keys.positive("attention.layer_norm_rms_epsilon")?;
    let rms_epsilon =
        rms_epsilon.ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?;
    let context_len = keys.count("context_length")?;
    let rope = rope::read(&keys, family.pairing, head_len, context_len)?;
    let query_scalar = match family.query_scalar {
        QueryScalar::EmbeddingPerHead { layers } if layers == layer_count => {
            if embedding_len < head_count {
                return Err(keys.fault(
                    "attention.head_count",
                    format!("an embedding of {embedding_len} has nothing for {head_count} heads"),
                ));
            }
            embedding_len / head_count
        }
        QueryScalar::EmbeddingPerHead { .. } | QueryScalar::HeadLen => head_len,
    };
    let stated_scale = keys.positive_or_zero("attention.scale")?;
    Ok(Hyperparameters {
        layer_count,
        embedding_len,
        feed_forward_len: keys.count("feed_forward_length")?,
        head_count,
        kv_head_count,
        head_len,
        context_len,
        vocab_len: 0,
        rms_epsilon,
        embedding_scale: if family.scaled_embeddings {
            sqrt(embedding_len as f32)
        } else {
            1.0
        },
        attention_scale: stated_scale.unwrap_or(1.0 / sqrt(query_scalar as f32)),
        attention_softcap: softcap(&keys, "attn_logit_softcapping", family.attention_softcap)?,
        output_softcap: softcap(&keys, "final_logit_softcapping", family.output_softcap)?,
        gate: family.gate,
        sliding: sliding(&keys, family, layer_count, &rope)?,
        rope,
        no_rope_step: family.no_rope_step,
    })
}

fn head_len(keys: &Keys<'_, '_>, embedding_len: u32, head_count: u32) -> Result<u32, ImportError> {
    let head_len_of = |key| match keys.optional_count(key)? {
        Some(len) => Ok(len),
        None if embedding_len.is_multiple_of(head_count) => Ok(embedding_len / head_count),
        None => Err(keys.fault(
            "attention.head_count",
            format!(
                "an embedding of {embedding_len} cannot be split evenly into {head_count} heads"
            ),
        )),
    };
    let head_len = head_len_of("attention.key_length")?;
    let value_len = head_len_of("attention.value_length")?;
    if !head_len.is_multiple_of(2) {
        return Err(keys.fault(
            "attention.key_length",
            format!(
                "heads have {head_len} elements, an odd number, which cannot be rotated in pairs"
            ),
        ));
    }
    if value_len != head_len {
        return Err(keys
            .fault(
                "attention.value_length",
                format!("value heads have {value_len} elements and key heads {head_len}"),
            )
            .code(Code::ModelUnsupported));
    }
    Ok(head_len)
}

fn softcap(keys: &Keys<'_, '_>, key: &str, softcap: Softcap) -> Result<Option<f32>, ImportError> {
    match softcap {
        Softcap::Unknown => keys.refuse_unless(key, Neutral::Number(0.0)).map(|()| None),
        Softcap::Optional => keys.positive_or_zero(key),
        Softcap::Default(_) if keys.gguf.entry(&keys.name(key)).is_some() => {
            keys.positive_or_zero(key)
        }
        Softcap::Default(cap) => Ok(Some(cap)),
    }
}

fn sliding(
    keys: &Keys<'_, '_>,
    family: &Family,
    layer_count: u32,
    rope: &Rope,
) -> Result<Option<Sliding>, ImportError> {
    let refuse = |names: &[(&str, Neutral)]| {
        names
            .iter()
            .try_for_each(|&(name, neutral)| keys.refuse_unless(name, neutral))
    };
    let window = || keys.gguf.get_u32(&keys.name("attention.sliding_window"));
    match family.sliding {
        families::Sliding::Never => refuse(SLIDING_KEYS).map(|()| None),
        families::Sliding::All => {
            refuse(&SLIDING_KEYS[1..])?;
            let window = window()?.filter(|&w| w > 0);
            Ok(window.map(|window| Sliding {
                window,
                layers: SlidingLayers::All,
                rope: None,
            }))
        }
        families::Sliding::Pattern {
            step,
            window: default,
            rope_base,
        } => {
            let Some(window) = window()?.or(default).filter(|&w| w > 0) else {
                refuse(&SLIDING_KEYS[1..])?;
                return Ok(None);
            };
            let stated_base = keys.positive("rope.freq_base_swa")?;
            let base = stated_base.or(rope_base);
            Ok(Some(Sliding {
                window,
                layers: sliding_layers(keys, layer_count, step)?,
                rope: base.map(|base| Rope::plain(rope.dimension_count, rope.pairing, base)),
            }))
        }
    }
}

fn sliding_layers(
    keys: &Keys<'_, '_>,
    layer_count: u32,
    default: u32,
) -> Result<SlidingLayers, ImportError> {
    const KEY: &str = "attention.sliding_window_pattern";
    let name = keys.name(KEY);
    match keys.gguf.get(&name) {
        None => Ok(SlidingLayers::ButEvery(default)),
        Some(Value::Array(_)) => {
            let slides = keys.gguf.required(&name, Gguf::get_array_bool)?;
            if slides.len() != layer_count as usize {
                let message = format!("{} values for {layer_count} layers", slides.len());
                return Err(keys.fault(KEY, message));
            }
            Ok(SlidingLayers::Listed(slides))
        }
        Some(_) => match keys.gguf.required(&name, Gguf::get_u32)? {
            0 => Ok(SlidingLayers::All),
            step => Ok(SlidingLayers::ButEvery(step)),
        },
    }
}
