//! Made-up models: GGUF files of the llama family with random weights, of any
//! shape and mix of formats, for tests and for measuring speed.
//!
//! The same options give the same bytes. Weights are scaled so that
//! activations stay of order one and logits have a spread of a few units.

mod blocks;
mod mix;
mod shape;
mod vocabulary;

use std::io::{self, Write};

use omex_kernels::WeightFormat;

use super::ggml_type::GgmlType;
use super::gguf::Gguf;
use super::gguf::write::HeaderWriter;
use mix::{Place, Role, fitting};

pub use blocks::{BlockWriter, Random};
pub use mix::{Mix, Recipe};
pub use shape::{Family, PRESETS, Shape};
pub use vocabulary::VOCABULARY_LEN_MIN;

/// A tensor to be written.
struct Draft {
    name: String,
    format: WeightFormat,
    dims: Vec<u64>,
    /// Root mean square of the weights; around 1 for norms.
    rms: f32,
    is_norm: bool,
}

/// Bytes of a model that [`write_model`] writes, without its header.
pub fn tensor_bytes(shape: &Shape, mix: Mix) -> u64 {
    let of = |tensor: &Draft| {
        let k = u32::try_from(tensor.dims[0]).expect("extents are u32");
        tensor.format.row_bytes(k) * tensor.dims[1..].iter().product::<u64>()
    };
    tensors(shape, mix).iter().map(of).sum()
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
    let family = shape.family.name();
    w.str("general.architecture", family)
        .str("general.type", "model")
        .str("general.name", "synthetic")
        .u32("general.quantization_version", 2);
    for (key, value) in [
        ("block_count", shape.layers),
        ("context_length", shape.context_len),
        ("embedding_length", shape.embedding_len),
        ("feed_forward_length", shape.feed_forward_len),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.kv_heads),
        ("attention.key_length", shape.head_len),
        ("attention.value_length", shape.head_len),
        ("rope.dimension_count", shape.head_len),
        ("vocab_size", shape.vocabulary_len),
    ] {
        w.u32(&format!("{family}.{key}"), value);
    }
    for (key, value) in [
        ("rope.freq_base", shape.rope_base),
        ("attention.layer_norm_rms_epsilon", shape.rms_epsilon),
    ] {
        w.f32(&format!("{family}.{key}"), value);
    }
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
    let matrix = |name: String, role, layer, rows: u32, k: u32, gain: f32| Draft {
        name,
        format: {
            let place = Place {
                role,
                layer,
                layers: shape.layers,
                group: shape.heads / shape.kv_heads,
            };
            fitting(mix.format(place), k, role)
        },
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
    let embedding = if shape.tied {
        Role::Output
    } else {
        Role::Embedding
    };
    let mut tensors = vec![matrix(
        "token_embd.weight".to_owned(),
        embedding,
        0,
        vocabulary,
        d,
        HEAD_GAIN,
    )];
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        tensors.push(vector(name("attn_norm.weight"), d, true));
        for (part, rows, k, role) in [
            ("attn_q", q, d, Role::Other),
            ("attn_k", kv, d, Role::Other),
            ("attn_v", kv, d, Role::Value),
            ("attn_output", d, q, Role::AttentionOutput),
        ] {
            let weight = name(&format!("{part}.weight"));
            tensors.push(matrix(weight, role, layer, rows, k, 1.0));
            let biased = match shape.family {
                Family::Llama => true,
                Family::Qwen2 => role != Role::AttentionOutput,
            };
            if shape.biases && biased {
                tensors.push(vector(name(&format!("{part}.bias")), rows, false));
            }
        }
        tensors.push(vector(name("ffn_norm.weight"), d, true));
        for (part, rows, k, role) in [
            ("ffn_gate", ff, d, Role::Other),
            ("ffn_up", ff, d, Role::Other),
            ("ffn_down", d, ff, Role::Down),
        ] {
            let weight = name(&format!("{part}.weight"));
            tensors.push(matrix(weight, role, layer, rows, k, 1.0));
        }
    }
    tensors.push(vector("output_norm.weight".to_owned(), d, true));
    if !shape.tied {
        let name = "output.weight".to_owned();
        tensors.push(matrix(name, Role::Output, 0, vocabulary, d, HEAD_GAIN));
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
    use crate::import::family::{ModelConfig, Output};

    pub(crate) fn tiny() -> Shape {
        Shape {
            family: Family::Llama,
            layers: 8,
            embedding_len: 64,
            heads: 4,
            kv_heads: 2,
            head_len: 16,
            feed_forward_len: 256,
            vocabulary_len: 300,
            context_len: 64,
            rope_base: 1e4,
            rms_epsilon: 1e-5,
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
                    Mix::Recipe(_) => assert_eq!(down, WeightFormat::Q6K),
                }
            }
        }
        assert!("q9".parse::<Mix>().unwrap_err().contains("known: BF16"));
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
        write_model(&mut first, &tiny(), Mix::Recipe(Recipe::Q4KM), 1, None).unwrap();
        let first = Gguf::parse(&first).unwrap();
        let mut second = Vec::new();
        write_model(
            &mut second,
            &tiny(),
            Mix::Recipe(Recipe::Q4KM),
            2,
            Some(&first),
        )
        .unwrap();
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
