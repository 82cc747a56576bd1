//! Models of the llama family: from GGUF metadata and tensor names to a
//! checked [`ModelConfig`].
//!
//! Sources: the key names of ggml's `docs/gguf.md`, and the tensor names and
//! defaults of llama.cpp for architecture `llama` (RMSNorm before attention and
//! feed-forward, RoPE, grouped-query attention, SwiGLU, biases where present,
//! tied or untied output).
//!
//! Whatever would change the result and is not built is refused by name: an
//! unknown architecture, a metadata key with an effect, an unknown tensor. A
//! [`ModelConfig`] that exists is complete and consistent.

mod hyperparameters;
mod schedule;
mod tensors;
#[cfg(test)]
mod tests;

use omex_kernels::WeightFormat;
use omex_kernels::spec::RopePairing;

use super::ImportError;
use super::gguf::{Gguf, TensorId};

/// What is known of an architecture beyond its metadata: a row of the table
/// that another architecture of the family extends.
#[derive(Clone, Copy, Debug)]
struct Architecture {
    name: &'static str,
    /// How the converter orders the rows of Q and K.
    rope_pairing: RopePairing,
}

const ARCHITECTURES: &[Architecture] = &[Architecture {
    name: "llama",
    rope_pairing: RopePairing::Adjacent,
}];

/// A model: its hyperparameters and where its weights are.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    pub hyperparameters: Hyperparameters,
    pub weights: Weights,
}

/// The shape of the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyperparameters {
    pub layer_count: u32,
    /// Width of the residual stream.
    pub embedding_len: u32,
    pub feed_forward_len: u32,
    pub head_count: u32,
    /// Divides `head_count`.
    pub kv_head_count: u32,
    /// Elements of a query, key or value head; even.
    pub head_len: u32,
    /// Positions that the model was trained for.
    pub context_len: u32,
    pub vocab_len: u32,
    pub rms_epsilon: f32,
    pub rope: Rope,
}

/// Rotary position embedding.
///
/// The inverse frequency of pair `i` is
/// `base^(-2 i / dimension_count) / position_divisor / factors[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Elements of a head that are rotated; even, at most `head_len`.
    pub dimension_count: u32,
    pub pairing: RopePairing,
    pub base: f32,
    /// Linear scaling: positions are divided by this; 1 without scaling.
    pub position_divisor: f32,
    /// `rope_freqs.weight`, one per pair.
    pub factors: Option<Vec<f32>>,
}

/// A weight matrix: `rows` outputs, `columns` inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub tensor: TensorId,
    pub format: WeightFormat,
    pub rows: u32,
    pub columns: u32,
}

/// A vector of F32, F16 or BF16: a norm's weights or a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    pub tensor: TensorId,
    pub format: WeightFormat,
    pub len: u32,
}

/// A matrix with its bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vector>,
}

/// The weights of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// `vocab_len` rows of `embedding_len`.
    pub token_embedding: Matrix,
    pub layers: Vec<Layer>,
    pub output_norm: Vector,
    pub output: Output,
}

/// The output head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The token embedding serves as the head too.
    Tied,
    Untied(Linear),
}

/// The weights of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub attention_norm: Vector,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub attention_output: Linear,
    pub feed_forward_norm: Vector,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

impl ModelConfig {
    /// Reads and checks the model in a GGUF file.
    ///
    /// # Errors
    ///
    /// An architecture, metadata key or tensor that is missing, unknown,
    /// contradictory or not supported, named.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, ImportError> {
        let (architecture, mut hyperparameters) = hyperparameters::read(gguf)?;
        let weights = tensors::read(gguf, &mut hyperparameters)?;
        Ok(Self {
            architecture: architecture.name.to_owned(),
            name: gguf.get_str("general.name")?.map(str::to_owned),
            hyperparameters,
            weights,
        })
    }
}
