//! Plans for models that are larger than their memory: which pages of weights
//! stay, and when each other page comes and goes.
//!
//! Requires: a plan that passes its checks, with mapped weights.
//! Ensures: the same computation over a page plan that keeps as much as fits;
//! what is read is spread evenly over the pass, so that reads hide under
//! computing everywhere. Phases are cut where one needs more than one read.
//! Breaks: nothing; an arena that was as small as possible stays so.

mod cost;
mod resident;
mod split;
mod text;

use std::ops::Range;

use omex_plan::frames::Frame;
use omex_plan::packed::Page;
use omex_plan::paging::{
    DIRECT_ALIGN, PagePlan, PageRead, gather_bytes, gathered_unit_bytes, step_pages,
};
use omex_plan::{Buffer, BufferId, BufferKind, PageId, Plan, WeightSource};

pub use cost::{Cost, slow_plan};
pub use text::paging_text;

use resident::Unit;

/// Slots take at most so much of the budget.
pub const SLOTS_BYTES_MAX: u64 = 16 << 20;
/// Large enough for the full speed of disks, small enough for slots to spare.
pub const READ_BYTES_MAX: u64 = 2 << 20;
/// One to compute with while the other is filled.
const SLOTS_MIN: u64 = 2;
/// Reads in flight.
pub const DEPTH: u32 = 4;

/// What a page plan is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// For resident pages, slots and gathered rows together.
    pub weights_bytes_max: u64,
    pub slots_bytes_max: u64,
    pub read_bytes_max: u64,
    pub depth: u32,
    /// Layers that become resident first.
    pub first_layers: Range<u32>,
    pub storage_bytes_per_s: u64,
    pub memory_bytes_per_s: u64,
    pub macs_per_s: u64,
    pub frames: Frames,
}

/// Compressed copies of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Per page; empty where nothing is to be compressed.
    pub of_pages: Vec<Frame>,
    pub file_bytes: u64,
    /// Pages that the target's cores together decompress.
    pub pages_bytes_per_s: u64,
}

impl Request {
    /// What a read of these pages brings from storage when it is of their
    /// frames. `None` where reading the pages themselves takes no longer: then,
    /// time that cores spend on frames counts in full, as they could compute.
    fn frames_bytes(&self, unit: &Unit) -> Option<u64> {
        let frames = self.frames.of_pages.get(unit.pages.clone())?;
        if !frames.iter().all(|frame| frame.exists()) {
            return None;
        }
        let (first, last) = (frames.first()?, frames.last()?);
        let stored = last.file_offset + last.bytes - first.file_offset;
        let seconds = |bytes: u64, per_s: u64| bytes as f64 / per_s.max(1) as f64;
        let frames_s = seconds(stored, self.storage_bytes_per_s)
            + seconds(unit.bytes, self.frames.pages_bytes_per_s);
        let pays = frames_s < seconds(unit.bytes, self.storage_bytes_per_s);
        pays.then_some(stored)
    }
}

/// No page plan is small enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall {
    /// What slots and pages that cannot be streamed take.
    pub weights_bytes_min: u64,
}

/// How the steps use a page. What is only gathered from has no uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    body: bool,
    head: bool,
    first_layers: bool,
}

impl Uses {
    fn any(self) -> bool {
        self.body || self.head
    }

    /// The head runs more or less often than the body, so a page of both could
    /// be missing in one.
    fn must_stay(self) -> bool {
        self.body && self.head
    }
}

/// The plan with pages that come and go.
///
/// # Errors
///
/// The slots and what must stay exceed the request.
pub fn page(plan: &Plan, request: &Request) -> Result<Plan, TooSmall> {
    assert!(
        plan.weights.source == WeightSource::Mapped,
        "a plan is paged once"
    );
    let uses = uses(plan, &request.first_layers);
    let mut pinned: Vec<bool> = uses.iter().map(|u| u.must_stay()).collect();
    loop {
        let draft = draft(plan, request, &uses, &pinned)?;
        match draft.reads() {
            Ok(reads) => return Ok(draft.finish(plan, request, reads)),
            // Its pages are needed for too long to be streamed.
            Err(unit) => pinned[unit.pages.start..unit.pages.end].fill(true),
        }
    }
}

fn uses(plan: &Plan, first_layers: &Range<u32>) -> Vec<Uses> {
    let mut uses = vec![Uses::default(); plan.weights.pages.len()];
    for (p, phase) in plan.phases.iter().enumerate() {
        for step in phase.first_step..phase.first_step + phase.steps {
            let (pages, gathers) = step_pages(plan, step as usize);
            let layer = plan.steps[step as usize].layer;
            for page in pages.into_iter().filter(|_| !gathers) {
                let uses = &mut uses[page.index()];
                if (p as u32) < plan.body_phases {
                    uses.body = true;
                } else {
                    uses.head = true;
                }
                uses.first_layers |= layer.is_some_and(|layer| first_layers.contains(&layer));
            }
        }
    }
    uses
}

/// Bytes that a page takes of the arena.
fn slot_bytes(page: &Page) -> u64 {
    page.bytes.next_multiple_of(DIRECT_ALIGN)
}

/// What is streamed, and the phases cut to it.
struct Draft {
    /// The plan with its phases cut; its pages have no places yet.
    cut: Plan,
    units: Vec<Unit>,
    resident: Vec<bool>,
    slots: u32,
    slot_bytes: u64,
    /// Bytes of the largest read of frames; 0 where there is none.
    stage_bytes: u64,
    gather_bytes: u64,
}

fn draft(
    plan: &Plan,
    request: &Request,
    uses: &[Uses],
    pinned: &[bool],
) -> Result<Draft, TooSmall> {
    let pages = &plan.weights.pages;
    let largest = pages.iter().zip(uses).filter(|(_, u)| u.any());
    let largest = largest.map(|(p, _)| slot_bytes(p)).max().unwrap_or(0);
    let read_bytes_max = request.read_bytes_max.max(largest);
    let units = resident::units(pages, uses, pinned, read_bytes_max);
    let gather_bytes = match gathered_unit_bytes(plan) {
        Some(unit) => gather_bytes(unit, plan.threads_max).next_multiple_of(DIRECT_ALIGN),
        None => 0,
    };
    let slot = units.iter().map(|u| u.bytes).max().unwrap_or(0);
    let slot = slot.next_multiple_of(DIRECT_ALIGN);
    let pinned_bytes: u64 = pages
        .iter()
        .zip(uses.iter().zip(pinned))
        .filter(|(_, (uses, pinned))| uses.any() && **pinned)
        .map(|(page, _)| slot_bytes(page))
        .sum();
    let fixed = gather_bytes + pinned_bytes;
    let slots_min = SLOTS_MIN.min(units.len() as u64);
    let weights_bytes_min = fixed + slots_min * slot;
    let stage_bytes = units.iter().filter_map(|unit| request.frames_bytes(unit));
    let stage_bytes = stage_bytes.max().unwrap_or(0);
    let mut stage_bytes = stage_bytes.next_multiple_of(DIRECT_ALIGN);
    let stages_bytes = |stage_bytes: u64| stage_bytes * u64::from(request.depth);
    if weights_bytes_min + stages_bytes(stage_bytes) > request.weights_bytes_max {
        stage_bytes = 0;
    }
    if weights_bytes_min > request.weights_bytes_max {
        return Err(TooSmall { weights_bytes_min });
    }
    let rest = request.weights_bytes_max - fixed - stages_bytes(stage_bytes);
    let slots_bytes =
        request.slots_bytes_max - stages_bytes(stage_bytes).min(request.slots_bytes_max);
    let slots = rest.min(slots_bytes) / slot.max(1);
    let mut slots = slots.clamp(slots_min, units.len() as u64);
    // More slots than units that are streamed would take the place of those.
    let (resident, units) = loop {
        let mut resident: Vec<bool> = (uses.iter().zip(pinned))
            .map(|(uses, pinned)| uses.any() && *pinned)
            .collect();
        let spare = rest - slots * slot;
        let streamed = resident::choose(pages, uses, units.clone(), spare, &mut resident);
        if streamed.len() as u64 >= slots {
            break (resident, streamed);
        }
        slots = streamed.len() as u64;
    };
    Ok(Draft {
        cut: split::split(plan, &units),
        slots: slots as u32,
        slot_bytes: slot,
        stage_bytes,
        units,
        resident,
        gather_bytes,
    })
}

impl Draft {
    /// The reads of a pass, with slots as indices: each goes to the slot that
    /// is free first.
    ///
    /// # Errors
    ///
    /// A unit whose slot is needed before it is free.
    fn reads(&self) -> Result<Vec<PageRead>, Unit> {
        let phases = self.cut.phases.len() as i32;
        let mut reads = self.lives();
        reads.sort_by_key(|r| (r.first_phase, r.first_page));
        let mut used_until: Vec<Option<u32>> = vec![None; self.slots as usize];
        let mut first_in: Vec<usize> = Vec::new();
        for i in 0..reads.len() {
            let free = |slot: &usize| used_until[*slot].map_or(0, |end| end + 1);
            let slot = (0..used_until.len())
                .min_by_key(free)
                .expect("units have slots");
            let read = &mut reads[i];
            read.slot = BufferId::from(slot);
            match used_until[slot].replace(read.end_phase) {
                None => first_in.push(i),
                Some(end) if end > read.first_phase => {
                    let blocking = reads[..i].iter().rfind(|r| r.slot.index() == slot);
                    return Err(self.unit_of(blocking.expect("something is in the slot")));
                }
                Some(end) => read.start_phase = end as i32,
            }
        }
        for i in first_in {
            let end = used_until[reads[i].slot.index()].expect("the slot is used");
            reads[i].start_phase = end as i32 - phases;
        }
        Ok(reads)
    }

    fn unit_of(&self, read: &PageRead) -> Unit {
        let is = |unit: &&Unit| unit.pages.start == read.first_page.index();
        self.units
            .iter()
            .find(is)
            .cloned()
            .expect("reads are units")
    }

    /// The phases that need each unit, in the cut plan.
    fn lives(&self) -> Vec<PageRead> {
        let plan = &self.cut;
        let mut unit_of = vec![None; plan.weights.pages.len()];
        for (i, unit) in self.units.iter().enumerate() {
            unit_of[unit.pages.clone()].fill(Some(i));
        }
        let mut lives: Vec<Option<(u32, u32)>> = vec![None; self.units.len()];
        for (p, phase) in plan.phases.iter().enumerate() {
            let p = p as u32;
            for step in phase.first_step..phase.first_step + phase.steps {
                let (pages, gathers) = step_pages(plan, step as usize);
                for page in pages.into_iter().filter(|_| !gathers) {
                    if let Some(unit) = unit_of[page.index()] {
                        let life = lives[unit].get_or_insert((p, p + 1));
                        life.1 = p + 1;
                    }
                }
            }
        }
        let reads = self.units.iter().zip(lives).filter_map(|(unit, life)| {
            let (first_phase, end_phase) = life?;
            Some(PageRead {
                first_page: PageId::from(unit.pages.start),
                pages: unit.pages.len() as u32,
                slot: BufferId(0),
                start_phase: 0,
                first_phase,
                end_phase,
                compressed: false,
            })
        });
        reads.collect()
    }

    /// Places pages and slots behind the arena that is there: they are always
    /// alive, so they lie nowhere better.
    fn finish(self, unpaged: &Plan, request: &Request, mut reads: Vec<PageRead>) -> Plan {
        let mut plan = self.cut;
        let moments = plan.moments();
        let mut end = unpaged.arena_bytes;
        let mut push = |name: String, kind: BufferKind, bytes: u64| {
            let offset = end.next_multiple_of(DIRECT_ALIGN);
            end = offset + bytes;
            plan.buffers.push(Buffer {
                name,
                kind,
                offset,
                bytes,
                first_phase: 0,
                end_phase: moments,
            });
            BufferId::from(plan.buffers.len() - 1)
        };
        let gather = (self.gather_bytes > 0).then(|| {
            let name = "gathered rows".to_owned();
            push(name, BufferKind::PageSlot, self.gather_bytes)
        });
        let slots: Vec<BufferId> = (0..self.slots)
            .map(|i| push(format!("slot.{i}"), BufferKind::PageSlot, self.slot_bytes))
            .collect();
        let pages = unpaged.weights.pages.iter().zip(&self.resident).enumerate();
        let resident = pages.map(|(i, (page, stays))| {
            let name = || format!("page.{i}");
            stays.then(|| push(name(), BufferKind::ResidentPage, slot_bytes(page)))
        });
        let resident = resident.collect();
        let depth = request.depth.min(self.slots).max(1);
        for read in &mut reads {
            let unit = self
                .units
                .iter()
                .find(|u| u.pages.start == read.first_page.index());
            let frames = unit.and_then(|unit| request.frames_bytes(unit));
            read.compressed = self.stage_bytes > 0 && frames.is_some();
            read.slot = slots[read.slot.index()];
        }
        let compressed = reads.iter().any(|read| read.compressed);
        let stages = compressed.then(|| {
            let bytes = self.stage_bytes * u64::from(depth);
            push("stages".to_owned(), BufferKind::PageSlot, bytes)
        });
        let frames = request.frames.clone();
        plan.arena_bytes = end;
        plan.weights.source = WeightSource::Paged(PagePlan {
            resident,
            reads,
            depth,
            gather,
            frames: if compressed {
                frames.of_pages
            } else {
                Vec::new()
            },
            frames_file_bytes: if compressed { frames.file_bytes } else { 0 },
            stages,
            storage_bytes_per_s: request.storage_bytes_per_s,
            memory_bytes_per_s: request.memory_bytes_per_s,
            zstd_bytes_per_s: frames.pages_bytes_per_s,
            macs_per_s: request.macs_per_s,
        });
        plan
    }
}
