//! Model families: from GGUF metadata and tensor names to a checked
//! [`ModelConfig`].
//!
//! [`ModelConfig`] describes all families at once; a family is a row of the
//! table in [`families`] that says which parts its models have. Sources: the
//! key names of ggml's `docs/gguf.md`, llama.cpp's tensor names and defaults for
//! each architecture, and the modelling code of `transformers`, which
//! `tests/oracle/families.py` holds every family against.
//!
//! Whatever would change the result and is not built is refused by name: an
//! unknown architecture, a metadata key with an effect, an unknown tensor. A
//! [`ModelConfig`] that exists is complete and consistent.

mod families;
mod hyperparameters;
mod keys;
mod rope;
mod schedule;
mod tensors;
#[cfg(test)]
mod tests;

use omex_kernels::WeightFormat;
use omex_kernels::spec::GateFunction;

use super::ImportError;
use super::gguf::{Gguf, TensorId};

pub use rope::{Factors, Rope};

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
    /// Factor of the token embeddings.
    pub embedding_scale: f32,
    /// Factor of the attention scores.
    pub attention_scale: f32,
    /// With c, an attention score s becomes `c * tanh(s / c)`.
    pub attention_softcap: Option<f32>,
    /// The same for logits.
    pub output_softcap: Option<f32>,
    pub gate: GateFunction,
    /// Of the layers that see every position.
    pub rope: Rope,
    /// Every so many-th layer does not rotate.
    pub no_rope_step: Option<u32>,
    /// Layers that see a window.
    pub sliding: Option<Sliding>,
}

/// Layers whose queries see the last `window` positions, their own included.
#[derive(Clone, Debug, PartialEq)]
pub struct Sliding {
    pub window: u32,
    pub layers: SlidingLayers,
    /// `None`: that of the other layers.
    pub rope: Option<Rope>,
}

/// Which layers slide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlidingLayers {
    All,
    /// All but every so many-th.
    ButEvery(u32),
    /// Layer by layer.
    Listed(Vec<bool>),
}

/// What the attention of one layer sees, and how it rotates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerAttention<'a> {
    pub window: Option<u32>,
    pub rope: Option<&'a Rope>,
}

impl Hyperparameters {
    pub fn attention(&self, layer: u32) -> LayerAttention<'_> {
        let sliding = self.sliding.as_ref().filter(|s| match &s.layers {
            SlidingLayers::All => true,
            SlidingLayers::ButEvery(step) => !(layer + 1).is_multiple_of(*step),
            SlidingLayers::Listed(slides) => slides[layer as usize],
        });
        let rotates = self
            .no_rope_step
            .is_none_or(|step| !(layer + 1).is_multiple_of(step));
        LayerAttention {
            window: sliding.map(|s| s.window),
            rope: rotates.then(|| sliding.and_then(|s| s.rope.as_ref()).unwrap_or(&self.rope)),
        }
    }
}

/// A weight matrix: `rows` outputs, `columns` inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// In the packed model: the tensor's own name, or that of its part.
    pub name: String,
    pub tensor: TensorId,
    pub format: WeightFormat,
    /// Row of the tensor; above 0 where a file keeps several matrices in one.
    pub first_row: u32,
    pub rows: u32,
    pub columns: u32,
}

/// A vector of F32, F16 or BF16: a norm's weights or a bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    /// In the packed model: the tensor's own name, or that of its part.
    pub name: String,
    pub tensor: TensorId,
    pub format: WeightFormat,
    /// Element of the tensor, as [`Matrix::first_row`].
    pub first: u32,
    pub len: u32,
}

/// A matrix with its bias.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Norms of query and key heads.
    pub query_norm: Option<Vector>,
    pub key_norm: Option<Vector>,
    pub attention_output: Linear,
    /// Norm of what the attention adds to the stream.
    pub attention_post_norm: Option<Vector>,
    pub feed_forward_norm: Vector,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    /// Norm of what the feed-forward part adds to the stream.
    pub feed_forward_post_norm: Option<Vector>,
}

impl ModelConfig {
    /// Reads and checks the model in a GGUF file.
    ///
    /// # Errors
    ///
    /// An architecture, metadata key or tensor that is missing, unknown,
    /// contradictory or not supported, named.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, ImportError> {
        let family = families::of(gguf)?;
        let mut hyperparameters = hyperparameters::read(gguf, family)?;
        let weights = tensors::read(gguf, family, &mut hyperparameters)?;
        Ok(Self {
            architecture: family.name.to_owned(),
            name: gguf.get_str("general.name")?.map(str::to_owned),
            hyperparameters,
            weights,
        })
    }
}
