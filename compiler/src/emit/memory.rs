//! The memory contract of a plan: what its arena and weights take, and what
//! the runtime states of itself.

use omex_plan::memory::{MemoryContract, MemoryItem, MemoryKind};
use omex_plan::{BufferKind, Plan};
use omex_runtime::memory::{Device, Sections, mapped_bytes, own_items};

/// The itemised prediction for a plan whose own contract is still empty.
pub fn memory_contract(plan: &Plan, sections: Sections, device: Device) -> MemoryContract {
    let of_kind = |kind: BufferKind| {
        let buffers = plan.buffers.iter().filter(|b| b.kind == kind);
        buffers.map(|b| b.bytes).sum::<u64>()
    };
    let kv = of_kind(BufferKind::KvRing);
    let resident = of_kind(BufferKind::ResidentPage);
    let slots = of_kind(BufferKind::PageSlot);
    let session = of_kind(BufferKind::Session);
    let round = |bytes: u64| device.in_pages(bytes);
    let planned = [
        // What comes and goes, alignment included.
        (
            MemoryKind::Activations,
            round(plan.arena_bytes) - kv - resident - slots - session,
        ),
        (MemoryKind::KvCache, kv),
        (MemoryKind::ResidentPages, resident),
        (MemoryKind::PageSlots, slots),
        (MemoryKind::MappedPages, round(mapped_bytes(plan))),
    ];
    let planned_bytes = planned.iter().map(|(_, bytes)| bytes).sum();
    let mut items: Vec<MemoryItem> = planned
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(kind, bytes)| MemoryItem { kind, bytes })
        .collect();
    items.extend(own_items(plan, sections, device, planned_bytes));
    MemoryContract { items }
}
