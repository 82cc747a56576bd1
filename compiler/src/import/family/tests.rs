use omex_kernels::spec::RopePairing;

use super::*;
use crate::diagnostic::Code::{self, *};
use crate::import::ggml_type::GgmlType;
use crate::import::gguf::write::HeaderWriter;

type SetKey = Box<dyn Fn(&mut HeaderWriter)>;

/// A model file to be: two layers, 4 heads of 8, 2 key-value heads, 96 tokens.
struct Draft {
    keys: Vec<(String, SetKey)>,
    tensors: Vec<(String, GgmlType, Vec<u64>)>,
}

impl Draft {
    fn new() -> Self {
        Draft::of("llama")
    }

    fn of(family: &'static str) -> Self {
        let mut draft = Self {
            keys: Vec::new(),
            tensors: Vec::new(),
        };
        draft.set_str("general.architecture", family);
        draft.set_str("general.name", "Tiny");
        for (key, value) in [
            ("block_count", 2),
            ("context_length", 128),
            ("embedding_length", 32),
            ("feed_forward_length", 64),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
        ] {
            draft.set_u32(&format!("{family}.{key}"), value);
        }
        draft.set_f32(&format!("{family}.attention.layer_norm_rms_epsilon"), 1e-5);
        draft.set("tokenizer.ggml.tokens", |w| {
            w.array_str("tokenizer.ggml.tokens", ["x"; 96].iter());
        });
        let mut add = |name: &str, ty, dims: &[u64]| draft.add(name, ty, dims);
        add("token_embd.weight", GgmlType::Q8_0, &[32, 96]);
        for i in 0..2 {
            for (part, ty, dims) in [
                ("attn_norm", GgmlType::F32, &[32][..]),
                ("attn_q", GgmlType::Q4_1, &[32, 32]),
                ("attn_k", GgmlType::Q4_1, &[32, 16]),
                ("attn_v", GgmlType::Q5_0, &[32, 16]),
                ("attn_output", GgmlType::F16, &[32, 32]),
                ("ffn_norm", GgmlType::F32, &[32]),
                ("ffn_gate", GgmlType::Q4_0, &[32, 64]),
                ("ffn_up", GgmlType::MXFP4, &[32, 64]),
                ("ffn_down", GgmlType::IQ4_NL, &[64, 32]),
            ] {
                add(&format!("blk.{i}.{part}.weight"), ty, dims);
            }
        }
        add("output_norm.weight", GgmlType::F32, &[32]);
        draft
    }

    fn set(&mut self, key: &str, set: impl Fn(&mut HeaderWriter) + 'static) {
        self.keys.retain(|(k, _)| *k != key);
        self.keys.push((key.to_owned(), Box::new(set)));
    }

    fn set_u32(&mut self, key: &str, value: u32) {
        let name = key.to_owned();
        self.set(key, move |w| {
            w.u32(&name, value);
        });
    }

    fn set_f32(&mut self, key: &str, value: f32) {
        let name = key.to_owned();
        self.set(key, move |w| {
            w.f32(&name, value);
        });
    }

    fn set_str(&mut self, key: &str, value: &'static str) {
        let name = key.to_owned();
        self.set(key, move |w| {
            w.str(&name, value);
        });
    }

    fn unset(&mut self, key: &str) {
        self.keys.retain(|(k, _)| *k != key);
    }

    fn add(&mut self, name: &str, ty: GgmlType, dims: &[u64]) {
        self.tensors.push((name.to_owned(), ty, dims.to_vec()));
    }

    fn remove(&mut self, name: &str) {
        self.tensors.retain(|(n, ..)| n != name);
    }

    fn replace(&mut self, name: &str, ty: GgmlType, dims: &[u64]) {
        let tensor = self.tensors.iter_mut().find(|(n, ..)| n == name).unwrap();
        *tensor = (name.to_owned(), ty, dims.to_vec());
    }

    /// The file; every byte of the tensors is `fill`.
    fn bytes(&self, fill: u8) -> Vec<u8> {
        let mut w = HeaderWriter::default();
        for (_, set) in &self.keys {
            set(&mut w);
        }
        for (name, ty, dims) in &self.tensors {
            w.tensor(name, *ty, dims);
        }
        let mut bytes = w.to_bytes();
        bytes.resize(bytes.len() + w.data_bytes() as usize, fill);
        bytes
    }
}

fn read(bytes: &[u8]) -> Result<ModelConfig, ImportError> {
    ModelConfig::from_gguf(&Gguf::parse(bytes).expect("the file is sound"))
}

#[test]
fn a_complete_model_is_read() {
    let bytes = Draft::new().bytes(0);
    let config = read(&bytes).unwrap();
    assert_eq!(config.architecture, "llama");
    assert_eq!(config.name.as_deref(), Some("Tiny"));
    assert_eq!(
        config.hyperparameters,
        Hyperparameters {
            layer_count: 2,
            embedding_len: 32,
            feed_forward_len: 64,
            head_count: 4,
            kv_head_count: 2,
            head_len: 8,
            context_len: 128,
            vocab_len: 96,
            rms_epsilon: 1e-5,
            embedding_scale: 1.0,
            attention_scale: 1.0 / omex_kernels::math::sqrt(8.0),
            attention_softcap: None,
            output_softcap: None,
            gate: GateFunction::Silu,
            rope: Rope::plain(8, RopePairing::Adjacent, 10_000.0),
            no_rope_step: None,
            sliding: None,
        }
    );
    let gguf = Gguf::parse(&bytes).unwrap();
    let name = |id: TensorId| gguf.tensor_at(id).name;
    assert_eq!(config.weights.output, Output::Tied);
    assert_eq!(config.weights.layers.len(), 2);
    let layer = &config.weights.layers[1];
    assert_eq!(name(layer.attention_norm.tensor), "blk.1.attn_norm.weight");
    assert_eq!(name(layer.key.weight.tensor), "blk.1.attn_k.weight");
    assert_eq!(
        (
            layer.down.weight.rows,
            layer.down.weight.columns,
            layer.down.weight.format
        ),
        (32, 64, WeightFormat::Iq4Nl)
    );
    assert_eq!(layer.key.bias, None);
}

#[test]
fn optional_parts_are_read() {
    let mut draft = Draft::new();
    draft.add("output.weight", GgmlType::BF16, &[32, 96]);
    draft.add("blk.0.attn_q.bias", GgmlType::F32, &[32]);
    draft.add("blk.1.ffn_down.bias", GgmlType::F16, &[32]);
    draft.add("rope_freqs.weight", GgmlType::F32, &[4]);
    draft.add("blk.0.attn_rot_embd", GgmlType::F32, &[4]);
    draft.set_u32("llama.attention.key_length", 8);
    draft.set_u32("llama.rope.dimension_count", 8);
    draft.set_f32("llama.rope.freq_base", 5e5);
    draft.set_str("llama.rope.scaling.type", "linear");
    draft.set_f32("llama.rope.scaling.factor", 4.0);
    draft.set("llama.attention.head_count_kv", |w| {
        w.array_i32("llama.attention.head_count_kv", [2, 2].into_iter());
    });
    // 0x40404040 is a float near 3.
    let bytes = draft.bytes(0x40);
    let config = read(&bytes).unwrap();
    let Output::Untied(output) = config.weights.output else {
        panic!("the output head has weights of its own");
    };
    assert_eq!(
        (output.weight.rows, output.weight.format),
        (96, WeightFormat::BF16)
    );
    assert_eq!(
        config.weights.layers[0].query.bias.as_ref().unwrap().len,
        32
    );
    assert_eq!(config.weights.layers[1].query.bias, None);
    let gguf = Gguf::parse(&bytes).unwrap();
    let bias = config.weights.layers[1]
        .down
        .bias
        .as_ref()
        .unwrap()
        .read(&gguf)
        .unwrap();
    assert_eq!(bias, [2.125; 32]);
    let rope = config.hyperparameters.rope;
    assert_eq!((rope.base, rope.position_divisor), (5e5, 4.0));
    let factors = vec![f32::from_bits(0x4040_4040); 4];
    assert_eq!(rope.factors, Factors::Fixed(factors));
}

#[test]
fn faulty_models_are_named() {
    type Change = fn(&mut Draft);
    let cases: &[(Change, Code, &str)] = &[
        (
            |d| d.unset("general.architecture"),
            ModelMetadata,
            "`general.architecture` is missing",
        ),
        (
            |d| d.set_str("general.architecture", "mamba\x1b[2J"),
            ModelUnsupported,
            "architecture `mamba\\u{1b}[2J` is not supported; supported: llama",
        ),
        (
            |d| d.set_str("general.type", "adapter"),
            ModelUnsupported,
            "general.type is `adapter`",
        ),
        (
            |d| d.set_u32("general.quantization_version", 1),
            ModelUnsupported,
            "quantization_version is 1",
        ),
        (
            |d| d.set_u32("split.count", 3),
            ModelUnsupported,
            "split into 3 files",
        ),
        (|d| d.tensors.clear(), ModelInvalid, "vocabulary only"),
        (
            |d| d.unset("llama.block_count"),
            ModelMetadata,
            "`llama.block_count` is missing",
        ),
        (
            |d| d.set_u32("llama.block_count", 0),
            ModelMetadata,
            "llama.block_count: at least 1",
        ),
        (
            |d| d.set_u32("llama.block_count", 1),
            ModelUnsupported,
            "tensor `blk.1.attn_norm.weight` and 8 more is no part",
        ),
        (
            |d| d.set_u32("llama.block_count", u32::MAX),
            ModelTensor,
            "tensor `blk.2.attn_norm.weight` is missing",
        ),
        (
            |d| d.set_str("llama.block_count", "2"),
            ModelMetadata,
            "is `2` (string); an integer",
        ),
        (
            |d| d.set_u32("llama.context_length", 0),
            ModelMetadata,
            "llama.context_length: at least 1",
        ),
        (
            |d| d.set_u32("llama.attention.head_count", 0),
            ModelMetadata,
            "llama.attention.head_count: at least 1",
        ),
        (
            |d| d.set_u32("llama.attention.head_count", 5),
            ModelMetadata,
            "2 key-value heads cannot be shared evenly by 5",
        ),
        (
            |d| d.set_u32("llama.attention.head_count", 6),
            ModelMetadata,
            "embedding of 32 cannot be split evenly into 6",
        ),
        (
            |d| d.set_u32("llama.attention.head_count_kv", 0),
            ModelMetadata,
            "head_count_kv: at least 1",
        ),
        (
            |d| d.set_u32("llama.attention.head_count_kv", 8),
            ModelMetadata,
            "8 key-value heads cannot be shared",
        ),
        (
            |d| {
                d.set("llama.attention.head_count_kv", |w| {
                    w.array_i32("llama.attention.head_count_kv", [2, 1].into_iter());
                })
            },
            ModelUnsupported,
            "differ between layers",
        ),
        (
            |d| d.set_u32("llama.attention.key_length", 7),
            ModelMetadata,
            "heads have 7 elements, an odd number",
        ),
        (
            |d| d.set_u32("llama.attention.key_length", 1 << 30),
            ModelUnsupported,
            "value heads",
        ),
        (
            |d| {
                d.set_u32("llama.attention.key_length", 1 << 31);
                d.set_u32("llama.attention.value_length", 1 << 31);
            },
            ModelMetadata,
            "more than 2^32",
        ),
        (
            |d| d.set_u32("llama.attention.value_length", 16),
            ModelUnsupported,
            "value heads have 16 elements and key heads 8",
        ),
        (
            |d| d.unset("llama.attention.layer_norm_rms_epsilon"),
            ModelMetadata,
            "layer_norm_rms_epsilon` is missing",
        ),
        (
            |d| d.set_f32("llama.attention.layer_norm_rms_epsilon", f32::NAN),
            ModelMetadata,
            "NaN is no positive finite number",
        ),
        (
            |d| d.set_f32("llama.rope.freq_base", f32::NAN),
            ModelMetadata,
            "llama.rope.freq_base: NaN",
        ),
        (
            |d| d.set_f32("llama.rope.freq_base", 0.0),
            ModelMetadata,
            "llama.rope.freq_base: 0.0",
        ),
        (
            |d| d.set_f32("llama.rope.freq_base", f32::INFINITY),
            ModelMetadata,
            "llama.rope.freq_base: inf",
        ),
        (
            |d| d.set_u32("llama.rope.dimension_count", 7),
            ModelMetadata,
            "7 elements of a head of 8",
        ),
        (
            |d| d.set_u32("llama.rope.dimension_count", 10),
            ModelMetadata,
            "10 elements of a head of 8",
        ),
        (
            |d| d.set_str("llama.rope.scaling.type", "dynamic"),
            ModelUnsupported,
            "type `dynamic` is not supported",
        ),
        (
            |d| d.set_str("llama.rope.scaling.type", "longrope"),
            ModelTensor,
            "`rope_factors_short.weight` is missing",
        ),
        (
            |d| {
                d.set_str("llama.rope.scaling.type", "yarn");
                d.add("rope_freqs.weight", GgmlType::F32, &[4]);
            },
            ModelUnsupported,
            "tensor `rope_freqs.weight` is no part",
        ),
        (
            |d| {
                d.set_str("llama.rope.scaling.type", "yarn");
                d.set_f32("llama.rope.scaling.factor", 4.0);
                d.set_f32("llama.rope.scaling.attn_factor", f32::MAX);
            },
            ModelMetadata,
            "overflows",
        ),
        (
            |d| d.set_f32("llama.rope.scaling.alpha", 1e38),
            ModelMetadata,
            "llama.rope.scaling.alpha: 1e38 gives the base inf",
        ),
        (
            |d| d.set_u32("llama.attention.sliding_window_pattern", 2),
            ModelUnsupported,
            "llama.attention.sliding_window_pattern: 2 is not supported",
        ),
        (
            |d| d.set_f32("llama.final_logit_softcapping", 30.0),
            ModelUnsupported,
            "llama.final_logit_softcapping: 30",
        ),
        (
            |d| d.set_f32("llama.rope.freq_base_swa", 1e4),
            ModelUnsupported,
            "llama.rope.freq_base_swa",
        ),
        (
            |d| d.set_u32("llama.expert_count", 8),
            ModelUnsupported,
            "llama.expert_count: 8 is not supported",
        ),
        (
            |d| d.set_f32("llama.attention.scale", -0.5),
            ModelMetadata,
            "llama.attention.scale: -0.5",
        ),
        (
            |d| d.remove("token_embd.weight"),
            ModelTensor,
            "`token_embd.weight` is missing",
        ),
        (
            |d| d.remove("blk.1.ffn_up.weight"),
            ModelTensor,
            "`blk.1.ffn_up.weight` is missing",
        ),
        (
            |d| d.remove("output_norm.weight"),
            ModelTensor,
            "`output_norm.weight` is missing",
        ),
        (
            |d| d.replace("token_embd.weight", GgmlType::F32, &[32, 95]),
            ModelTensor,
            "95 rows, but the vocabulary has 96 tokens",
        ),
        (
            |d| d.replace("token_embd.weight", GgmlType::F32, &[64, 96]),
            ModelTensor,
            "shape [64, 96]; the metadata implies [32, 96]",
        ),
        (
            |d| d.replace("blk.0.attn_k.weight", GgmlType::F32, &[32, 32]),
            ModelTensor,
            "shape [32, 32]; the metadata implies [32, 16]",
        ),
        (
            |d| d.replace("blk.0.attn_norm.weight", GgmlType::F32, &[32, 1]),
            ModelTensor,
            "shape [32, 1]",
        ),
        (
            |d| d.replace("blk.0.attn_norm.weight", GgmlType::Q8_0, &[32]),
            ModelUnsupported,
            "type Q8_0; supported here: F32",
        ),
        (
            |d| d.replace("blk.0.attn_q.weight", GgmlType::I32, &[32, 32]),
            ModelUnsupported,
            "type I32; supported here: F32, F16",
        ),
        (
            |d| d.add("output.weight", GgmlType::F32, &[32, 97]),
            ModelTensor,
            "`output.weight` has the shape [32, 97]",
        ),
        (
            |d| d.add("blk.0.attn_q.bias", GgmlType::F32, &[31]),
            ModelTensor,
            "`blk.0.attn_q.bias` has the shape [31]",
        ),
        (
            |d| d.add("blk.0.attn_q_norm.weight", GgmlType::F32, &[8]),
            ModelUnsupported,
            "tensor `blk.0.attn_q_norm.weight` is no part",
        ),
        (
            |d| d.add("rope_freqs.weight", GgmlType::F32, &[8]),
            ModelTensor,
            "implies [4]",
        ),
        (
            |d| d.add("rope_freqs.weight", GgmlType::F32, &[4]),
            ModelTensor,
            "element 0 of tensor `rope_freqs.weight` is 0.0, below 0.0625",
        ),
    ];
    for (change, code, message) in cases {
        let mut draft = Draft::new();
        change(&mut draft);
        let error = read(&draft.bytes(0)).expect_err(message);
        assert!(
            error.to_string().contains(message),
            "expected {message}: {error}"
        );
        assert_eq!(error.code, *code, "{error}");
    }
}

#[test]
fn vectors_that_are_not_finite_are_refused() {
    // 0x7F7F is a NaN of f16, 0x7F7F7F7F a large f32.
    let mut draft = Draft::new();
    draft.add("blk.1.ffn_down.bias", GgmlType::F16, &[32]);
    let bytes = draft.bytes(0x7F);
    let gguf = Gguf::parse(&bytes).unwrap();
    let config = ModelConfig::from_gguf(&gguf).unwrap();
    assert!(config.weights.output_norm.read(&gguf).is_ok());
    let bias = config.weights.layers[1].down.bias.as_ref().unwrap();
    let error = bias.read(&gguf).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("element 0 of tensor `blk.1.ffn_down.bias` is NaN, not finite"),
        "{error}"
    );
    let start = gguf.tensor("blk.1.ffn_down.bias").unwrap().range.start;
    assert_eq!(error.offset_bytes, Some(start));
}

/// Neutral values of keys that would otherwise have an effect are accepted.
#[test]
fn neutral_keys_are_accepted() {
    let mut draft = Draft::new();
    draft.set_u32("llama.expert_count", 0);
    draft.set_f32("llama.logit_scale", 1.0);
    draft.set("llama.attention.causal", |w| {
        w.bool("llama.attention.causal", true);
    });
    draft.set_str("llama.rope.scaling.type", "none");
    draft.set_str("general.type", "model");
    read(&draft.bytes(0)).unwrap();
}

/// Every scaling that metadata states, against figures computed by
/// transformers 5.23 for a head of 8, base 10,000 and 64 original positions.
#[test]
fn rope_scalings_come_from_metadata() {
    let rope_of = |set: fn(&mut Draft)| {
        let mut draft = Draft::new();
        set(&mut draft);
        read(&draft.bytes(0x40)).unwrap().hyperparameters.rope
    };
    let close = |rope: &Rope, context: u32, wanted: [f64; 4]| {
        let values = rope.frequencies(context).values();
        for (value, wanted) in values.iter().zip(wanted) {
            assert!(
                (value / wanted - 1.0).abs() < 1e-6,
                "{values:?}, not {wanted:?}"
            );
        }
    };
    let plain = [1.0, 0.1, 0.01, 0.001];
    close(&rope_of(|_| {}), 128, plain);

    let linear = rope_of(|d| d.set_f32("llama.rope.scaling.factor", 4.0));
    close(&linear, 128, plain.map(|f| f / 4.0));
    assert_eq!(linear.scale, 1.0);

    let yarn = rope_of(|d| {
        d.set_str("llama.rope.scaling.type", "yarn");
        d.set_f32("llama.rope.scaling.factor", 4.0);
        d.set_u32("llama.rope.scaling.original_context_length", 64);
    });
    close(&yarn, 128, [1.0, 0.0625, 0.0025, 0.00025]);
    assert_eq!(yarn.scale, 1.138_629_4);

    // base * 2^(8 / 6)
    let ntk = rope_of(|d| d.set_f32("llama.rope.scaling.alpha", 2.0));
    assert!((ntk.base - 25_198.42).abs() < 0.01, "{}", ntk.base);

    let long = rope_of(|d| {
        d.set_str("llama.rope.scaling.type", "longrope");
        d.set_u32("llama.rope.scaling.original_context_length", 64);
        d.set_f32("llama.rope.scaling.attn_factor", 1.25);
        d.add("rope_factors_short.weight", GgmlType::F32, &[4]);
        d.add("rope_factors_long.weight", GgmlType::F16, &[4]);
    });
    let short_factor = f64::from(f32::from_bits(0x4040_4040));
    close(&long, 64, plain.map(|f| f / short_factor));
    // 0x4040 is 2.125 as f16.
    close(&long, 65, plain.map(|f| f / 2.125));
    assert_eq!(long.scale, 1.25);
}

#[test]
fn sliding_layers_follow_the_family_and_the_metadata() {
    let windows = |draft: &Draft| -> Vec<Option<u32>> {
        let h = read(&draft.bytes(0x40)).unwrap().hyperparameters;
        (0..2).map(|layer| h.attention(layer).window).collect()
    };
    let mut mistral = Draft::new();
    mistral.set_u32("llama.attention.sliding_window", 24);
    assert_eq!(windows(&mistral), [Some(24); 2]);

    let mut gemma = Draft::of("gemma2");
    for i in 0..2 {
        for part in ["post_attention_norm", "post_ffw_norm"] {
            gemma.add(&format!("blk.{i}.{part}.weight"), GgmlType::F32, &[32]);
        }
    }
    assert_eq!(windows(&gemma), [Some(4096), None]);
    let h = read(&gemma.bytes(0x40)).unwrap().hyperparameters;
    assert_eq!(
        (h.attention_softcap, h.output_softcap),
        (Some(50.0), Some(30.0))
    );
    assert_eq!(h.embedding_scale, omex_kernels::math::sqrt(32.0));
    gemma.set("gemma2.attention.sliding_window_pattern", |w| {
        w.array_bool(
            "gemma2.attention.sliding_window_pattern",
            [false, true].into_iter(),
        );
    });
    gemma.set_u32("gemma2.attention.sliding_window", 24);
    gemma.set_f32("gemma2.attn_logit_softcapping", 0.0);
    assert_eq!(windows(&gemma), [None, Some(24)]);
    let h = read(&gemma.bytes(0x40)).unwrap().hyperparameters;
    assert_eq!(h.attention_softcap, None);
    gemma.set("gemma2.attention.sliding_window_pattern", |w| {
        w.array_bool(
            "gemma2.attention.sliding_window_pattern",
            [false].into_iter(),
        );
    });
    let error = read(&gemma.bytes(0x40)).unwrap_err().to_string();
    assert!(error.contains("1 values for 2 layers"), "{error}");
}

#[test]
fn stacked_tensors_are_taken_apart() {
    let mut draft = Draft::of("phi3");
    for i in 0..2 {
        for part in ["attn_q", "attn_k", "attn_v", "ffn_gate"] {
            draft.remove(&format!("blk.{i}.{part}.weight"));
        }
        draft.add(
            &format!("blk.{i}.attn_qkv.weight"),
            GgmlType::Q8_0,
            &[32, 64],
        );
        draft.add(&format!("blk.{i}.attn_qkv.bias"), GgmlType::F32, &[64]);
        draft.replace(&format!("blk.{i}.ffn_up.weight"), GgmlType::F16, &[32, 128]);
    }
    let config = read(&draft.bytes(0x40)).unwrap();
    let layer = &config.weights.layers[1];
    let place = |m: &Matrix| (m.name.clone(), m.first_row, m.rows);
    assert_eq!(
        place(&layer.query.weight),
        ("blk.1.attn_q.weight".to_owned(), 0, 32)
    );
    assert_eq!(
        place(&layer.key.weight),
        ("blk.1.attn_k.weight".to_owned(), 32, 16)
    );
    assert_eq!(
        place(&layer.value.weight),
        ("blk.1.attn_v.weight".to_owned(), 48, 16)
    );
    assert_eq!(
        place(&layer.gate.weight),
        ("blk.1.ffn_gate.weight".to_owned(), 0, 64)
    );
    assert_eq!(
        place(&layer.up.weight),
        ("blk.1.ffn_up.weight".to_owned(), 64, 64)
    );
    let bias = layer.value.bias.as_ref().unwrap();
    assert_eq!((bias.first, bias.len), (48, 16));
    draft.replace("blk.1.ffn_up.weight", GgmlType::F16, &[32, 64]);
    let error = read(&draft.bytes(0x40)).unwrap_err().to_string();
    assert!(error.contains("the metadata implies [32, 128]"), "{error}");
}
