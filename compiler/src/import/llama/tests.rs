use super::*;
use crate::diagnostic::Code::{self, *};
use crate::import::ggml_type::GgmlType;
use crate::import::gguf::write::HeaderWriter;

type SetKey = Box<dyn Fn(&mut HeaderWriter)>;

/// A model file to be: two layers, 4 heads of 8, 2 key-value heads, 96 tokens.
struct Draft {
    keys: Vec<(&'static str, SetKey)>,
    tensors: Vec<(String, GgmlType, Vec<u64>)>,
}

impl Draft {
    fn new() -> Self {
        let mut draft = Self {
            keys: Vec::new(),
            tensors: Vec::new(),
        };
        draft.set_str("general.architecture", "llama");
        draft.set_str("general.name", "Tiny");
        for (key, value) in [
            ("llama.block_count", 2),
            ("llama.context_length", 128),
            ("llama.embedding_length", 32),
            ("llama.feed_forward_length", 64),
            ("llama.attention.head_count", 4),
            ("llama.attention.head_count_kv", 2),
        ] {
            draft.set_u32(key, value);
        }
        draft.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
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

    fn set(&mut self, key: &'static str, set: impl Fn(&mut HeaderWriter) + 'static) {
        self.keys.retain(|(k, _)| *k != key);
        self.keys.push((key, Box::new(set)));
    }

    fn set_u32(&mut self, key: &'static str, value: u32) {
        self.set(key, move |w| {
            w.u32(key, value);
        });
    }

    fn set_f32(&mut self, key: &'static str, value: f32) {
        self.set(key, move |w| {
            w.f32(key, value);
        });
    }

    fn set_str(&mut self, key: &'static str, value: &'static str) {
        self.set(key, move |w| {
            w.str(key, value);
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
            rope: Rope {
                dimension_count: 8,
                pairing: RopePairing::Adjacent,
                base: 10_000.0,
                position_divisor: 1.0,
                factors: None,
            },
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
    assert_eq!(config.weights.layers[0].query.bias.unwrap().len, 32);
    assert_eq!(config.weights.layers[1].query.bias, None);
    let gguf = Gguf::parse(&bytes).unwrap();
    let bias = config.weights.layers[1]
        .down
        .bias
        .unwrap()
        .read(&gguf)
        .unwrap();
    assert_eq!(bias, [2.125; 32]);
    let rope = config.hyperparameters.rope;
    assert_eq!((rope.base, rope.position_divisor), (5e5, 4.0));
    assert_eq!(rope.factors, Some(vec![f32::from_bits(0x4040_4040); 4]));
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
            |d| d.set_str("llama.rope.scaling.type", "yarn"),
            ModelUnsupported,
            "type `yarn` is not supported",
        ),
        (
            |d| d.set_u32("llama.expert_count", 8),
            ModelUnsupported,
            "llama.expert_count: 8 is not supported",
        ),
        (
            |d| d.set_f32("llama.attention.scale", 0.5),
            ModelUnsupported,
            "llama.attention.scale: 0.5",
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
            "element 0 of tensor `rope_freqs.weight` is 0.0, not above 0",
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
    let bias = config.weights.layers[1].down.bias.unwrap();
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
