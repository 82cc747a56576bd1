//! The hyperparameters in the metadata of a llama-family model.

use super::{ARCHITECTURES, Architecture, Hyperparameters, Rope};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::import::gguf::{Gguf, Value};

/// Keys (behind the architecture's prefix) that change the computation and are
/// not built, each with the value that means "absent".
const UNSUPPORTED_KEYS: &[(&str, Neutral)] = &[
    ("attention.causal", Neutral::Bool(true)),
    ("attention.clamp_kqv", Neutral::Number(0.0)),
    ("attention.max_alibi_bias", Neutral::Number(0.0)),
    ("attention.scale", Neutral::Number(0.0)),
    ("attention.sliding_window", Neutral::Number(0.0)),
    ("attention.temperature_length", Neutral::Number(0.0)),
    ("attn_logit_softcapping", Neutral::Number(0.0)),
    ("embedding_scale", Neutral::Number(1.0)),
    ("expert_count", Neutral::Number(0.0)),
    ("final_logit_softcapping", Neutral::Number(0.0)),
    ("leading_dense_block_count", Neutral::Number(0.0)),
    ("logit_scale", Neutral::Number(1.0)),
    ("pooling_type", Neutral::Number(0.0)),
    ("residual_scale", Neutral::Number(1.0)),
    ("rope.scaling.attn_factor", Neutral::Number(1.0)),
    ("use_parallel_residual", Neutral::Bool(false)),
];

#[derive(Clone, Copy)]
enum Neutral {
    Bool(bool),
    Number(f64),
}

/// Reads all hyperparameters but `vocab_len`, which the token embedding's shape
/// gives, and the RoPE factors, which are a tensor.
pub(super) fn read(
    gguf: &Gguf<'_>,
) -> Result<(&'static Architecture, Hyperparameters), ImportError> {
    let architecture = architecture(gguf)?;
    let keys = Keys {
        gguf,
        prefix: architecture.name,
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
    let rms_epsilon = keys.positive("attention.layer_norm_rms_epsilon")?;
    let rms_epsilon =
        rms_epsilon.ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?;
    Ok((
        architecture,
        Hyperparameters {
            layer_count,
            embedding_len,
            feed_forward_len: keys.count("feed_forward_length")?,
            head_count,
            kv_head_count,
            head_len,
            context_len: keys.count("context_length")?,
            vocab_len: 0,
            rms_epsilon,
            rope: rope(&keys, architecture, head_len)?,
        },
    ))
}

fn architecture(gguf: &Gguf<'_>) -> Result<&'static Architecture, ImportError> {
    if let Some(kind) = gguf.get_str("general.type")?
        && kind != "model"
    {
        return Err(ImportError::new(
            Code::ModelUnsupported,
            format!("general.type is {}; a model is needed", quoted(kind)),
        ));
    }
    if let Some(parts) = gguf.get_u32("split.count")?
        && parts > 1
    {
        return Err(ImportError::new(
            Code::ModelUnsupported,
            format!("the model is split into {parts} files"),
        )
        .help("merge them with llama-gguf-split --merge"));
    }
    if let Some(version) = gguf.get_u32("general.quantization_version")?
        && version != 2
    {
        return Err(ImportError::new(
            Code::ModelUnsupported,
            format!("general.quantization_version is {version}; 2 is read"),
        ));
    }
    let name = gguf.required("general.architecture", Gguf::get_str)?;
    let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
    ARCHITECTURES
        .iter()
        .find(|a| a.name == name)
        .ok_or_else(|| {
            ImportError::new(
                Code::ModelUnsupported,
                format!(
                    "architecture {} is not supported; supported: {}",
                    quoted(name),
                    known.join(", ")
                ),
            )
        })
}

fn rope(
    keys: &Keys<'_, '_>,
    architecture: &Architecture,
    head_len: u32,
) -> Result<Rope, ImportError> {
    let dimension_count = keys
        .optional_count("rope.dimension_count")?
        .unwrap_or(head_len);
    if !dimension_count.is_multiple_of(2) || dimension_count > head_len {
        return Err(keys.fault(
            "rope.dimension_count",
            format!(
                "{dimension_count} elements of a head of {head_len} cannot be rotated in pairs"
            ),
        ));
    }
    let factor = match keys.positive("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.positive("rope.scale_linear")?,
    };
    let kind = keys.gguf.get_str(&keys.name("rope.scaling.type"))?;
    let position_divisor = match kind {
        // llama.cpp takes a factor without a type as linear scaling.
        None | Some("linear") => factor.unwrap_or(1.0),
        Some("none") => 1.0,
        Some(other) => {
            return Err(keys
                .fault(
                    "rope.scaling.type",
                    format!(
                        "RoPE scaling of type {} is not supported; none and linear are",
                        quoted(other)
                    ),
                )
                .code(Code::ModelUnsupported));
        }
    };
    Ok(Rope {
        dimension_count,
        pairing: architecture.rope_pairing,
        base: keys.positive("rope.freq_base")?.unwrap_or(10_000.0),
        position_divisor,
        factors: None,
    })
}

/// Lookup of the keys behind the architecture's prefix.
struct Keys<'g, 'a> {
    gguf: &'g Gguf<'a>,
    prefix: &'static str,
}

impl Keys<'_, '_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// An error about a key, at the key's place if it is there.
    fn fault(&self, key: &str, message: impl std::fmt::Display) -> ImportError {
        let name = self.name(key);
        let error = ImportError::new(Code::ModelMetadata, format!("{name}: {message}"));
        match self.gguf.entry(&name) {
            Some(entry) => error.at(entry.offset_bytes),
            None => error,
        }
    }

    fn missing(&self, key: &str) -> ImportError {
        ImportError::new(
            Code::ModelMetadata,
            format!("metadata key `{}` is missing", self.name(key)),
        )
    }

    fn count(&self, key: &str) -> Result<u32, ImportError> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key))
    }

    /// A count of at least 1. Per-layer arrays are read when all their elements
    /// are equal.
    fn optional_count(&self, key: &str) -> Result<Option<u32>, ImportError> {
        let name = self.name(key);
        let count = match self.gguf.get(&name) {
            Some(Value::Array(_)) => self.uniform(key)?,
            Some(_) => self.gguf.required(&name, Gguf::get_u32)?,
            None => return Ok(None),
        };
        if count == 0 {
            return Err(self.fault(key, "at least 1 is needed"));
        }
        Ok(Some(count))
    }

    /// The value that all elements of an array have.
    fn uniform(&self, key: &str) -> Result<u32, ImportError> {
        let mut values = self
            .gguf
            .required(&self.name(key), Gguf::get_array_integer)?;
        let first = values
            .next()
            .and_then(|v| u32::try_from(v).ok())
            .ok_or_else(|| self.fault(key, "an array of counts is needed"))?;
        if values.any(|v| v != i128::from(first)) {
            return Err(self
                .fault(key, "values that differ between layers are not supported")
                .code(Code::ModelUnsupported));
        }
        Ok(first)
    }

    /// A finite float above 0.
    fn positive(&self, key: &str) -> Result<Option<f32>, ImportError> {
        match self.gguf.get_f32(&self.name(key))? {
            Some(v) if !(v.is_finite() && v > 0.0) => {
                Err(self.fault(key, format!("{v:?} is no positive finite number")))
            }
            other => Ok(other),
        }
    }

    fn refuse_unless(&self, key: &str, neutral: Neutral) -> Result<(), ImportError> {
        let Some(entry) = self.gguf.entry(&self.name(key)) else {
            return Ok(());
        };
        let is_neutral = match neutral {
            Neutral::Bool(n) => entry.value == Value::Bool(n),
            Neutral::Number(n) => entry.value.as_number() == Some(n),
        };
        if is_neutral {
            return Ok(());
        }
        Err(self
            .fault(key, format!("{} is not supported", entry.value))
            .code(Code::ModelUnsupported))
    }
}
