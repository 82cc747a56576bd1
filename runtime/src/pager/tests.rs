//! Reads that fail: what a device may do that a test's file cannot.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};

use omex_plan::memory::MemoryContract;
use omex_plan::packed::Page;
use omex_plan::paging::{PagePlan, PageRead};
use omex_plan::session::SessionBuffers;
use omex_plan::task::Program;
use omex_plan::{
    Buffer, BufferId, BufferKind, Model, PageId, Phase, Plan, Target, WeightSource, Weights,
};

use super::{Pager, Source};
use crate::load::LoadOptions;
use crate::os::file::{ReadAt, UncachedFile};
use crate::os::memory::Region;
use crate::os::uring::Ring;

const PAGES: usize = 6;
const PAGE_BYTES: usize = 12_000;
const STRIDE: usize = 16 << 10;

fn content() -> Vec<u8> {
    (0..PAGES * STRIDE).map(|i| ((i * 7) >> 4) as u8).collect()
}

/// Six pages, one phase each, through two slots.
fn plan() -> (Plan, PagePlan) {
    let content = content();
    let page = |i: usize| Page {
        file_offset: (i * STRIDE) as u64,
        bytes: PAGE_BYTES as u64,
        digest: *blake3::hash(&content[i * STRIDE..][..PAGE_BYTES]).as_bytes(),
    };
    let phases = PAGES as u32;
    let read = |i: u32| PageRead {
        first_page: PageId(i),
        pages: 1,
        slot: BufferId(i % 2),
        start_phase: i as i32 - 1,
        first_phase: i,
        end_phase: i + 1,
        compressed: false,
    };
    let mut reads: Vec<PageRead> = (0..phases).map(read).collect();
    reads[0].start_phase = -1;
    let slot = |i: u64| Buffer {
        name: format!("slot.{i}"),
        kind: BufferKind::PageSlot,
        offset: i * STRIDE as u64,
        bytes: STRIDE as u64,
        first_phase: 0,
        end_phase: phases,
    };
    let paged = PagePlan {
        resident: vec![None; PAGES],
        reads,
        depth: 2,
        gather: None,
        frames: Vec::new(),
        frames_file_bytes: 0,
        stages: None,
        storage_bytes_per_s: 1,
        memory_bytes_per_s: 1,
        zstd_bytes_per_s: 1,
        macs_per_s: 1,
    };
    let plan = Plan {
        target: Target {
            name: String::new(),
            arch: String::new(),
            features: Vec::new(),
            l2_bytes: 0,
            memory_bytes_per_s: 0,
            memory_latency_ns: 0,
            prefetch_pages: 0,
        },
        model: Model {
            name: String::new(),
            architecture: String::new(),
            vocabulary: 1,
            layers: 1,
            context: 1,
            end_tokens: Vec::new(),
        },
        weights: Weights {
            packed_digest: [0; 32],
            packed_file_bytes: (PAGES * STRIDE) as u64,
            source: WeightSource::Paged(paged.clone()),
            pages: (0..PAGES).map(page).collect(),
            tensors: Vec::new(),
        },
        constants: Vec::new(),
        kernels: Vec::new(),
        buffers: vec![slot(0), slot(1)],
        arena_bytes: 2 * STRIDE as u64,
        steps: Vec::new(),
        phases: vec![
            Phase {
                first_step: 0,
                steps: 0
            };
            PAGES
        ],
        body_phases: phases - 1,
        tokens_buffer: BufferId(0),
        logits_buffer: BufferId(0),
        session: SessionBuffers {
            text: BufferId(0),
            history: BufferId(0),
            tokenizer: BufferId(0),
            sampler: BufferId(0),
        },
        columns_max: 1,
        head_columns_max: 1,
        sequences_max: 1,
        threads_max: 1,
        program: Program {
            task_id: String::new(),
            inputs: Vec::new(),
            nodes: Vec::new(),
        },
        memory: MemoryContract { items: Vec::new() },
        result_id: [0; 32],
    };
    (plan, paged)
}

/// Decides what the n-th read of a file does.
type Fate = fn(u32, &mut [u8], u64, &File) -> io::Result<usize>;

struct Faulty {
    file: File,
    reads: AtomicU32,
    fate: Fate,
}

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Faulty")
    }
}

impl ReadAt for Faulty {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.reads.fetch_add(1, Ordering::Relaxed);
        (self.fate)(n, buffer, offset, &self.file)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// As if the system had done what the fate does.
    fn completed(
        &self,
        buffer: &mut [u8],
        offset: u64,
        result: io::Result<usize>,
    ) -> io::Result<usize> {
        result.unwrap();
        buffer.fill(0xa5);
        self.read_at(buffer, offset)
    }
}

const THREADS: LoadOptions = reader(false);
const RING: LoadOptions = reader(true);

const fn reader(io_uring: bool) -> LoadOptions {
    LoadOptions {
        threads: None,
        model_folders: Vec::new(),
        signature: None,
        trust: None,
        enforce_allowance: false,
        trace: false,
        io_uring,
    }
}

/// Whether this system allows rings; where it does not, threads read in all tests.
fn has_rings() -> bool {
    Ring::new(2).is_ok()
}

/// As [`run_with`], the same with threads and with a ring.
fn run(name: &str, direct: Option<Fate>, buffered: Fate) -> Option<String> {
    let threads = run_with(&THREADS, name, direct, buffered);
    let ring = run_with(&RING, name, direct, buffered);
    assert_eq!(threads, ring);
    ring
}

/// Runs three passes, the second of which has no head. Returns the pager's error.
fn run_with(
    options: &LoadOptions,
    name: &str,
    direct: Option<Fate>,
    buffered: Fate,
) -> Option<String> {
    let heads = [true, false, true];
    run_passes(options, name, direct, buffered, plan(), &heads)
}

/// Runs passes of a plan, with a head or without.
fn run_passes(
    options: &LoadOptions,
    name: &str,
    direct: Option<Fate>,
    buffered: Fate,
    (plan, paged): (Plan, PagePlan),
    heads: &[bool],
) -> Option<String> {
    let path = std::env::temp_dir().join(format!("omex-pager-{name}-{}", std::process::id()));
    let content = content();
    std::fs::write(&path, &content).unwrap();
    let open = || File::open(&path).unwrap();
    let faulty = |fate: Fate| {
        let (file, reads) = (open(), AtomicU32::new(0));
        Box::new(Faulty { file, reads, fate }) as Box<dyn ReadAt>
    };
    let file = UncachedFile::with_reads(open(), direct.map(faulty), faulty(buffered));
    std::fs::remove_file(&path).unwrap();

    let mut arena = Region::zeroed(plan.arena_bytes as usize).unwrap();
    let source = Source {
        file,
        path: PathBuf::from("model.omex"),
        offset: 0,
    };
    let slots = arena.base();
    let pager = Pager::start(&plan, &paged, source, None, &arena, options).unwrap();
    let ring = options.io_uring && direct.is_some() && has_rings();
    assert_eq!(pager.shared.ring.is_some(), ring);
    let mut fault = None;
    'passes: for (pass, &head) in heads.iter().enumerate() {
        pager.begin_body(head);
        for phase in 0..PAGES {
            if phase == PAGES - 1 {
                if !head {
                    break;
                }
                pager.begin_head();
            }
            if !pager.enter(phase, true) {
                fault = Some(pager.fault().unwrap());
                break 'passes;
            }
            let needed = |read: &&PageRead| read.first_phase as usize == phase;
            let Some(read) = paged.reads.iter().find(needed) else {
                continue;
            };
            let slot = slots.wrapping_add(read.slot.index() * STRIDE);
            let wanted = blake3::hash(&content[read.first_page.index() * STRIDE..][..PAGE_BYTES]);
            assert_eq!(hash(slot), wanted, "page {phase} of pass {pass}");
        }
    }
    drop(pager);
    arena.bytes_mut().fill(0);
    fault.map(|e| format!("{} {e}", e.exit_code()))
}

/// The hash of a page in a slot that the pager said is filled.
#[allow(unsafe_code)]
fn hash(slot: *const u8) -> blake3::Hash {
    // SAFETY: the slot is in the arena, and its page is used by this phase.
    blake3::hash(unsafe { std::slice::from_raw_parts(slot, PAGE_BYTES) })
}

fn sound(_: u32, buffer: &mut [u8], offset: u64, file: &File) -> io::Result<usize> {
    ReadAt::read_at(file, buffer, offset)
}

/// What a task may do meanwhile: the first pages come while its text becomes
/// tokens.
/// Reads that all start in the pass before the one that needs them, before it is known
/// whether that has a head; a head that reads, or does not.
#[test]
fn passes_with_and_without_head_follow_each_other_in_any_order() {
    for head_reads in [true, false] {
        let (mut plan, mut paged) = plan();
        let phases = PAGES as i32;
        let read = |slot: u32, phase: u32, start_phase: i32| PageRead {
            first_page: PageId(phase),
            pages: 1,
            slot: BufferId(slot),
            start_phase,
            first_phase: phase,
            end_phase: phase + 1,
            compressed: false,
        };
        let body = (0..3).map(|i| read(i, i, i as i32 + 1 - phases));
        let head = head_reads.then(|| read(3, PAGES as u32 - 1, 0));
        paged.reads = body.chain(head).collect();
        let slot = plan.buffers[0].clone();
        plan.buffers = (0..4)
            .map(|i| Buffer {
                offset: i * STRIDE as u64,
                ..slot.clone()
            })
            .collect();
        plan.arena_bytes = 4 * STRIDE as u64;
        plan.weights.source = WeightSource::Paged(paged.clone());
        for options in [&THREADS, &RING] {
            for order in 0..64u32 {
                let heads: Vec<bool> = (0..6).map(|pass| order >> pass & 1 == 1).collect();
                let plan = (plan.clone(), paged.clone());
                let fault = run_passes(options, "heads", Some(sound), sound, plan, &heads);
                assert_eq!(fault, None, "{heads:?}");
            }
        }
    }
}

#[test]
fn reads_begin_before_the_first_pass() {
    static READS: AtomicU32 = AtomicU32::new(0);
    let counted: Fate = |_, buffer, offset, file| {
        READS.fetch_add(1, Ordering::SeqCst);
        ReadAt::read_at(file, buffer, offset)
    };
    let path = std::env::temp_dir().join(format!("omex-pager-ahead-{}", std::process::id()));
    std::fs::write(&path, content()).unwrap();
    let open = || File::open(&path).unwrap();
    let (file, reads) = (open(), AtomicU32::new(0));
    let buffered = Box::new(Faulty {
        file,
        reads,
        fate: counted,
    });
    let source = Source {
        file: UncachedFile::with_reads(open(), None, buffered),
        path: PathBuf::from("model.omex"),
        offset: 0,
    };
    std::fs::remove_file(&path).unwrap();
    let (plan, paged) = plan();
    let arena = Region::zeroed(plan.arena_bytes as usize).unwrap();
    let pager = Pager::start(&plan, &paged, source, None, &arena, &THREADS).unwrap();
    // The first read's moment is the end of the pass before the first.
    for _ in 0..20_000 {
        if READS.load(Ordering::SeqCst) > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(READS.load(Ordering::SeqCst) > 0, "nothing was read");
    drop(pager);
}

/// Threads that lack the same pages share the ring's completions; a pager that
/// ends early leaves no read in flight.
#[test]
fn threads_meet_at_the_ring() {
    let path = std::env::temp_dir().join(format!("omex-pager-meet-{}", std::process::id()));
    let content = content();
    std::fs::write(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    let (plan, paged) = plan();
    let mut arena = Region::zeroed(plan.arena_bytes as usize).unwrap();
    for passes in [0, 1, 200] {
        let source = Source {
            file: UncachedFile::new(file.try_clone().unwrap()).unwrap(),
            path: path.clone(),
            offset: 0,
        };
        let slots = arena.base() as usize;
        let pager = Pager::start(&plan, &paged, source, None, &arena, &RING).unwrap();
        let in_flight = pager
            .shared
            .state
            .lock()
            .unwrap()
            .flights
            .iter()
            .flatten()
            .count();
        assert_eq!(in_flight > 0, pager.shared.ring.is_some());
        const COUNT: usize = 3;
        let barrier = Barrier::new(COUNT);
        std::thread::scope(|s| {
            for thread in 0..COUNT {
                let (pager, barrier) = (&pager, &barrier);
                let (content, paged) = (&content, &paged);
                s.spawn(move || {
                    for phase in (0..passes).flat_map(|_| 0..PAGES) {
                        if thread == 0 && phase == 0 {
                            pager.begin_body(true);
                        }
                        if thread == 0 && phase == PAGES - 1 {
                            pager.begin_head();
                        }
                        barrier.wait();
                        assert!(pager.enter(phase, thread == phase % COUNT));
                        let slot = slots + paged.reads[phase].slot.index() * STRIDE;
                        let wanted = blake3::hash(&content[phase * STRIDE..][..PAGE_BYTES]);
                        assert_eq!(hash(slot as *const u8), wanted, "page {phase}");
                        barrier.wait();
                    }
                });
            }
        });
        drop(pager);
        arena.bytes_mut().fill(0);
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn interrupted_and_short_reads_are_completed() {
    let fate: Fate = |n, buffer, offset, file| match n % 4 {
        0 => Err(io::ErrorKind::Interrupted.into()),
        1 => {
            let short = buffer.len().min(4096);
            ReadAt::read_at(file, &mut buffer[..short], offset)
        }
        2 => {
            let short = buffer.len().min(777);
            ReadAt::read_at(file, &mut buffer[..short], offset)
        }
        _ => ReadAt::read_at(file, buffer, offset),
    };
    assert_eq!(run("short", Some(fate), fate), None);
    assert_eq!(run("short-buffered", None, fate), None);
}

#[test]
fn a_filesystem_may_refuse_direct_reads() {
    let refuse: Fate = |_, _, _, _| Err(io::Error::from_raw_os_error(libc::EINVAL));
    assert_eq!(run("refused", Some(refuse), sound), None);
}

#[test]
fn a_fault_that_passes_is_retried() {
    let once: Fate = |n, buffer, offset, file| match n {
        5 => Err(io::Error::from_raw_os_error(libc::EIO)),
        _ => ReadAt::read_at(file, buffer, offset),
    };
    assert_eq!(run("once", Some(once), sound), None);
}

/// With threads, another read may be the one that meets the second fault.
#[test]
fn a_ring_retries_once() {
    let twice: Fate = |n, buffer, offset, file| match n {
        5 | 6 => Err(io::Error::from_raw_os_error(libc::EIO)),
        _ => ReadAt::read_at(file, buffer, offset),
    };
    let error = run_with(&RING, "twice", Some(twice), sound);
    assert!(error.is_some_and(|e| e.contains("os error 5")) || !has_rings());
}

#[test]
fn a_fault_that_stays_ends_paging() {
    let broken: Fate = |n, buffer, offset, file| match n {
        0..5 => ReadAt::read_at(file, buffer, offset),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    };
    let error = run("broken", Some(broken), sound).unwrap();
    assert_eq!(
        error,
        "5 model.omex: cannot read a page of the packed model: Input/output error (os error 5)"
    );
}

#[test]
fn a_file_that_ends_early_is_an_integrity_error() {
    let ends: Fate = |n, buffer, offset, file| match n {
        0..7 => ReadAt::read_at(file, buffer, offset),
        _ => Ok(0),
    };
    for direct in [None, Some(ends)] {
        let error = run("ends", direct, ends).unwrap();
        assert_eq!(
            error,
            "6 model.omex: the packed model was truncated while it was used"
        );
    }
}
