//! The page plan: which pages of weights stay in memory, and when each other
//! page comes and goes.
//!
//! Time is counted in phases. A pass runs the body and then, where logits are
//! wanted, the head; the next pass follows. Passes may leave the head out, and
//! the head may run again on its own: a clock that counts `phases` for every
//! pass then jumps forward. A read starts no earlier than every use of what
//! its slot held before, so a jump, which only skips uses, never makes a read
//! too early.

use omex_kernels::KernelSpec;
use omex_kernels::spec::TableLayout;

use crate::frames::Frame;
use crate::ids::{BufferId, PageId};
use crate::plan::{Arg, Plan};
use crate::wire::{Decode, Encode};

/// Alignment of offsets, lengths and memory in reads that bypass the page cache.
pub const DIRECT_ALIGN: u64 = 4096;

/// Reads in flight at most.
pub const DEPTH_MAX: u32 = 16;

/// Where the pages of a plan are that is larger than its memory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PagePlan {
    /// Per page: the buffer that holds it for good. Pages without one are
    /// streamed by one of `reads`, or only gathered from.
    pub resident: Vec<Option<BufferId>>,
    /// Of every pass, by the phase that needs them: the body's, then the head's.
    pub reads: Vec<PageRead>,
    /// Reads in flight at most.
    pub depth: u32,
    /// Where single units of embedding tables are read to; see [`gather_bytes`].
    pub gather: Option<BufferId>,
    /// Per page: its copy in the file of compressed pages. Empty where no read
    /// is of that file.
    pub frames: Vec<Frame>,
    pub frames_file_bytes: u64,
    /// Where frames are read to: equal parts, one for each read in flight.
    pub stages: Option<BufferId>,
    /// What the plan was made for; reports predict with it.
    pub storage_bytes_per_s: u64,
    pub memory_bytes_per_s: u64,
    /// Pages that all cores together decompress.
    pub zstd_bytes_per_s: u64,
    /// 8-bit multiply-adds of all cores together.
    pub macs_per_s: u64,
}

/// One read of consecutive pages into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PageRead {
    pub first_page: PageId,
    pub pages: u32,
    pub slot: BufferId,
    /// The phase with whose beginning the read may start. Negative: that many
    /// phases before the end of the pass before.
    pub start_phase: i32,
    /// The first phase that needs the pages.
    pub first_phase: u32,
    /// The phase with whose beginning the slot is free again.
    pub end_phase: u32,
    /// The pages' frames are read, and decompressed into the slot.
    pub compressed: bool,
}

impl PageRead {
    pub fn page_ids(&self) -> impl Iterator<Item = PageId> + use<> {
        let first = self.first_page.0;
        (first..first + self.pages).map(PageId)
    }
}

impl PagePlan {
    /// Bytes of a read: from the first page's start to the last one's end.
    ///
    /// Panics for a read outside the plan's pages.
    pub fn read_bytes(plan: &Plan, read: &PageRead) -> u64 {
        let pages = &plan.weights.pages;
        let first = &pages[read.first_page.index()];
        let last = &pages[read.first_page.index() + read.pages as usize - 1];
        last.file_offset + last.bytes - first.file_offset
    }

    /// What a read brings from storage: its bytes, or those of its frames with
    /// the padding between them.
    ///
    /// Panics for a read outside the plan's pages.
    pub fn stored_bytes(&self, plan: &Plan, read: &PageRead) -> u64 {
        if !read.compressed {
            return Self::read_bytes(plan, read);
        }
        let first = self.frames[read.first_page.index()];
        let last = self.frames[read.first_page.index() + read.pages as usize - 1];
        last.file_offset + last.bytes - first.file_offset
    }

    /// Bytes that a pass with logits reads, gathered rows not counted.
    pub fn pass_bytes(&self, plan: &Plan) -> u64 {
        self.reads.iter().map(|r| self.stored_bytes(plan, r)).sum()
    }

    /// Bytes that a pass without logits reads.
    pub fn body_bytes(&self, plan: &Plan) -> u64 {
        let body = self
            .reads
            .iter()
            .filter(|r| r.first_phase < plan.body_phases);
        body.map(|r| self.stored_bytes(plan, r)).sum()
    }
}

/// Bytes of a buffer into which `threads` threads read one unit each of
/// `unit_bytes` bytes, with the blocks around it. It also holds the pieces in
/// which a page is verified.
pub fn gather_bytes(unit_bytes: u64, threads: u32) -> u64 {
    gather_stride_bytes(unit_bytes).saturating_mul(threads.into())
}

/// Bytes of one thread's part of such a buffer.
pub fn gather_stride_bytes(unit_bytes: u64) -> u64 {
    const VERIFY_BYTES: u64 = 64 << 10;
    let blocks = unit_bytes.saturating_add(2 * DIRECT_ALIGN - 1) / DIRECT_ALIGN * DIRECT_ALIGN;
    blocks.max(VERIFY_BYTES)
}

/// Bytes of the largest unit that the plan's steps gather: a row, or the panel
/// that contains it. `None` when nothing is embedded.
pub fn gathered_unit_bytes(plan: &Plan) -> Option<u64> {
    let steps = plan.steps.iter();
    let units = steps.filter_map(|step| {
        let spec = plan.kernels[step.kernel.index()].spec();
        let &KernelSpec::Embed {
            format, layout, k, ..
        } = spec
        else {
            return None;
        };
        Some(match layout {
            TableLayout::Rows => format.row_bytes(k),
            TableLayout::Panels => format.panel_bytes(k),
        })
    });
    units.max()
}

/// The pages that a step needs, and whether it only gathers from them.
pub fn step_pages(plan: &Plan, step: usize) -> (Vec<PageId>, bool) {
    let step = &plan.steps[step];
    let spec = plan.kernels[step.kernel.index()].spec();
    let gathers = matches!(spec, KernelSpec::Embed { .. });
    let mut pages = Vec::new();
    for (i, arg) in step.args.iter().enumerate() {
        if let Arg::Tensor(id) = *arg {
            let pieces = plan.weights.tensors[id.index()].pieces.iter();
            let range = step.panels.filter(|_| i == 0);
            let needed = pieces.filter(|piece| {
                range.is_none_or(|r| {
                    piece.first_unit < r.first + r.count && r.first < piece.first_unit + piece.units
                })
            });
            pages.extend(needed.map(|piece| piece.page));
        }
    }
    pages.sort_unstable();
    pages.dedup();
    (pages, gathers)
}
