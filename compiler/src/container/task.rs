//! What a container asks for, resolved: the input of the compiler's pipeline.
//!
//! A [`Task`] exists only for a valid container. Its nodes are in topological order; a container
//! with a flow and no graph gets the three nodes that the flow implies, so that the pipeline sees
//! one form only.

use std::sync::Arc;

use omex_grammar::quantization::Quantization;
use omex_grammar::reference::ModelReference;

use crate::diagnostic::{Source, Span, Spanned};
use crate::prompt::Date;

/// An index into [`Task::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// An index into [`Task::artefacts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtefactId(pub u32);

/// An index into [`Task::inputs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InputId(pub u32);

/// A valid container, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The container's text, into which every span points.
    pub source: Arc<Source>,
    pub version: Version,
    /// Not empty, fit for a file name.
    pub id: Spanned<String>,
    pub task_type: Spanned<TaskType>,
    /// A profile's name, as written; `--target` wins over it.
    pub device_profile: Option<Spanned<String>>,
    pub inputs: Vec<Input>,
    pub artefacts: Vec<Artefact>,
    /// In topological order; of nodes that could run at the same time, in the container's order.
    pub nodes: Vec<Node>,
    /// What the task leaves behind: the artefacts that no node consumes.
    pub outputs: Vec<Output>,
    pub limits: Limits,
    pub model: ModelRequirements,
    pub storage: StoragePolicy,
    pub completion: CompletionPolicy,
    /// Paths may leave the working directory.
    pub any_path: bool,
    /// Today, for chat templates that ask.
    pub date: Option<Date>,
    /// Features that are asked for, understood, and not built by this version.
    pub(super) unsupported: Vec<Unsupported>,
}

/// A feature that the container asks for and that cannot be built yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsupported {
    pub(super) what: String,
    pub(super) span: Span,
    /// Whether leaving it out changes the result or breaks a promise; otherwise it is a hint.
    pub(super) needed: bool,
}

/// `omex_version`, without its patch number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    V0_1,
    V0_2,
    V0_3,
}

/// `task_type`, which chooses the built-in prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskType {
    CodeGeneration,
    CodeAnalysis,
    Summarization,
    QuestionAnswering,
    Chat,
    Completion,
    /// Any other, for which the container brings its own prompt.
    Other(String),
}

/// Something that the task reads. Bound at run time: `--input NAME=PATH` replaces the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// What `--input` calls it: the `name` of a 0.3 input object, else the text as written.
    pub name: String,
    pub path: InputPath,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputPath {
    /// `-`
    Stdin,
    /// A file or a folder, relative to the working directory.
    Path(String),
    /// A pattern with `*`, `?` or `[`.
    Glob(String),
}

/// What one node hands to others, or leaves as a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artefact {
    /// As written in `output`, else the id of the node.
    pub name: String,
    /// None when the container gives it no name: then it is not written under a name either.
    pub span: Option<Span>,
    pub kind: ArtefactKind,
    pub producer: NodeId,
    /// Sorted.
    pub consumers: Vec<NodeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArtefactKind {
    /// Tokens, windows and their source offsets.
    Chunks,
    /// Generated token ids, per window.
    Generations,
    Text,
}

/// A result of the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub artefact: ArtefactId,
    /// A file to write, relative to the working directory. The text streams to stdout as well.
    pub file: Option<Spanned<String>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub id: Spanned<String>,
    /// The whole JSON object (of a node that a flow implies: of the stage it comes from).
    pub span: Span,
    pub action: Action,
    /// Everything that must be done before: `depends_on`, and producers of inputs. Sorted.
    pub depends_on: Vec<NodeId>,
    /// In the container's order.
    pub inputs: Vec<NodeInput>,
    pub output: ArtefactId,
    pub memory: Option<Spanned<MemoryLevel>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeInput {
    Input(InputId),
    Artefact(ArtefactId),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `token_chunk_parse`: reads, tokenizes, cuts windows. No window: the whole input is one.
    Chunk { window: Option<Spanned<Window>> },
    /// `inference_slices`: generates for each window.
    Infer(Box<Inference>),
    /// `output_merge_and_decode`: joins the windows' results in order, and decodes them.
    Merge { mode: Spanned<MergeMode> },
    /// `parse_codebase`. Not built yet.
    ParseCodebase,
    /// `semantic_analysis`: generates for each window, and for each text of another node.
    SemanticAnalysis(Box<Inference>),
    /// `summary_generation`. Not built yet.
    SummaryGeneration(Box<Inference>),
}

/// The inference program of one node, every default filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Inference {
    /// None: the model is named by -m or by the registry's `[default]`.
    pub model: Option<Spanned<ModelReference>>,
    /// Shared by the nodes that have the same.
    pub prompt: Arc<Prompt>,
    pub sampling: Sampling,
    /// At least 1, per window.
    pub max_tokens: u32,
    /// The container's `max_tokens`, or the empty span at the node when it is the default.
    pub max_tokens_span: Span,
    /// Generation ends before any of these texts. None is empty.
    pub stop: Vec<Spanned<String>>,
}

/// The text around the input. Rendered through the model's chat template, unless `raw`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    pub system: Option<String>,
    /// Text before `{{input}}`.
    pub before: String,
    /// Text after `{{input}}`.
    pub after: String,
    /// No chat template: the model continues the text.
    pub raw: bool,
    /// Where the container says it; None for a built-in prompt.
    pub span: Option<Span>,
}

/// How the next token is chosen. `temperature` 0 is greedy; then only `repeat_penalty` matters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// In 0..=100.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// In 0..=1; 1 is off.
    pub top_p: f32,
    /// In 0..=1; 0 is off.
    pub min_p: f32,
    /// Above 0; 1 is off.
    pub repeat_penalty: f32,
    /// How many tokens back the penalty looks.
    pub repeat_last_n: u32,
    pub seed: u64,
}

impl Sampling {
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        seed: 0,
    };

    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// A window of tokens that slides over the input: `1 <= stride <= size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub size_tokens: u32,
    pub stride_tokens: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeMode {
    Concat,
    /// Not built yet.
    Overlap,
    /// Not built yet.
    Last,
    /// Not built yet.
    Reduce,
}

/// A node's `memory_profile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLevel {
    /// The smallest working set.
    Low,
    /// What the budget allows.
    Adaptive,
    /// Everything resident, or refuse.
    High,
}

/// What the container says about RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Every limit stated, in the container's order.
    pub ram: Vec<RamLimit>,
}

/// One limit on the RAM of the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLimit {
    pub bytes: u64,
    pub origin: RamOrigin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamOrigin {
    /// `context.memory_limit_mb`
    ContextMemoryLimit(Span),
    /// `memory_profile.max_ram_mb`
    MemoryProfile(Span),
    /// `--ram`
    Flag,
    /// What the target can give to an app.
    Target,
}

/// `model_requirements`, and the hints of the `model_load` stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelRequirements {
    pub family: Option<Spanned<String>>,
    pub quantization: Option<Spanned<Quantization>>,
    /// `max_sequence_tokens`: how many positions the KV cache holds. At least 1.
    pub context_tokens: Option<Spanned<u32>>,
    /// Half-open range of layers that become resident first.
    pub load_layers: Option<Spanned<(u32, u32)>>,
    /// `compression: zstd`
    pub compress: Option<Spanned<bool>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoragePolicy {
    pub allow_remote_fetch: Option<Spanned<bool>>,
    /// Relative to the working directory.
    pub local_cache_dir: Option<Spanned<String>>,
    pub model_prefetch: Option<Spanned<bool>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompletionPolicy {
    pub retry_on_fail: Option<Spanned<bool>>,
    pub max_retries: Option<Spanned<u32>>,
    /// A deadline for the whole task: exit 124.
    pub max_runtime_ms: Option<Spanned<u64>>,
}

impl Task {
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn artefact(&self, id: ArtefactId) -> &Artefact {
        &self.artefacts[id.0 as usize]
    }

    pub fn input(&self, id: InputId) -> &Input {
        &self.inputs[id.0 as usize]
    }

    /// The nodes that generate, in topological order, with their programs.
    pub fn inferences(&self) -> impl Iterator<Item = (NodeId, &Inference)> {
        (0..)
            .map(NodeId)
            .zip(&self.nodes)
            .filter_map(|(id, node)| match &node.action {
                Action::Infer(inference)
                | Action::SemanticAnalysis(inference)
                | Action::SummaryGeneration(inference) => Some((id, inference.as_ref())),
                Action::Chunk { .. } | Action::Merge { .. } | Action::ParseCodebase => None,
            })
    }

    /// The models that the container names, each once, in topological order of first use. Empty:
    /// -m or the registry's `[default]` names it. Nodes without a model use that one too.
    pub fn models(&self) -> Vec<Spanned<ModelReference>> {
        let mut models: Vec<Spanned<ModelReference>> = Vec::new();
        for (_, inference) in self.inferences() {
            if let Some(model) = &inference.model
                && models.iter().all(|known| known.value != model.value)
            {
                models.push(model.clone());
            }
        }
        models
    }
}
