//! Made-up models and tasks: shapes without weights.
#![allow(dead_code)]

use std::collections::BTreeMap;

use omex_compiler::container::{Task, ValidateOptions, validate};
use omex_compiler::diagnostic::Diagnostic;
use omex_compiler::emit::PackedModel;
use omex_compiler::import::family::{
    Hyperparameters, Layer, Linear, Matrix, ModelConfig, Output, Rope, Sliding, SlidingLayers,
    Vector, Weights,
};
use omex_compiler::import::gguf::TensorId;
use omex_compiler::paging::Frames;
use omex_compiler::pipeline::{Compiled, Inputs, Options, compile};
use omex_kernels::WeightFormat;
use omex_kernels::spec::{GateFunction, RopePairing};
use omex_plan::frames::{FRAME_ALIGN, Frame, frames_start};
use omex_plan::packed::{
    Digest, FormatCode, PAGE_ALIGN, PAGE_BYTES_MAX, PackedIndex, PackedLayout, Page, Piece, Tensor,
};
use omex_plan::prompt::{PromptTemplate, Trim};
use omex_plan::{PageId, Target};
use omex_runtime::memory::Device;

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
    /// Norms of heads and behind the parts of a layer, caps, windows, GELU.
    pub(crate) extras: bool,
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
    extras: false,
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
    extras: false,
};

/// Every second layer slides, in a context of several windows.
pub(crate) const SLIDING: Shape = Shape {
    layers: 4,
    heads: 4,
    kv_heads: 1,
    head_len: 64,
    feed_forward: 256,
    vocabulary: 1000,
    format: WeightFormat::Q5_0,
    other_format: WeightFormat::Q4K,
    tied: true,
    biases: false,
    extras: true,
};

impl Shape {
    fn embedding(&self) -> u32 {
        self.heads * self.head_len
    }

    pub(crate) fn config(&self) -> ModelConfig {
        let embedding = self.embedding();
        let vector = |name: &str, len| Vector {
            name: name.to_owned(),
            tensor: TensorId(0),
            format: WeightFormat::F32,
            first: 0,
            len,
        };
        let linear = |name: &str, rows, columns, format| Linear {
            weight: Matrix {
                name: format!("{name}.weight"),
                tensor: TensorId(0),
                format,
                first_row: 0,
                rows,
                columns,
            },
            bias: self.biases.then(|| vector(&format!("{name}.bias"), rows)),
        };
        let (format, other) = (self.format, self.other_format);
        let kv = self.kv_heads * self.head_len;
        let layer = |i: u32| {
            let linear = |name: &str, rows, columns, format| {
                linear(&format!("blk.{i}.{name}"), rows, columns, format)
            };
            let vector = |name: &str, len| vector(&format!("blk.{i}.{name}.weight"), len);
            Layer {
                attention_norm: vector("attn_norm", embedding),
                query: linear("attn_q", embedding, embedding, format),
                key: linear("attn_k", kv, embedding, format),
                value: linear("attn_v", kv, embedding, other),
                query_norm: self.extras.then(|| vector("attn_q_norm", self.head_len)),
                key_norm: self.extras.then(|| vector("attn_k_norm", self.head_len)),
                attention_output: linear("attn_output", embedding, embedding, format),
                attention_post_norm: self
                    .extras
                    .then(|| vector("post_attention_norm", embedding)),
                feed_forward_norm: vector("ffn_norm", embedding),
                gate: linear("ffn_gate", self.feed_forward, embedding, format),
                up: linear("ffn_up", self.feed_forward, embedding, format),
                down: linear("ffn_down", embedding, self.feed_forward, other),
                feed_forward_post_norm: self.extras.then(|| vector("post_ffw_norm", embedding)),
            }
        };
        let rope = |base| Rope::plain(self.head_len, RopePairing::Adjacent, base);
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
                embedding_scale: 1.0,
                attention_scale: 1.0 / omex_kernels::math::sqrt(self.head_len as f32),
                attention_softcap: self.extras.then_some(50.0),
                output_softcap: self.extras.then_some(30.0),
                gate: if self.extras {
                    GateFunction::GeluTanh
                } else {
                    GateFunction::Silu
                },
                rope: rope(100_000.0),
                no_rope_step: None,
                sliding: self.extras.then(|| Sliding {
                    window: 64,
                    layers: SlidingLayers::ButEvery(2),
                    rope: Some(rope(10_000.0)),
                }),
            },
            weights: Weights {
                token_embedding: linear(
                    "token_embd",
                    self.vocabulary,
                    embedding,
                    WeightFormat::Q8_0,
                )
                .weight,
                layers: (0..self.layers).map(layer).collect(),
                output_norm: vector("output_norm.weight", embedding),
                output: if self.tied {
                    Output::Tied
                } else {
                    Output::Untied(linear("output", self.vocabulary, embedding, format))
                },
            },
        }
    }

    /// The index of a packed model of this shape: right in form, of no content.
    pub(crate) fn packed_index(&self) -> PackedIndex {
        let config = self.config();
        let mut packer = Packer::default();
        let weights = &config.weights;
        let mut formats = BTreeMap::new();
        let mut matrix = |m: &Matrix| formats.insert(m.name.clone(), (m.format, m.columns));
        matrix(&weights.token_embedding);
        for l in &weights.layers {
            let linears = [&l.query, &l.key, &l.value, &l.attention_output];
            for linear in linears.into_iter().chain([&l.gate, &l.up, &l.down]) {
                matrix(&linear.weight);
            }
        }
        if let Output::Untied(output) = &weights.output {
            matrix(&output.weight);
        }
        for part in weights.in_schedule_order() {
            let (format, rows, k) = match formats.get(&part.name) {
                Some(&(format, columns)) => (format, part.count, columns),
                None => (WeightFormat::F32, 1, part.count),
            };
            packer.push(&part.name, format, part.layout, rows, k);
        }
        PackedIndex {
            source_digest: [7; 32],
            model_name: "made-up.gguf".to_owned(),
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
    profile
        .plan_target()
        .expect("a target that code is made for")
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
    pub(crate) macs_per_s: u64,
    pub(crate) device: Device,
    /// Tenths of a page's bytes that its compressed copy takes; 0 without one.
    pub(crate) frame_tenths: u64,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine {
            storage_bytes_per_s: 1_000_000_000,
            memory_bytes_per_s: 20_000_000_000,
            macs_per_s: 280_000_000_000,
            device: Device {
                cores: 2,
                page_bytes: 4096,
            },
            frame_tenths: 0,
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
        l2_bytes: 1 << 20,
        memory_bytes_per_s: 20_000_000_000,
        memory_latency_ns: 100,
        prefetch_pages: 0,
    }
}

/// Compressed copies of all pages, of so many tenths of their bytes.
fn frames(index: &PackedIndex, tenths: u64) -> Frames {
    if tenths == 0 {
        return Frames::default();
    }
    let mut end = frames_start(index.pages.len());
    let of_page = |page: &Page| {
        let file_offset = end;
        let bytes = page.bytes * tenths / 10;
        end = (file_offset + bytes).next_multiple_of(FRAME_ALIGN);
        Frame { file_offset, bytes }
    };
    let of_pages = index.pages.iter().map(of_page).collect();
    Frames {
        of_pages,
        file_bytes: end,
        pages_bytes_per_s: 2_000_000_000,
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
            device: machine.device,
            storage_bytes_per_s: machine.storage_bytes_per_s,
            memory_bytes_per_s: machine.memory_bytes_per_s,
            macs_per_s: machine.macs_per_s,
            frames: frames(&index, machine.frame_tenths),
            code_of: &|spec| match spec {
                omex_kernels::KernelSpec::Matmul { rows, .. } => Some(vec![0xc3; *rows as usize]),
                _ => None,
            },
            watch: &(),
        },
        options,
    )
}
