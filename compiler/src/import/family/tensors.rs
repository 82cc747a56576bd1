//! The tensors of a model: each found by its name, of the shape that the
//! hyperparameters imply, in a supported format; no other is there.

use std::collections::BTreeMap;

use omex_kernels::WeightFormat;
use omex_kernels::block::float_at;
use omex_kernels::format::Descriptor;

use super::families::Family;
use super::rope::{FACTOR_MIN, Factors};
use super::{Hyperparameters, Layer, Linear, Matrix, Output, Vector, Weights};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::import::gguf::{Gguf, Tensor, TensorId};

/// Finds and checks all tensors; sets `vocab_len` and the RoPE factors.
pub(super) fn read(
    gguf: &Gguf<'_>,
    family: &Family,
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
    rope_factors(&mut finder, hyperparameters)?;
    let h = &*hyperparameters;

    let token_embedding = finder.matrix("token_embd.weight", h.vocab_len, h.embedding_len)?;
    // The number of layers is a claim of the metadata until their tensors are
    // there, so nothing is reserved for it.
    let mut layers = Vec::new();
    for i in 0..h.layer_count {
        layers.push(layer(&mut finder, family, h, i)?);
    }
    let output_norm = finder.vector("output_norm.weight", h.embedding_len)?;
    let output = if finder.has("output.weight") {
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

fn layer(
    finder: &mut Finder<'_, '_>,
    family: &Family,
    h: &Hyperparameters,
    i: u32,
) -> Result<Layer, ImportError> {
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
    let (stream, width) = (h.embedding_len, h.feed_forward_len);
    let name = |part: &str| format!("blk.{i}.{part}");
    let attention_norm = finder.vector(&name("attn_norm.weight"), stream)?;
    let parts = [
        (name("attn_q"), attention_len),
        (name("attn_k"), kv_len),
        (name("attn_v"), kv_len),
    ];
    let [query, key, value] = if finder.has(&name("attn_qkv.weight")) {
        finder.parts(&name("attn_qkv"), parts, stream)?
    } else {
        finder.separate(parts, stream)?
    };
    let parts = [(name("ffn_gate"), width), (name("ffn_up"), width)];
    let mut optional = |wanted: bool, part: &str, len: u32| {
        wanted.then(|| finder.vector(&name(part), len)).transpose()
    };
    let query_norm = optional(family.head_norms, "attn_q_norm.weight", h.head_len)?;
    let key_norm = optional(family.head_norms, "attn_k_norm.weight", h.head_len)?;
    let attention_post_norm = optional(family.post_norms, "post_attention_norm.weight", stream)?;
    let feed_forward_post_norm = optional(family.post_norms, "post_ffw_norm.weight", stream)?;
    let attention_output = finder.linear(&name("attn_output"), stream, attention_len)?;
    let feed_forward_norm = finder.vector(&name("ffn_norm.weight"), stream)?;
    let [gate, up] = if family.fused_gate {
        finder.parts(&name("ffn_up"), parts, stream)?
    } else {
        finder.separate(parts, stream)?
    };
    Ok(Layer {
        attention_norm,
        query,
        key,
        value,
        query_norm,
        key_norm,
        attention_output,
        attention_post_norm,
        feed_forward_norm,
        gate,
        up,
        down: finder.linear(&name("ffn_down"), stream, width)?,
        feed_forward_post_norm,
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

/// Reads the tensors that hold RoPE's factors.
fn rope_factors(finder: &mut Finder<'_, '_>, h: &mut Hyperparameters) -> Result<(), ImportError> {
    const FIXED: &str = "rope_freqs.weight";
    let pairs = h.rope.pairs();
    let has_fixed = finder.has(FIXED);
    let mut read = |name: &str| -> Result<Vec<f32>, ImportError> {
        let vector = finder.vector(name, pairs)?;
        let factors = vector.read(finder.gguf)?;
        match factors.iter().position(|f| *f < FACTOR_MIN) {
            None => Ok(factors),
            Some(i) => {
                let what = format!("below {FACTOR_MIN:?}");
                Err(element_fault(finder.gguf, &vector, i, &what))
            }
        }
    };
    match &mut h.rope.factors {
        Factors::ByContext { short, long, .. } => {
            *short = read("rope_factors_short.weight")?;
            *long = read("rope_factors_long.weight")?;
        }
        factors @ Factors::None if has_fixed => {
            *factors = Factors::Fixed(read(FIXED)?);
        }
        // A tensor beside YaRN's factors is refused as unknown.
        Factors::None | Factors::Fixed(_) => {}
    }
    Ok(())
}

impl Vector {
    /// The elements as f32.
    ///
    /// # Errors
    ///
    /// The first element that is NaN or infinite.
    pub fn read(&self, gguf: &Gguf<'_>) -> Result<Vec<f32>, ImportError> {
        let bytes = gguf.data(gguf.tensor_at(self.tensor));
        let elements: Vec<f32> = (self.first as usize..)
            .take(self.len as usize)
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
    let i = vector.first as usize + i;
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

    fn has(&self, name: &str) -> bool {
        self.ids.contains_key(name)
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
            name: name.to_owned(),
            tensor: id,
            format,
            first_row: 0,
            rows,
            columns,
        })
    }

    fn vector(&mut self, name: &str, len: u32) -> Result<Vector, ImportError> {
        let (id, tensor, format) = self.tensor(name, &[len])?;
        match format.descriptor() {
            Descriptor::Float { .. } => Ok(Vector {
                name: name.to_owned(),
                tensor: id,
                format,
                first: 0,
                len,
            }),
            Descriptor::Quantized(_) => Err(unsupported_type(tensor, "F32, F16, BF16")),
        }
    }

    fn linear(&mut self, name: &str, rows: u32, columns: u32) -> Result<Linear, ImportError> {
        let weight = self.matrix(&format!("{name}.weight"), rows, columns)?;
        let bias_name = format!("{name}.bias");
        let bias = if self.has(&bias_name) {
            Some(self.vector(&bias_name, rows)?)
        } else {
            None
        };
        Ok(Linear { weight, bias })
    }

    /// Matrices of `columns` inputs, each with its number of rows, in tensors
    /// of their own.
    fn separate<const N: usize>(
        &mut self,
        parts: [(String, u32); N],
        columns: u32,
    ) -> Result<[Linear; N], ImportError> {
        let linears: Result<Vec<_>, _> = parts
            .iter()
            .map(|(name, rows)| self.linear(name, *rows, columns))
            .collect();
        Ok(linears?.try_into().expect("as many as parts"))
    }

    /// The same, stacked in one tensor.
    fn parts<const N: usize>(
        &mut self,
        name: &str,
        parts: [(String, u32); N],
        columns: u32,
    ) -> Result<[Linear; N], ImportError> {
        let sum = parts
            .iter()
            .try_fold(0u32, |sum, (_, rows)| sum.checked_add(*rows));
        let rows = sum.ok_or_else(|| {
            ImportError::new(
                Code::ModelMetadata,
                format!("`{name}` would have more than 2^32 rows"),
            )
        })?;
        let whole = self.linear(name, rows, columns)?;
        let mut first = 0;
        Ok(parts.map(|(name, rows)| {
            let part = Linear {
                weight: Matrix {
                    name: format!("{name}.weight"),
                    first_row: first,
                    rows,
                    ..whole.weight.clone()
                },
                bias: whole.bias.as_ref().map(|bias| Vector {
                    name: format!("{name}.bias"),
                    first,
                    len: rows,
                    ..bias.clone()
                }),
            };
            first += rows;
            part
        }))
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
