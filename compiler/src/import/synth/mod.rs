//! Made-up models: GGUF files of the llama family with random weights, of any
//! shape and mix of formats, for tests and for measuring speed.
//!
//! The same options give the same bytes. Weights are scaled so that
//! activations stay of order one and logits have a spread of a few units.

mod blocks;
mod vocabulary;

use std::io::{self, Write};
use std::str::FromStr;

use omex_kernels::WeightFormat;

use super::ggml_type::GgmlType;
use super::gguf::Gguf;
use super::gguf::write::HeaderWriter;

pub use blocks::{BlockWriter, Random};
pub use vocabulary::VOCABULARY_LEN_MIN;

/// The shape of a made-up model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub layers: u32,
    pub embedding_len: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_len: u32,
    pub feed_forward_len: u32,
    /// At least [`VOCABULARY_LEN_MIN`], unless the vocabulary is another file's.
    pub vocabulary_len: u32,
    pub context_len: u32,
    pub rope_base: f32,
    /// The token embedding is the output head too.
    pub tied: bool,
    /// Biases on Q, K, V and the attention output.
    pub biases: bool,
}

/// Which format each matrix has, as llama.cpp's quantizer chooses by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// One format for all matrices; the output head of a quantized one is Q6_K.
    Uniform(WeightFormat),
    /// Q4_K, with Q6_K for the output head and for V and the feed-forward's
    /// down projection of half of the layers.
    Q4KM,
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(name: &str) -> Result<Mix, String> {
        let upper = name.to_ascii_uppercase();
        if upper == "Q4_K_M" {
            return Ok(Mix::Q4KM);
        }
        WeightFormat::from_name(&upper)
            .map(Mix::Uniform)
            .ok_or_else(|| {
                let names: Vec<_> = WeightFormat::ALL.iter().map(|f| f.name()).collect();
                format!("no mix of that name; known: {}, Q4_K_M", names.join(", "))
            })
    }
}

impl Mix {
    fn output_format(self) -> WeightFormat {
        match self {
            Mix::Uniform(format) if !format.takes_q8() || format == WeightFormat::Q8_0 => format,
            Mix::Uniform(_) | Mix::Q4KM => WeightFormat::Q6K,
        }
    }

    fn format(self, layer: u32, layers: u32, sensitive: bool) -> WeightFormat {
        match self {
            Mix::Uniform(format) => format,
            Mix::Q4KM => {
                let eighth = layers / 8;
                let more_bits =
                    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
                if sensitive && more_bits {
                    WeightFormat::Q6K
                } else {
                    WeightFormat::Q4K
                }
            }
        }
    }
}

/// A format of about the same size whose blocks fit rows of `k` elements.
fn fitting(format: WeightFormat, k: u32) -> WeightFormat {
    if k.is_multiple_of(format.k_multiple()) {
        return format;
    }
    let smaller_blocks = match format {
        WeightFormat::Q2K | WeightFormat::Q3K | WeightFormat::Iq4Xs => WeightFormat::Iq4Nl,
        WeightFormat::Q4K => WeightFormat::Q5_0,
        WeightFormat::Q5K => WeightFormat::Q5_1,
        WeightFormat::Q6K => WeightFormat::Q8_0,
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::Q4_0
        | WeightFormat::Q4_1
        | WeightFormat::Q5_0
        | WeightFormat::Q5_1
        | WeightFormat::Q8_0
        | WeightFormat::Iq4Nl
        | WeightFormat::Mxfp4 => WeightFormat::F16,
    };
    if k.is_multiple_of(smaller_blocks.k_multiple()) {
        smaller_blocks
    } else {
        WeightFormat::F32
    }
}

/// A tensor to be written.
struct Draft {
    name: String,
    format: WeightFormat,
    dims: Vec<u64>,
    /// Root mean square of the weights; around 1 for norms.
    rms: f32,
    is_norm: bool,
}

/// Writes a model. `vocabulary` is a GGUF file whose tokenizer is copied; the
/// caller has set `shape.vocabulary_len` to its number of tokens.
///
/// # Errors
///
/// Those of `out`.
///
/// # Panics
///
/// If an extent is 0, or the vocabulary is to be made up and too small.
pub fn write_model(
    out: &mut impl Write,
    shape: &Shape,
    mix: Mix,
    seed: u64,
    vocabulary: Option<&Gguf<'_>>,
) -> io::Result<()> {
    let tensors = tensors(shape, mix);
    let mut header = header(shape, vocabulary);
    for tensor in &tensors {
        let ty = GgmlType::from_id(tensor.format.ggml_type()).expect("a type of ggml");
        header.tensor(&tensor.name, ty, &tensor.dims);
    }
    let header = header.to_bytes();
    out.write_all(&header)?;
    for tensor in &tensors {
        write_tensor(out, tensor, seed)?;
    }
    Ok(())
}

fn header(shape: &Shape, vocabulary: Option<&Gguf<'_>>) -> HeaderWriter {
    let mut w = HeaderWriter::default();
    w.str("general.architecture", "llama")
        .str("general.type", "model")
        .str("general.name", "synthetic")
        .u32("general.quantization_version", 2)
        .u32("llama.block_count", shape.layers)
        .u32("llama.context_length", shape.context_len)
        .u32("llama.embedding_length", shape.embedding_len)
        .u32("llama.feed_forward_length", shape.feed_forward_len)
        .u32("llama.attention.head_count", shape.heads)
        .u32("llama.attention.head_count_kv", shape.kv_heads)
        .u32("llama.attention.key_length", shape.head_len)
        .u32("llama.attention.value_length", shape.head_len)
        .u32("llama.rope.dimension_count", shape.head_len)
        .f32("llama.rope.freq_base", shape.rope_base)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .u32("llama.vocab_size", shape.vocabulary_len);
    match vocabulary {
        Some(gguf) => {
            for entry in gguf.metadata() {
                if entry.key.starts_with("tokenizer.") {
                    w.entry(entry);
                }
            }
        }
        None => {
            assert!(shape.vocabulary_len >= VOCABULARY_LEN_MIN, "too few tokens");
            vocabulary::write(&mut w, shape.vocabulary_len);
        }
    }
    w
}

fn tensors(shape: &Shape, mix: Mix) -> Vec<Draft> {
    let (d, ff) = (shape.embedding_len, shape.feed_forward_len);
    let q = shape.heads * shape.head_len;
    let kv = shape.kv_heads * shape.head_len;
    let matrix = |name: String, format, rows: u32, k: u32, gain: f32| Draft {
        name,
        format: fitting(format, k),
        dims: vec![k.into(), rows.into()],
        rms: gain / (k as f32).sqrt(),
        is_norm: false,
    };
    let vector = |name: String, len: u32, is_norm| Draft {
        name,
        format: WeightFormat::F32,
        dims: vec![len.into()],
        rms: 0.05,
        is_norm,
    };
    // With weights of root mean square 1 / sqrt(k), normed inputs give outputs
    // of order one; the head's gain spreads the logits.
    const HEAD_GAIN: f32 = 3.0;
    let vocabulary = shape.vocabulary_len;
    let embedding_format = if shape.tied {
        mix.output_format()
    } else {
        mix.format(0, 1, false)
    };
    let mut tensors = vec![matrix(
        "token_embd.weight".to_owned(),
        embedding_format,
        vocabulary,
        d,
        HEAD_GAIN,
    )];
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let format = |sensitive| mix.format(layer, shape.layers, sensitive);
        tensors.push(vector(name("attn_norm.weight"), d, true));
        for (part, rows, k, sensitive) in [
            ("attn_q", q, d, false),
            ("attn_k", kv, d, false),
            ("attn_v", kv, d, true),
            ("attn_output", d, q, false),
        ] {
            let weight = name(&format!("{part}.weight"));
            tensors.push(matrix(weight, format(sensitive), rows, k, 1.0));
            if shape.biases {
                tensors.push(vector(name(&format!("{part}.bias")), rows, false));
            }
        }
        tensors.push(vector(name("ffn_norm.weight"), d, true));
        for (part, rows, k, sensitive) in [
            ("ffn_gate", ff, d, false),
            ("ffn_up", ff, d, false),
            ("ffn_down", d, ff, true),
        ] {
            let weight = name(&format!("{part}.weight"));
            tensors.push(matrix(weight, format(sensitive), rows, k, 1.0));
        }
    }
    tensors.push(vector("output_norm.weight".to_owned(), d, true));
    if !shape.tied {
        let name = "output.weight".to_owned();
        tensors.push(matrix(name, mix.output_format(), vocabulary, d, HEAD_GAIN));
    }
    tensors
}

fn write_tensor(out: &mut impl Write, tensor: &Draft, seed: u64) -> io::Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let k = u32::try_from(tensor.dims[0]).expect("extents are u32");
    let row_bytes = tensor.format.row_bytes(k);
    let rows: u64 = tensor.dims[1..].iter().product();
    let writer = BlockWriter::new(tensor.format, tensor.rms);
    let mut random = Random::new(seed, &tensor.name);
    let chunk_rows = (CHUNK_BYTES / row_bytes).max(1);
    let mut chunk = Vec::new();
    let mut done = 0;
    while done < rows {
        let count = chunk_rows.min(rows - done);
        chunk.resize((count * row_bytes) as usize, 0);
        writer.fill(&mut random, &mut chunk);
        if tensor.is_norm {
            for element in chunk.chunks_exact_mut(4) {
                let value = f32::from_le_bytes(element.try_into().expect("4 bytes"));
                element.copy_from_slice(&(1.0 + value).to_le_bytes());
            }
        }
        out.write_all(&chunk)?;
        done += count;
    }
    let bytes = rows * row_bytes;
    let padding = bytes.next_multiple_of(super::gguf::ALIGNMENT_DEFAULT) - bytes;
    out.write_all(&vec![0; padding as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::llama::{ModelConfig, Output};

    pub(crate) fn tiny() -> Shape {
        Shape {
            layers: 8,
            embedding_len: 64,
            heads: 4,
            kv_heads: 2,
            head_len: 16,
            feed_forward_len: 256,
            vocabulary_len: 300,
            context_len: 64,
            rope_base: 1e4,
            tied: true,
            biases: false,
        }
    }

    #[test]
    fn every_mix_makes_a_model_that_is_read() {
        let names = WeightFormat::ALL.iter().map(|f| f.name().to_lowercase());
        for name in names.chain(["q4_k_m".to_owned()]) {
            let mix: Mix = name.parse().unwrap();
            for tied in [false, true] {
                let shape = Shape {
                    tied,
                    biases: !tied,
                    ..tiny()
                };
                let mut bytes = Vec::new();
                write_model(&mut bytes, &shape, mix, 1, None).unwrap();
                let gguf = Gguf::parse(&bytes).unwrap();
                let config = ModelConfig::from_gguf(&gguf).unwrap();
                assert_eq!(config.weights.output == Output::Tied, tied);
                assert_eq!(config.weights.layers[0].query.bias.is_some(), !tied);
                assert_eq!(config.hyperparameters.vocab_len, 300);
                let down = config.weights.layers[7].down.weight.format;
                match mix {
                    Mix::Uniform(format) => assert_eq!(down, format),
                    Mix::Q4KM => assert_eq!(down, WeightFormat::Q6K),
                }
            }
        }
        assert!("q9".parse::<Mix>().unwrap_err().contains("known: F32"));
    }

    #[test]
    fn bytes_depend_on_the_seed_alone() {
        let model = |seed| {
            let mut bytes = Vec::new();
            let mix = Mix::Uniform(WeightFormat::Q4_1);
            write_model(&mut bytes, &tiny(), mix, seed, None).unwrap();
            bytes
        };
        assert_eq!(model(1), model(1));
        assert_ne!(model(1), model(2));
    }

    #[test]
    fn the_vocabulary_of_another_file_is_copied() {
        let mut first = Vec::new();
        write_model(&mut first, &tiny(), Mix::Q4KM, 1, None).unwrap();
        let first = Gguf::parse(&first).unwrap();
        let mut second = Vec::new();
        write_model(&mut second, &tiny(), Mix::Q4KM, 2, Some(&first)).unwrap();
        let second = Gguf::parse(&second).unwrap();
        let tokenizer = |gguf: &Gguf<'_>| -> Vec<String> {
            let entries = gguf.metadata().iter();
            entries
                .filter(|e| e.key.starts_with("tokenizer."))
                .map(|e| format!("{} {:?}", e.key, e.value.type_name()))
                .collect()
        };
        assert_eq!(tokenizer(&first), tokenizer(&second));
        let tokens = |gguf: &Gguf<'_>| -> Vec<String> {
            let tokens = gguf.get_array_str("tokenizer.ggml.tokens").unwrap();
            tokens.unwrap().iter().map(str::to_owned).collect()
        };
        assert_eq!(tokens(&first), tokens(&second));
    }
}
