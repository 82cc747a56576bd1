//! Made-up models and tasks: shapes without weights.
#![allow(dead_code)]

use std::collections::BTreeMap;

use omex_compiler::container::{Task, ValidateOptions, validate};
use omex_compiler::diagnostic::Diagnostic;
use omex_compiler::emit::PackedModel;
use omex_compiler::import::gguf::TensorId;
use omex_compiler::import::llama::{
    Hyperparameters, Layer, Linear, Matrix, ModelConfig, Output, Rope, Vector, Weights,
};
use omex_compiler::pipeline::{Compiled, Inputs, Options, compile};
use omex_kernels::WeightFormat;
use omex_kernels::spec::RopePairing;
use omex_plan::packed::{
    Digest, FormatCode, PAGE_ALIGN, PAGE_BYTES_MAX, PackedIndex, PackedLayout, Page, Piece, Tensor,
};
use omex_plan::prompt::{PromptTemplate, Trim};
use omex_plan::{PageId, Target};

/// What varies between the models of the tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: u32,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head_len: u32,
    pub(crate) feed_forward: u32,
    pub(crate) vocabulary: u32,
    pub(crate) format: WeightFormat,
    /// Of V and the feed-forward's output.
    pub(crate) other_format: WeightFormat,
    pub(crate) tied: bool,
    pub(crate) biases: bool,
}

/// SmolLM2-135M's shape.
pub(crate) const SMOL: Shape = Shape {
    layers: 30,
    heads: 9,
    kv_heads: 3,
    head_len: 64,
    feed_forward: 1536,
    vocabulary: 49152,
    format: WeightFormat::Q4_1,
    other_format: WeightFormat::Q4_1,
    tied: true,
    biases: false,
};

/// Two layers with everything that may be in one: biases, formats that differ,
/// an output head of its own, heads that cannot be quantized one by one.
pub(crate) const MIXED: Shape = Shape {
    layers: 2,
    heads: 8,
    kv_heads: 2,
    head_len: 16,
    feed_forward: 256,
    vocabulary: 1000,
    format: WeightFormat::Q8_0,
    other_format: WeightFormat::F16,
    tied: false,
    biases: true,
};

impl Shape {
    fn embedding(&self) -> u32 {
        self.heads * self.head_len
    }

    pub(crate) fn config(&self) -> ModelConfig {
        let embedding = self.embedding();
        let vector = |len| Vector {
            tensor: TensorId(0),
            format: WeightFormat::F32,
            len,
        };
        let linear = |rows, columns, format| Linear {
            weight: Matrix {
                tensor: TensorId(0),
                format,
                rows,
                columns,
            },
            bias: self.biases.then(|| vector(rows)),
        };
        let (format, other) = (self.format, self.other_format);
        let kv = self.kv_heads * self.head_len;
        let layer = Layer {
            attention_norm: vector(embedding),
            query: linear(embedding, embedding, format),
            key: linear(kv, embedding, format),
            value: linear(kv, embedding, other),
            attention_output: linear(embedding, embedding, format),
            feed_forward_norm: vector(embedding),
            gate: linear(self.feed_forward, embedding, format),
            up: linear(self.feed_forward, embedding, format),
            down: linear(embedding, self.feed_forward, other),
        };
        ModelConfig {
            architecture: "llama".to_owned(),
            name: Some("Made up".to_owned()),
            hyperparameters: Hyperparameters {
                layer_count: self.layers,
                embedding_len: embedding,
                feed_forward_len: self.feed_forward,
                head_count: self.heads,
                kv_head_count: self.kv_heads,
                head_len: self.head_len,
                context_len: 8192,
                vocab_len: self.vocabulary,
                rms_epsilon: 1e-5,
                rope: Rope {
                    dimension_count: self.head_len,
                    pairing: RopePairing::Adjacent,
                    base: 100_000.0,
                    position_divisor: 1.0,
                    factors: None,
                },
            },
            weights: Weights {
                token_embedding: linear(self.vocabulary, embedding, WeightFormat::Q8_0).weight,
                layers: vec![layer; self.layers as usize],
                output_norm: vector(embedding),
                output: if self.tied {
                    Output::Tied
                } else {
                    Output::Untied(linear(self.vocabulary, embedding, format))
                },
            },
        }
    }

    /// The index of a packed model of this shape: right in form, of no content.
    pub(crate) fn packed_index(&self) -> PackedIndex {
        let config = self.config();
        let mut packer = Packer::default();
        let table = config.weights.token_embedding;
        let layout = if self.tied {
            PackedLayout::Panels
        } else {
            PackedLayout::Rows
        };
        if !self.tied {
            packer.matrix("token_embd.weight", table, layout);
        }
        for (i, layer) in config.weights.layers.iter().enumerate() {
            let name = |part: &str| format!("blk.{i}.{part}");
            packer.vector(&name("attn_norm.weight"), layer.attention_norm.len);
            packer.linear(&name("attn_q"), layer.query);
            packer.linear(&name("attn_k"), layer.key);
            packer.linear(&name("attn_v"), layer.value);
            packer.linear(&name("attn_output"), layer.attention_output);
            packer.vector(&name("ffn_norm.weight"), layer.feed_forward_norm.len);
            packer.linear(&name("ffn_gate"), layer.gate);
            packer.linear(&name("ffn_up"), layer.up);
            packer.linear(&name("ffn_down"), layer.down);
        }
        packer.vector("output_norm.weight", config.weights.output_norm.len);
        match config.weights.output {
            Output::Tied => packer.matrix("token_embd.weight", table, layout),
            Output::Untied(output) => packer.linear("output", output),
        }
        PackedIndex {
            source_digest: [7; 32],
            source_name: "made-up.gguf".to_owned(),
            pages: packer.pages,
            tensors: packer.tensors,
        }
    }
}

#[derive(Default)]
struct Packer {
    pages: Vec<Page>,
    tensors: Vec<Tensor>,
}

impl Packer {
    fn linear(&mut self, name: &str, linear: Linear) {
        self.matrix(
            &format!("{name}.weight"),
            linear.weight,
            PackedLayout::Panels,
        );
        if let Some(bias) = linear.bias {
            self.vector(&format!("{name}.bias"), bias.len);
        }
    }

    fn matrix(&mut self, name: &str, m: Matrix, layout: PackedLayout) {
        self.push(name, m.format, layout, m.rows, m.columns);
    }

    fn vector(&mut self, name: &str, len: u32) {
        self.push(name, WeightFormat::F32, PackedLayout::Vector, 1, len);
    }

    /// Pages of their own for every tensor, as many units in each as fit.
    fn push(&mut self, name: &str, format: WeightFormat, layout: PackedLayout, rows: u32, k: u32) {
        let mut tensor = Tensor {
            name: name.to_owned(),
            format: FormatCode::new(format),
            layout,
            rows,
            k,
            pieces: Vec::new(),
        };
        let (units, unit_bytes) = tensor.unit().expect("a possible shape");
        let per_page = (PAGE_BYTES_MAX / unit_bytes).max(1) as u32;
        for first_unit in (0..units).step_by(per_page as usize) {
            let units = per_page.min(units - first_unit);
            let end = self
                .pages
                .last()
                .map_or(PAGE_ALIGN, |p| p.file_offset + p.bytes);
            tensor.pieces.push(Piece {
                page: PageId::from(self.pages.len()),
                offset: 0,
                first_unit,
                units,
            });
            self.pages.push(Page {
                file_offset: end.next_multiple_of(PAGE_ALIGN),
                bytes: u64::from(units) * unit_bytes,
                digest: [0; 32],
            });
        }
        self.tensors.push(tensor);
    }
}

/// A container of one window flow; `extra` are more top-level members.
pub(crate) fn container(extra: &str) -> String {
    format!(
        r#"{{
  "omex_version": "0.3.0",
  "task_id": "summary",
  "task_type": "summarization",
  {extra}
  "execution_graph": {{
    "entry_node": "chunk",
    "nodes": [
      {{"id": "chunk", "type": "token_chunk_parse", "input": ["a.txt"], "window_size": 256, "stride": 256}},
      {{"id": "infer", "type": "inference_slices", "depends_on": ["chunk"], "max_tokens": 64}},
      {{"id": "merge", "type": "output_merge_and_decode", "depends_on": ["infer"], "output": "out.txt"}}
    ]
  }}
}}"#
    )
}

/// A container without a graph: the flow is the task.
pub(crate) fn flow(extra: &str) -> String {
    format!(
        r#"{{
  "omex_version": "0.3.0",
  "task_id": "flow",
  "task_type": "chat",
  {extra}
  "task_flow": [
    {{"id": "load", "type": "model_load", "output": "model"}},
    {{"id": "read", "type": "tokenize", "input": "prompt.txt", "output": "tokens"}},
    {{"id": "infer", "type": "forward_pass", "model": "model", "input": "tokens", "output": "logits"}},
    {{"id": "pick", "type": "greedy_sample", "logits": "logits", "max_tokens": 64, "output": "ids"}},
    {{"id": "text", "type": "decode", "input": "ids", "output": "answer"}}
  ]
}}"#
    )
}

/// A device as plans name it, by its built-in profile.
pub(crate) fn target(name: &str) -> Target {
    let profile = omex_compiler::target::find_or_explain(name).unwrap();
    let isa = profile.isa().expect("a target that code is made for");
    let mut features: Vec<String> = isa.features.iter().map(|f| f.name().to_owned()).collect();
    features.sort();
    Target {
        name: profile.name.clone(),
        arch: isa.arch.name().to_owned(),
        features,
    }
}

pub(crate) fn task(text: &str) -> Task {
    let (task, findings) = validate("task.omex.json", text.into(), &ValidateOptions::default());
    task.unwrap_or_else(|| panic!("{findings:?}"))
}

/// The speeds of a target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) storage_bytes_per_s: u64,
    pub(crate) memory_bytes_per_s: u64,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine {
            storage_bytes_per_s: 1_000_000_000,
            memory_bytes_per_s: 20_000_000_000,
        }
    }
}

pub(crate) fn compile_shape(
    shape: &Shape,
    task: &Task,
    options: &Options,
) -> Result<Compiled, Vec<Diagnostic>> {
    compile_shape_for(shape, task, &laptop(), options)
}

pub(crate) fn laptop() -> Target {
    Target {
        name: "laptop".to_owned(),
        arch: "x86_64".to_owned(),
        features: vec!["avx2".to_owned()],
    }
}

pub(crate) fn compile_shape_for(
    shape: &Shape,
    task: &Task,
    target: &Target,
    options: &Options,
) -> Result<Compiled, Vec<Diagnostic>> {
    compile_on(shape, task, target, options, Machine::default())
}

pub(crate) fn compile_on(
    shape: &Shape,
    task: &Task,
    target: &Target,
    options: &Options,
    machine: Machine,
) -> Result<Compiled, Vec<Diagnostic>> {
    let index = shape.packed_index();
    let file_bytes = index.pages.last().map_or(0, |p| p.file_offset + p.bytes);
    let digest: Digest = *blake3::hash(&index.encode()).as_bytes();
    let template = PromptTemplate {
        prefix_tokens: vec![1, 2, 3],
        prefix_text: "Summarize:\n".to_owned(),
        trim: Trim::Both,
        suffix_text: "\n".to_owned(),
        suffix_tokens: vec![2, 4],
        empty_tokens: None,
    };
    let prompts: BTreeMap<_, _> = task
        .inferences()
        .map(|(id, _)| (id, template.clone()))
        .collect();
    compile(
        &Inputs {
            task,
            model_name: "Made up",
            model: &shape.config(),
            packed: PackedModel {
                index: &index,
                digest,
                file_bytes,
            },
            tokenizer: &[1, 2, 3],
            end_tokens: &[0, 2],
            prompts: &prompts,
            target,
            cores: 2,
            storage_bytes_per_s: machine.storage_bytes_per_s,
            memory_bytes_per_s: machine.memory_bytes_per_s,
            code_of: &|spec| match spec {
                omex_kernels::KernelSpec::Matmul { rows, .. } => Some(vec![0xc3; *rows as usize]),
                _ => None,
            },
        },
        options,
    )
}
