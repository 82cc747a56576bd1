//! The plan: everything that a run needs, decided ahead of time.

use std::ops::Range;

use omex_kernels::KernelSpec;

use crate::ids::{BufferId, KernelId, TensorId};
use crate::memory::MemoryContract;
use crate::packed::{Digest, Page, Tensor};
use crate::paging::PagePlan;
use crate::session::SessionBuffers;
use crate::task::Program;
use crate::wire::{Decode, Encode, SpecWire};

/// Sequences of a pass beyond these are refused.
pub const SEQUENCES_MAX: u32 = 64;

/// An executable plan. The raw sections (code, tokenizer tables) lie beside it
/// in the file; see [`crate::file`].
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Plan {
    pub target: Target,
    pub model: Model,
    pub weights: Weights,
    /// Small constants (RoPE frequencies) as f64; args index them by range.
    pub constants: Vec<f64>,
    pub kernels: Vec<Kernel>,
    pub buffers: Vec<Buffer>,
    pub arena_bytes: u64,
    /// Steps in execution order.
    pub steps: Vec<Step>,
    pub phases: Vec<Phase>,
    /// The first so many phases run for every pass, over all its columns; the
    /// rest is the head, which runs for selected columns when their logits are
    /// wanted.
    pub body_phases: u32,
    pub tokens_buffer: BufferId,
    pub logits_buffer: BufferId,
    pub session: SessionBuffers,
    /// Columns (tokens) of the largest pass: the prefill chunk.
    pub columns_max: u32,
    /// Consecutive columns that the head computes at once, at most. More than
    /// one verifies drafts of tokens.
    pub head_columns_max: u32,
    /// Sequences whose columns a pass may have, each with key-value rings of its
    /// own: a ring's buffer holds those of all, one behind the other.
    pub sequences_max: u32,
    pub threads_max: u32,
    pub program: Program,
    pub memory: MemoryContract,
    /// Hash of every choice that affects the bits of the result, inputs apart.
    pub result_id: Digest,
}

/// Elements of a phase that one thread computes sooner than all threads meet at
/// a barrier: about two microseconds.
const SMALL_PHASE_ELEMENTS: u64 = 2048;

impl Plan {
    /// The moment behind a pass in which a sampler chooses the next token.
    pub fn sample_moment(&self) -> u32 {
        self.phases.len() as u32
    }

    /// The moment between two generations in which text becomes tokens.
    pub fn text_moment(&self) -> u32 {
        self.sample_moment() + 1
    }

    /// The number of moments that lifetimes are counted in: a pass's phases,
    /// and what the runtime does between them.
    pub fn moments(&self) -> u32 {
        self.text_moment() + 1
    }

    /// How many of `phases`, which are not empty, go by with one barrier: the first,
    /// and the small ones behind it, which the thread that arrives last computes
    /// before the others go on.
    pub fn phases_of_barrier(&self, phases: &[Phase], columns: u32) -> usize {
        let is_small = |phase: &&Phase| {
            let steps = &self.steps[phase.first_step as usize..][..phase.steps as usize];
            let specs = steps.iter().map(|s| self.kernels[s.kernel.index()].spec());
            let elements: Option<u64> = specs.map(|spec| spec.elements(columns)).sum();
            elements.is_some_and(|elements| elements <= SMALL_PHASE_ELEMENTS)
        };
        1 + phases[1..].iter().take_while(is_small).count()
    }

    /// Barriers of a job that computes these phases, the one at its end included.
    pub fn barriers(&self, phases: Range<usize>, columns: u32) -> u64 {
        let mut rest = &self.phases[phases];
        let mut barriers = 1;
        while !rest.is_empty() {
            rest = &rest[self.phases_of_barrier(rest, columns)..];
            barriers += 1;
        }
        barriers
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Target {
    /// Profile name, e.g. `pi5`.
    pub name: String,
    /// `x86_64` or `aarch64`.
    pub arch: String,
    /// CPU features that the code uses, by their `/proc/cpuinfo`-independent
    /// Rust names (`avx512vnni`, `dotprod`), sorted.
    pub features: Vec<String>,
    /// What else the code is shaped for, so that it can be made again as it is:
    /// the second-level cache as one core sees it,
    pub l2_bytes: u32,
    /// memory reads of all cores together,
    pub memory_bytes_per_s: u64,
    /// the time from asking memory for a cache line to having it,
    pub memory_latency_ns: u32,
    /// and how many pages of 4 KiB ahead of its use the start of each is asked
    /// for, at most [`PREFETCH_PAGES_MAX`].
    pub prefetch_pages: u32,
}

/// The farthest that a profile asks for memory ahead of its use, in pages of 4 KiB.
pub const PREFETCH_PAGES_MAX: u32 = 64;

/// What reports say of the model, and the limits that the runtime enforces.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Model {
    pub name: String,
    pub architecture: String,
    pub vocabulary: u32,
    pub layers: u32,
    /// Positions that the KV cache holds.
    pub context: u32,
    /// Tokens of end-of-generation kind, sorted.
    pub end_tokens: Vec<u32>,
}

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Weights {
    /// Digest that names the packed model.
    pub packed_digest: Digest,
    pub packed_file_bytes: u64,
    pub source: WeightSource,
    pub pages: Vec<Page>,
    pub tensors: Vec<Tensor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum WeightSource {
    /// The packed file is mapped read-only.
    Mapped,
    /// Every page is read once, at load, into the arena: `slots[page]` is its buffer.
    Read { slots: Vec<BufferId> },
    /// Some pages are read at load, others in every pass.
    Paged(PagePlan),
}

/// A kernel and, where the target's code generator has one, its code.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Kernel {
    pub spec: SpecWire,
    /// Absent: the runtime's own implementation computes it.
    pub code: Option<CodeRange>,
}

impl Kernel {
    pub fn new(spec: KernelSpec, code: Option<CodeRange>) -> Kernel {
        Kernel {
            spec: SpecWire(spec),
            code,
        }
    }

    pub fn spec(&self) -> &KernelSpec {
        &self.spec.0
    }
}

/// Bytes of the code section; the entry point is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CodeRange {
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum BufferKind {
    /// Token ids of a pass.
    Tokens,
    Activation,
    /// Persists across the passes of a generation.
    KvRing,
    /// Holds one page of weights for the whole run.
    ResidentPage,
    /// Holds pages of weights that come and go.
    PageSlot,
    /// Logits of the selected columns, until a token is chosen.
    Logits,
    /// The runtime's own text and tokens, for the whole run.
    Session,
    /// The runtime's own working memory between passes.
    Scratch,
}

/// A slot of the arena.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Buffer {
    pub name: String,
    pub kind: BufferKind,
    pub offset: u64,
    pub bytes: u64,
    /// Moments in which it is live, `first..end`: phases, then those of
    /// [`Plan::sample_moment`] and [`Plan::text_moment`].
    pub first_phase: u32,
    pub end_phase: u32,
}

/// One kernel call.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Step {
    pub kernel: KernelId,
    /// Parallel to the spec's operands.
    pub args: Vec<Arg>,
    /// The part of a matmul's panels that the step computes; absent: all. The
    /// steps of one matmul follow each other in ascending order.
    pub panels: Option<PanelRange>,
    /// For reports and errors: e.g. `ffn_down`.
    pub name: String,
    /// Layer, or `None` outside the layers.
    pub layer: Option<u32>,
}

/// Consecutive 16-row panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PanelRange {
    pub first: u32,
    pub count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Arg {
    Buffer(BufferId),
    /// A buffer from the first selected column on: the head's input.
    SelectedColumn(BufferId),
    Tensor(TensorId),
    /// `constants[first..first + count]`.
    Constants {
        first: u32,
        count: u32,
    },
}

/// Steps without dependencies among each other; a barrier follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Phase {
    pub first_step: u32,
    pub steps: u32,
}
