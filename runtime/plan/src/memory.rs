//! The memory contract: every byte that a run may use, itemised.

use crate::packed::Tensor;
use crate::plan::{Plan, WeightSource};
use crate::task::{Node, NodeKind, Program};
use crate::wire::{Decode, Encode};

/// What a byte is for. The order is the order of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum MemoryKind {
    Activations,
    KvCache,
    ResidentPages,
    PageSlots,
    MappedPages,
    Tokenizer,
    Code,
    /// Text, token and sampler buffers of the session.
    Session,
    PlanMetadata,
    Stacks,
    /// The process before a plan is loaded: a declared allowance.
    Runtime,
    /// What the code generator adds to a runtime that has one, in use or not.
    Generator,
    /// What the encoder of its instructions keeps once code was made, which it is for
    /// plans that are not trusted.
    EncoderTables,
    /// What the system keeps for the process: page tables, thread stacks.
    Kernel,
}

impl MemoryKind {
    pub const ALL: [MemoryKind; 14] = [
        MemoryKind::Activations,
        MemoryKind::KvCache,
        MemoryKind::ResidentPages,
        MemoryKind::PageSlots,
        MemoryKind::MappedPages,
        MemoryKind::Tokenizer,
        MemoryKind::Code,
        MemoryKind::Session,
        MemoryKind::PlanMetadata,
        MemoryKind::Stacks,
        MemoryKind::Runtime,
        MemoryKind::Generator,
        MemoryKind::EncoderTables,
        MemoryKind::Kernel,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            MemoryKind::Activations => "activations",
            MemoryKind::KvCache => "kv cache",
            MemoryKind::ResidentPages => "resident pages",
            MemoryKind::PageSlots => "page slots",
            MemoryKind::MappedPages => "mapped pages",
            MemoryKind::Tokenizer => "tokenizer",
            MemoryKind::Code => "code",
            MemoryKind::Session => "session",
            MemoryKind::PlanMetadata => "plan metadata",
            MemoryKind::Stacks => "stacks",
            MemoryKind::Runtime => "runtime",
            MemoryKind::Generator => "code generator",
            MemoryKind::EncoderTables => "encoder tables",
            MemoryKind::Kernel => "kernel",
        }
    }

    /// The kernel's part is charged to a memory cgroup but is no part of VmHWM.
    pub const fn in_rss(self) -> bool {
        !matches!(self, MemoryKind::Kernel)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemoryItem {
    pub kind: MemoryKind,
    pub bytes: u64,
}

/// The itemised prediction of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemoryContract {
    /// At most one item of each kind, in the order of the kinds.
    pub items: Vec<MemoryItem>,
}

impl MemoryContract {
    /// Predicted peak of the resident set (VmHWM), in bytes, of whichever
    /// runtime needs more, whether the plan is trusted or not.
    pub fn rss_peak_bytes(&self) -> u64 {
        self.sum(MemoryKind::in_rss)
    }

    /// Predicted peak of a memory cgroup's charge, in bytes.
    pub fn charge_peak_bytes(&self) -> u64 {
        self.sum(|_| true)
    }

    /// What a budget has to hold.
    pub fn needed_bytes(&self) -> u64 {
        self.rss_peak_bytes().max(self.charge_peak_bytes())
    }

    pub fn bytes_of(&self, kind: MemoryKind) -> u64 {
        self.sum(|k| k == kind)
    }

    fn sum(&self, counts: impl Fn(MemoryKind) -> bool) -> u64 {
        let items = self.items.iter().filter(|item| counts(item.kind));
        items.fold(0, |sum, item| sum.saturating_add(item.bytes))
    }
}

/// Heap blocks of a plan in memory, each with the allocator's header, in bytes.
pub fn plan_heap_bytes(plan: &Plan) -> u64 {
    let weights = &plan.weights;
    let slots = match &weights.source {
        WeightSource::Mapped => 0,
        WeightSource::Read { slots } => array(slots),
        WeightSource::Paged(paged) => {
            array(&paged.resident) + array(&paged.reads) + array(&paged.frames)
        }
    };
    let tensor = |t: &Tensor| text(&t.name) + array(&t.pieces);
    array(&plan.buffers)
        + array(&plan.steps)
        + array(&plan.phases)
        + array(&plan.kernels)
        + array(&plan.constants)
        + array(&plan.memory.items)
        + array(&weights.pages)
        + array(&weights.tensors)
        + slots
        + weights.tensors.iter().map(tensor).sum::<u64>()
        + plan.buffers.iter().map(|b| text(&b.name)).sum::<u64>()
        + (plan.steps.iter())
            .map(|s| text(&s.name) + array(&s.args))
            .sum::<u64>()
        + text(&plan.target.name)
        + text(&plan.target.arch)
        + array(&plan.target.features)
        + plan.target.features.iter().map(|f| text(f)).sum::<u64>()
        + text(&plan.model.name)
        + text(&plan.model.architecture)
        + array(&plan.model.end_tokens)
        + program(&plan.program)
}

fn program(program: &Program) -> u64 {
    let inputs = program.inputs.iter();
    text(&program.task_id)
        + array(&program.inputs)
        + inputs.map(|i| text(&i.name) + text(&i.path)).sum::<u64>()
        + array(&program.nodes)
        + program.nodes.iter().map(node).sum::<u64>()
}

fn node(node: &Node) -> u64 {
    let texts = |texts: &[String]| array(texts) + texts.iter().map(|t| text(t)).sum::<u64>();
    let kind = match &node.kind {
        NodeKind::Parse { inputs, window: _ } => array(inputs),
        NodeKind::Infer {
            prompt,
            tokens_max: _,
            sampling: _,
            stop,
        } => {
            array(&prompt.prefix_tokens)
                + text(&prompt.prefix_text)
                + text(&prompt.suffix_text)
                + array(&prompt.suffix_tokens)
                + prompt.empty_tokens.as_deref().map_or(0, array)
                + texts(stop)
        }
        NodeKind::Merge { outputs } => texts(outputs),
    };
    text(&node.id) + array(&node.depends_on) + kind
}

fn text(text: &str) -> u64 {
    array(text.as_bytes())
}

/// The block that holds these items, as malloc rounds it.
fn array<T>(items: &[T]) -> u64 {
    match size_of_val(items) as u64 {
        0 => 0,
        bytes => (bytes + 8).next_multiple_of(16).max(32),
    }
}
