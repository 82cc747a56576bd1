//! The memory contract: every byte that a run may use, itemised.

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
    PageTables,
    /// The process before a plan is loaded: a declared allowance.
    Runtime,
}

impl MemoryKind {
    pub const ALL: [MemoryKind; 12] = [
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
        MemoryKind::PageTables,
        MemoryKind::Runtime,
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
            MemoryKind::PageTables => "page tables",
            MemoryKind::Runtime => "runtime",
        }
    }

    /// Page tables are charged to a memory cgroup but are no part of VmHWM.
    pub const fn in_rss(self) -> bool {
        !matches!(self, MemoryKind::PageTables)
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
    /// Predicted peak of the resident set (VmHWM), in bytes.
    pub fn rss_peak_bytes(&self) -> u64 {
        let rss = self.items.iter().filter(|i| i.kind.in_rss());
        rss.fold(0, |sum, i| sum.saturating_add(i.bytes))
    }

    /// Predicted peak of a memory cgroup's charge, in bytes.
    pub fn charge_peak_bytes(&self) -> u64 {
        self.items
            .iter()
            .fold(0, |sum, i| sum.saturating_add(i.bytes))
    }
}
