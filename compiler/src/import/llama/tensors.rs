//! The tensors of a llama-family model: each found by its name, of the shape
//! that the hyperparameters imply, in a supported format; no other is there.

use std::collections::BTreeMap;

use omex_kernels::WeightFormat;
use omex_kernels::block::float_at;
use omex_kernels::format::Descriptor;

use super::{Hyperparameters, Layer, Linear, Matrix, Output, Vector, Weights};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::import::gguf::{Gguf, Tensor, TensorId};

/// Finds and checks all tensors; sets `vocab_len` and the RoPE factors.
pub(super) fn read(
    gguf: &Gguf<'_>,
    hyperparameters: &mut Hyperparameters,
) -> Result<Weights, ImportError> {
    if gguf.tensors().is_empty() {
        return Err(ImportError::new(
            Code::ModelInvalid,
            "the file holds no tensors: it is a vocabulary only",
        ));
    }
    let mut finder = Finder::new(gguf);
    hyperparameters.vocab_len = vocab_len(gguf, &finder)?;
    hyperparameters.rope.factors =
        rope_factors(&mut finder, hyperparameters.rope.dimension_count / 2)?;
    let h = &*hyperparameters;
    let attention_len = product(
        h.head_count,
        h.head_len,
        "attention.head_count x key_length",
    )?;
    let kv_len = product(
        h.kv_head_count,
        h.head_len,
        "attention.head_count_kv x key_length",
    )?;

    let token_embedding = finder.matrix("token_embd.weight", h.vocab_len, h.embedding_len)?;
    // The number of layers is a claim of the metadata until their tensors are
    // there, so nothing is reserved for it.
    let mut layers = Vec::new();
    for i in 0..h.layer_count {
        let name = |part: &str| format!("blk.{i}.{part}");
        layers.push(Layer {
            attention_norm: finder.vector(&name("attn_norm.weight"), h.embedding_len)?,
            query: finder.linear(&name("attn_q"), attention_len, h.embedding_len)?,
            key: finder.linear(&name("attn_k"), kv_len, h.embedding_len)?,
            value: finder.linear(&name("attn_v"), kv_len, h.embedding_len)?,
            attention_output: finder.linear(
                &name("attn_output"),
                h.embedding_len,
                attention_len,
            )?,
            feed_forward_norm: finder.vector(&name("ffn_norm.weight"), h.embedding_len)?,
            gate: finder.linear(&name("ffn_gate"), h.feed_forward_len, h.embedding_len)?,
            up: finder.linear(&name("ffn_up"), h.feed_forward_len, h.embedding_len)?,
            down: finder.linear(&name("ffn_down"), h.embedding_len, h.feed_forward_len)?,
        });
    }
    let output_norm = finder.vector("output_norm.weight", h.embedding_len)?;
    let output = if gguf.tensor("output.weight").is_some() {
        Output::Untied(finder.linear("output", h.vocab_len, h.embedding_len)?)
    } else {
        Output::Tied
    };
    finder.refuse_others()?;
    Ok(Weights {
        token_embedding,
        layers,
        output_norm,
        output,
    })
}

fn product(a: u32, b: u32, what: &str) -> Result<u32, ImportError> {
    a.checked_mul(b).ok_or_else(|| {
        ImportError::new(
            Code::ModelMetadata,
            format!("{what} is {a} x {b}, more than 2^32"),
        )
    })
}

/// The number of rows of the token embedding, which the vocabulary has to have too.
fn vocab_len(gguf: &Gguf<'_>, finder: &Finder<'_, '_>) -> Result<u32, ImportError> {
    let (_, tensor) = finder.find("token_embd.weight")?;
    let rows = tensor.rows();
    let at = |error: ImportError| error.at(tensor.offset_bytes);
    if let Some(tokens) = gguf.get_array("tokenizer.ggml.tokens")?
        && tokens.len != rows
    {
        return Err(at(ImportError::new(
            Code::ModelTensor,
            format!(
                "`token_embd.weight` has {rows} rows, but the vocabulary has {} tokens",
                tokens.len
            ),
        )));
    }
    // Token ids are i32 in GGUF files.
    u32::try_from(rows)
        .ok()
        .filter(|&rows| i32::try_from(rows).is_ok())
        .ok_or_else(|| {
            at(ImportError::new(
                Code::ModelTensor,
                format!("`token_embd.weight` has {rows} rows, more than 2^31"),
            ))
        })
}

fn rope_factors(finder: &mut Finder<'_, '_>, pairs: u32) -> Result<Option<Vec<f32>>, ImportError> {
    const NAME: &str = "rope_freqs.weight";
    if finder.gguf.tensor(NAME).is_none() {
        return Ok(None);
    }
    let vector = finder.vector(NAME, pairs)?;
    let factors = vector.read(finder.gguf)?;
    match factors.iter().position(|f| *f <= 0.0) {
        None => Ok(Some(factors)),
        Some(i) => Err(element_fault(finder.gguf, &vector, i, "not above 0")),
    }
}

impl Vector {
    /// The elements as f32.
    ///
    /// # Errors
    ///
    /// The first element that is NaN or infinite.
    pub fn read(&self, gguf: &Gguf<'_>) -> Result<Vec<f32>, ImportError> {
        let bytes = gguf.data(gguf.tensor_at(self.tensor));
        let elements: Vec<f32> = (0..self.len as usize)
            .map(|i| float_at(self.format, bytes, i))
            .collect();
        match elements.iter().position(|v| !v.is_finite()) {
            None => Ok(elements),
            Some(i) => Err(element_fault(gguf, self, i, "not finite")),
        }
    }
}

fn element_fault(gguf: &Gguf<'_>, vector: &Vector, i: usize, what: &str) -> ImportError {
    let tensor = gguf.tensor_at(vector.tensor);
    let value = float_at(vector.format, gguf.data(tensor), i);
    ImportError::new(
        Code::ModelTensor,
        format!(
            "element {i} of tensor {} is {value:?}, {what}",
            quoted(tensor.name)
        ),
    )
    .at(tensor.range.start + i as u64 * vector.format.row_bytes(1))
}

/// Finds tensors by name and keeps account of those nobody asked for.
struct Finder<'g, 'a> {
    gguf: &'g Gguf<'a>,
    ids: BTreeMap<&'a str, TensorId>,
    used: Vec<bool>,
}

impl<'g, 'a> Finder<'g, 'a> {
    fn new(gguf: &'g Gguf<'a>) -> Self {
        let names = gguf.tensors().iter().map(|t| t.name);
        Self {
            gguf,
            // The reader bounds the number of tensors far below 2^32.
            ids: names.zip((0..).map(TensorId)).collect(),
            used: vec![false; gguf.tensors().len()],
        }
    }

    fn find(&self, name: &str) -> Result<(TensorId, &'g Tensor<'a>), ImportError> {
        let id = *self.ids.get(name).ok_or_else(|| {
            ImportError::new(Code::ModelTensor, format!("tensor `{name}` is missing"))
        })?;
        Ok((id, self.gguf.tensor_at(id)))
    }

    /// Finds a tensor of the given dimensions (row length first).
    fn tensor(
        &mut self,
        name: &str,
        dims: &[u32],
    ) -> Result<(TensorId, &'g Tensor<'a>, WeightFormat), ImportError> {
        let (id, tensor) = self.find(name)?;
        let same = tensor.dims().len() == dims.len()
            && tensor
                .dims()
                .iter()
                .zip(dims)
                .all(|(&a, &b)| a == u64::from(b));
        if !same {
            return Err(ImportError::new(
                Code::ModelTensor,
                format!(
                    "tensor `{name}` has the shape {:?}; the metadata implies {dims:?}",
                    tensor.dims()
                ),
            )
            .at(tensor.offset_bytes));
        }
        let format = WeightFormat::from_ggml_type(tensor.ggml_type.id()).ok_or_else(|| {
            let known: Vec<_> = WeightFormat::ALL.iter().map(|f| f.name()).collect();
            unsupported_type(tensor, &known.join(", "))
        })?;
        self.used[id.0 as usize] = true;
        Ok((id, tensor, format))
    }

    fn matrix(&mut self, name: &str, rows: u32, columns: u32) -> Result<Matrix, ImportError> {
        let (id, tensor, format) = self.tensor(name, &[columns, rows])?;
        if !columns.is_multiple_of(format.k_multiple()) {
            return Err(ImportError::new(
                Code::ModelUnsupported,
                format!(
                    "tensor `{name}` has rows of {columns} elements; {} needs a multiple of {}",
                    format.name(),
                    format.k_multiple()
                ),
            )
            .at(tensor.offset_bytes));
        }
        Ok(Matrix {
            tensor: id,
            format,
            rows,
            columns,
        })
    }

    fn vector(&mut self, name: &str, len: u32) -> Result<Vector, ImportError> {
        let (id, tensor, format) = self.tensor(name, &[len])?;
        match format.descriptor() {
            Descriptor::Float { .. } => Ok(Vector {
                tensor: id,
                format,
                len,
            }),
            Descriptor::Quantized(_) => Err(unsupported_type(tensor, "F32, F16, BF16")),
        }
    }

    fn linear(&mut self, name: &str, rows: u32, columns: u32) -> Result<Linear, ImportError> {
        let weight = self.matrix(&format!("{name}.weight"), rows, columns)?;
        let bias_name = format!("{name}.bias");
        let bias = if self.ids.contains_key(bias_name.as_str()) {
            Some(self.vector(&bias_name, rows)?)
        } else {
            None
        };
        Ok(Linear { weight, bias })
    }

    /// Refuses tensors that were not asked for: a model that has them computes
    /// something else. Old converters stored RoPE's frequencies per layer,
    /// which the base gives as well.
    fn refuse_others(&self) -> Result<(), ImportError> {
        let mut others = self
            .gguf
            .tensors()
            .iter()
            .zip(&self.used)
            .filter(|(tensor, used)| !**used && !tensor.name.ends_with(".attn_rot_embd"))
            .map(|(tensor, _)| tensor);
        let Some(first) = others.next() else {
            return Ok(());
        };
        let more = match others.count() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        Err(ImportError::new(
            Code::ModelUnsupported,
            format!(
                "tensor {}{more} is no part of the model that the metadata describes",
                quoted(first.name)
            ),
        )
        .at(first.offset_bytes))
    }
}

fn unsupported_type(tensor: &Tensor<'_>, supported: &str) -> ImportError {
    ImportError::new(
        Code::ModelUnsupported,
        format!(
            "tensor {} has type {}; supported here: {supported}",
            quoted(tensor.name),
            tensor.ggml_type.name()
        ),
    )
    .at(tensor.offset_bytes)
}
