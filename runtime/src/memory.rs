//! What the runtime needs for a plan besides what the plan itself lays out:
//! its part of the memory contract. Bounds are stated next to what they bound;
//! constants that were measured are held against measurements by tests.

use omex_plan::memory::{MemoryItem, MemoryKind, plan_heap_bytes};
use omex_plan::task::{Node, NodeKind, Program};
use omex_plan::{BufferKind, NodeId, Plan, WeightSource};

use crate::exec::{operands_bytes, tiles_bytes_max};
use crate::os::process::StartText;
use crate::pager::{IO_STACK_USED_BYTES, pager_bytes};
use crate::pool::WORKER_STACK_USED_BYTES;
use crate::program::{LANE_BYTES, LOGITS_BUFFER_BYTES, WALK_BYTES, WRITE_BUFFER_BYTES};
use crate::transcript::TRANSCRIPT_BYTES;

/// The process before it loads anything, and what it touches of its own code,
/// libraries and stack from then on: measured, rounded up.
pub const RUNTIME_BYTES: u64 = 1824 << 10;

/// What a runtime with a code generator has more: relocated tables, and code
/// that lies further apart. Measured, rounded up.
pub const GENERATOR_BYTES: u64 = 1 << 20;

/// What the generator keeps until the process ends once it made code for an x86-64
/// CPU: the encoder's table of all instructions. Measured, rounded up.
pub const ENCODER_TABLES_BYTES: u64 = 768 << 10;

/// Of arguments and environment, what the allowance for the runtime contains.
pub const START_TEXT_BYTES: u64 = 160 << 10;

/// What an argument takes besides its bytes, and twice how often its bytes are held: on
/// the stack, and by what reads it. Measured, rounded up.
const ARGUMENT_BYTES: u64 = 160;
const HALF_COPIES_OF_ARGUMENTS: u64 = 5;

/// The peak of a process that has only read its command line and a plan. A
/// plan that needs less all in all states this.
pub const START_BYTES: u64 = 8 << 20;

/// Areas of a process's address space, each of which ends in a page of which it
/// uses a part: segments of the program and its libraries, heap and stack.
const AREAS: u64 = 24;
/// What was measured was measured with pages of this size.
const MEASURED_PAGE_BYTES: u64 = 4096;

/// Resident per worker besides its stack, in pages: the thread's descriptor and
/// its alternate signal stack.
const WORKER_OWN_PAGES: u64 = 4;

/// What the system is charged per thread: kernel stack and descriptors, and pages
/// of tables for its stack. Measured, rounded up. A ring for reads takes less than
/// the I/O threads whose place it takes, and a plan does not know which of them
/// a system has.
const THREAD_CHARGE_BYTES: u64 = 16 << 10;
const THREAD_CHARGE_PAGES: u64 = 4;
/// The process's other kernel objects: its open files, and the page tables of its
/// address space. Measured, rounded up.
const PROCESS_CHARGE_BYTES: u64 = 96 << 10;
const PROCESS_CHARGE_PAGES: u64 = 24;
/// A cgroup is charged ahead of its use, on every core: for a batch of 64 pages
/// at a time, one of them used.
const CORE_CHARGE_PAGES: u64 = 63;
/// The page cache holds whole folios, of which a program's resident pages, an
/// item of their own, are a part. Where weights in the arena fill a cgroup, less
/// than both would be read again in every pass. Measured. Mapped weights give way.
const PROGRAM_CACHE_BYTES: u64 = 1 << 20;
/// Of a mapped file's bytes, the share that the page cache's index takes at
/// most: a node of 584 bytes for every 64 pages.
const CACHE_INDEX_SHARE: u64 = 440;
/// A page-table page maps 512 pages.
const PAGE_TABLE_SHARE: u64 = 512;

/// What the contract depends on of the device that a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub cores: u32,
    /// Size of a page of the kernel's page tables.
    pub page_bytes: u32,
}

impl Device {
    /// Bytes in whole pages.
    pub fn in_pages(self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.page_bytes.into())
    }

    fn pages(self, count: u64) -> u64 {
        count * u64::from(self.page_bytes)
    }
}

/// The sizes of a plan's raw sections, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections {
    pub code_bytes: u64,
    pub tokenizer_bytes: u64,
}

/// Where a run has its kernels' code from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSource {
    Plan,
    Generator,
}

impl CodeSource {
    /// The one that needs more of those that this runtime has.
    pub const WORST: CodeSource = if cfg!(feature = "jit") {
        CodeSource::Generator
    } else {
        CodeSource::Plan
    };
}

/// What the memory of a run depends on besides its plan.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    pub code: CodeSource,
    /// Threads that compute, at most the plan's `threads_max`.
    pub threads: u32,
    /// The process's arguments and environment, which no plan knows.
    pub start_text: StartText,
}

impl Conditions {
    /// What arguments and environment take beyond the allowance for them.
    fn beyond_bytes(self) -> u64 {
        let text = self.start_text;
        let arguments =
            text.arguments_bytes * HALF_COPIES_OF_ARGUMENTS / 2 + text.arguments * ARGUMENT_BYTES;
        (arguments + text.environment_bytes).saturating_sub(START_TEXT_BYTES)
    }
}

/// The peak of the resident set that a plan predicts for a run on this runtime.
pub fn rss_peak_bytes(plan: &Plan, conditions: Conditions) -> u64 {
    let workers = u64::from(plan.threads_max.saturating_sub(conditions.threads));
    let unused = unused_bytes(plan, conditions.code) + workers * WORKER_STACK_USED_BYTES as u64;
    let stated = plan.memory.rss_peak_bytes();
    stated.saturating_sub(unused) + conditions.beyond_bytes()
}

/// The peak of a memory cgroup's charge that a plan predicts for this runtime,
/// whether its code is made again or not, on any number of threads.
pub fn charge_peak_bytes(plan: &Plan, conditions: Conditions) -> u64 {
    let unused = unused_bytes(plan, CodeSource::WORST);
    let stated = plan.memory.charge_peak_bytes();
    stated.saturating_sub(unused) + conditions.beyond_bytes()
}

/// What this runtime may use before it loads anything; `None` for a plan that does not
/// say, as those of tests.
pub(crate) fn allowance_bytes(plan: &Plan, conditions: Conditions) -> Option<u64> {
    let bytes_of = |kind| plan.memory.bytes_of(kind);
    let stated = bytes_of(MemoryKind::Runtime).saturating_add(bytes_of(MemoryKind::Generator));
    let allowed = stated.saturating_sub(unused_generator_bytes(plan));
    (allowed > 0).then(|| allowed + conditions.beyond_bytes())
}

/// What the plan states for runtimes that have more to them than this one, and
/// for code that is not from where this run has it.
fn unused_bytes(plan: &Plan, code: CodeSource) -> u64 {
    let tables = match code {
        CodeSource::Plan => plan.memory.bytes_of(MemoryKind::EncoderTables),
        CodeSource::Generator => 0,
    };
    unused_generator_bytes(plan).saturating_add(tables)
}

fn unused_generator_bytes(plan: &Plan) -> u64 {
    if cfg!(feature = "jit") {
        0
    } else {
        plan.memory.bytes_of(MemoryKind::Generator)
    }
}

/// The runtime's part of the contract. `plan_bytes` is what the plan's own items
/// come to: arena and mapped pages.
pub fn own_items(
    plan: &Plan,
    sections: Sections,
    device: Device,
    plan_bytes: u64,
) -> Vec<MemoryItem> {
    let workers = u64::from(plan.threads_max - 1);
    let io_threads = match &plan.weights.source {
        WeightSource::Paged(paged) if !paged.reads.is_empty() => u64::from(paged.depth),
        WeightSource::Mapped | WeightSource::Read { .. } | WeightSource::Paged(_) => 0,
    };
    let stack = |used: usize| device.in_pages(used as u64) + device.pages(WORKER_OWN_PAGES);
    let mut items = vec![
        (
            MemoryKind::Tokenizer,
            device.in_pages(sections.tokenizer_bytes),
        ),
        (MemoryKind::Code, device.in_pages(sections.code_bytes)),
        (MemoryKind::Session, session_bytes(plan, device)),
        (
            MemoryKind::PlanMetadata,
            device.in_pages(metadata_bytes(plan)),
        ),
        (
            MemoryKind::Stacks,
            workers * stack(WORKER_STACK_USED_BYTES) + io_threads * stack(IO_STACK_USED_BYTES),
        ),
    ];
    let rest: u64 = plan_bytes + items.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let larger_pages = u64::from(device.page_bytes).saturating_sub(MEASURED_PAGE_BYTES);
    let measured = RUNTIME_BYTES + AREAS * larger_pages;
    let runtime = measured.max(START_BYTES.saturating_sub(rest + GENERATOR_BYTES));
    let encoder_tables = match plan.target.arch.as_str() {
        "x86_64" if plan.kernels.iter().any(|kernel| kernel.code.is_some()) => ENCODER_TABLES_BYTES,
        _ => 0,
    };
    let generator = GENERATOR_BYTES + encoder_tables;
    let tables = (rest + runtime + generator).div_ceil(PAGE_TABLE_SHARE);
    items.push((MemoryKind::Runtime, runtime));
    items.push((MemoryKind::Generator, GENERATOR_BYTES));
    items.push((MemoryKind::EncoderTables, encoder_tables));
    let index = mapped_bytes(plan) / CACHE_INDEX_SHARE;
    let threads =
        (1 + workers + io_threads) * (THREAD_CHARGE_BYTES + device.pages(THREAD_CHARGE_PAGES));
    let process = PROCESS_CHARGE_BYTES + device.pages(PROCESS_CHARGE_PAGES);
    let cached = match plan.weights.source {
        WeightSource::Mapped => 0,
        WeightSource::Read { .. } | WeightSource::Paged(_) => PROGRAM_CACHE_BYTES,
    };
    let ahead = u64::from(device.cores) * device.pages(CORE_CHARGE_PAGES);
    items.push((
        MemoryKind::Kernel,
        device.in_pages(tables + index + cached + process + threads + ahead),
    ));
    let items = items.into_iter().filter(|(_, bytes)| *bytes > 0);
    items
        .map(|(kind, bytes)| MemoryItem { kind, bytes })
        .collect()
}

/// Bytes of the packed model that are mapped.
pub fn mapped_bytes(plan: &Plan) -> u64 {
    match plan.weights.source {
        WeightSource::Mapped => plan.weights.packed_file_bytes,
        WeightSource::Read { .. } | WeightSource::Paged(_) => 0,
    }
}

/// The decoded plan, and what the executor derives from it.
fn metadata_bytes(plan: &Plan) -> u64 {
    let pages = plan.weights.pages.len() as u64;
    let loading = match &plan.weights.source {
        WeightSource::Mapped => 0,
        // A slice, its lock and its order while pages are read.
        WeightSource::Read { .. } => pages * 32,
        WeightSource::Paged(paged) => pages * 32 + pager_bytes(plan, paged),
    };
    let derived = tiles_bytes_max(plan) + operands_bytes(plan);
    plan_heap_bytes(plan) + pages * size_of::<*const u8>() as u64 + loading + derived
}

/// Buffers of a run: the session's own of the arena, those of lanes and passes,
/// those of files, and the names of files that are found.
fn session_bytes(plan: &Plan, device: Device) -> u64 {
    let buffers = plan.buffers.iter();
    let session = buffers.filter(|b| b.kind == BufferKind::Session);
    let lanes = u64::from(plan.sequences_max) * LANE_BYTES as u64;
    let others = lanes
        + u64::from(plan.columns_max) * 4
        + streams(&plan.program) * WRITE_BUFFER_BYTES as u64
        + (LOGITS_BUFFER_BYTES + TRANSCRIPT_BYTES + WALK_BYTES) as u64;
    // The arena as a whole is rounded to pages.
    session.map(|b| b.bytes).sum::<u64>() + device.in_pages(others)
}

/// Files that are written at one time: outputs, and texts that wait for a node.
fn streams(program: &Program) -> u64 {
    let of_node = |node: &Node| {
        let is_text = |source: &&NodeId| match program.nodes[source.index()].kind {
            NodeKind::Parse { .. } => false,
            NodeKind::Infer { .. } | NodeKind::Merge { .. } => true,
        };
        let waiting = node.depends_on.iter().filter(is_text).count().max(1) as u64;
        match &node.kind {
            NodeKind::Parse { .. } | NodeKind::Infer { .. } => waiting,
            NodeKind::Merge { outputs } => waiting + outputs.len() as u64,
        }
    };
    program.nodes.iter().map(of_node).sum()
}
