//! The memory contract of a plan: what of it the plan decides, and what the
//! runtime states of itself.

use omex_plan::memory::{MemoryContract, MemoryItem, MemoryKind};
use omex_plan::{BufferKind, Plan, WeightSource};

use crate::pipeline::Sections;

/// Pages of the process's address space.
const PAGE_BYTES: u64 = 4096;

/// The itemised prediction for a plan whose own contract is still empty.
pub fn memory_contract(plan: &Plan, sections: Sections) -> MemoryContract {
    let of_kind = |kind: BufferKind| {
        let buffers = plan.buffers.iter().filter(|b| b.kind == kind);
        buffers.map(|b| b.bytes).sum::<u64>()
    };
    let kv = of_kind(BufferKind::KvRing);
    let resident = of_kind(BufferKind::ResidentPage);
    let slots = of_kind(BufferKind::PageSlot);
    let mapped = match plan.weights.source {
        WeightSource::Mapped => plan.weights.packed_file_bytes,
        WeightSource::Read { .. } | WeightSource::Paged(_) => 0,
    };
    let round = |bytes: u64| bytes.next_multiple_of(PAGE_BYTES);
    let items = [
        (
            MemoryKind::Activations,
            round(plan.arena_bytes) - kv - resident - slots,
        ),
        (MemoryKind::KvCache, kv),
        (MemoryKind::ResidentPages, resident),
        (MemoryKind::PageSlots, slots),
        (MemoryKind::MappedPages, round(mapped)),
        (MemoryKind::Tokenizer, round(sections.tokenizer_bytes)),
        (MemoryKind::Code, round(sections.code_bytes)),
    ];
    MemoryContract {
        items: items
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(kind, bytes)| MemoryItem { kind, bytes })
            .collect(),
    }
}
