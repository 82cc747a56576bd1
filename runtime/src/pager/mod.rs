//! Brings pages of weights that do not stay in memory, as the plan says.
//!
//! The plan's reads start in its order, each when its moment has come: threads
//! that compute tell which phase begins and wait for the pages that it needs.
//! I/O threads start and perform them ([`threads`]); or the threads that compute
//! start them, where the system performs reads by itself and nothing is to be
//! decompressed ([`ring`]). Every decision is the plan's: see [`omex_plan::paging`] for
//! what makes the moments safe.
//!
//! A fault ends paging for good: whoever waits is told, and the engine turns
//! the fault into the run's error.

mod frames;
mod gather;
mod memory;
mod ring;
#[cfg(test)]
mod tests;
mod threads;
pub(crate) mod timeline;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use omex_plan::packed::Page;
use omex_plan::paging::{PagePlan, gather_stride_bytes, gathered_unit_bytes};
use omex_plan::{PageId, Plan};

use crate::error::RunError;
use crate::load::{LoadOptions, damaged_page};
use crate::os::file::{Stamp, UncachedFile};
use crate::os::memory::Region;
use crate::os::uring::Ring;
use crate::pool::Signal;

use frames::{Frames, frames_bytes};
use gather::Gather;
pub(crate) use gather::Gathered;
use memory::Window;
use ring::Flight;
use timeline::Timeline;

/// Stack of an I/O thread: reads and hashing need a few KiB.
pub(crate) const IO_STACK_BYTES: usize = 128 << 10;

/// Bytes of it that they touch at most.
pub(crate) const IO_STACK_USED_BYTES: usize = 32 << 10;

/// Bytes of the heap that the pager of a plan takes.
pub(crate) fn pager_bytes(plan: &Plan, paged: &PagePlan) -> u64 {
    let of = |count: usize, bytes: usize| (count * bytes) as u64;
    of(
        paged.reads.len(),
        size_of::<Read>() + size_of::<AtomicU64>(),
    ) + of(plan.phases.len(), size_of::<Range<usize>>() + 1)
        + of(plan.weights.pages.len(), size_of::<PageState>())
        + of(paged.reads.len(), 1 + size_of::<omex_plan::BufferId>())
        + of(paged.depth as usize, size_of::<Option<Flight>>())
        + match paged.stages {
            Some(_) => frames_bytes(paged.depth, paged.frames.len()),
            None => 0,
        }
}

/// Reads of a packed model into the arena.
#[derive(Debug)]
pub(crate) struct Pager {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The head of the current pass may run within it.
    head_ahead: AtomicBool,
}

/// A packed model within an open file.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) file: UncachedFile,
    pub(crate) path: PathBuf,
    /// Where the model starts in the file.
    pub(crate) offset: u64,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    /// The file as it was when it was loaded.
    stamp: Stamp,
    reads: Vec<Read>,
    /// The reads that each phase is the first to need.
    needed_by: Vec<Range<usize>>,
    /// Whether a read may start with a phase.
    opens: Vec<bool>,
    body_phases: u64,
    body_reads: usize,
    pages: Vec<PageState>,
    gather: Option<Gather>,
    frames: Option<Frames>,
    timeline: Option<Timeline>,
    /// Performs the reads, where there are no threads for them.
    ring: Option<Ring>,
    /// The current pass; the first is 1.
    pass: AtomicU64,
    /// Per read: the pass for which its pages are in memory.
    arrived: Vec<AtomicU64>,
    arrivals: Signal,
    state: Mutex<State>,
    changed: Condvar,
    failed: AtomicBool,
    fault: Mutex<Option<(Origin, Fault)>>,
}

/// The file that something was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Pages,
    Frames,
}

#[derive(Debug)]
struct Read {
    /// In the packed model.
    offset: u64,
    bytes: usize,
    slot: Window,
    slot_index: usize,
    start_phase: i64,
    pages: Range<usize>,
    compressed: bool,
}

#[derive(Debug)]
struct PageState {
    page: Page,
    resident: bool,
    /// Its digest was checked once.
    verified: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Phases since the beginning, as if every pass had a body and a head.
    clock: u64,
    /// The next read to start: pass and index.
    next: (u64, usize),
    /// The running pass has a head, and passes to come are expected to.
    head_follows: bool,
    /// Per slot: a read into it is in flight.
    busy: Vec<bool>,
    /// The ring's reads, at most the plan's `depth`.
    flights: Vec<Option<Flight>>,
    /// A thread sleeps until the ring completes a read.
    reaping: bool,
    /// I/O threads that have started.
    running: u32,
    stop: bool,
}

/// Why paging ended.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Io(io::ErrorKind, Option<i32>),
    Truncated,
    Changed,
    Digest(usize),
    /// The frame of a page is none, or another page's.
    Frame(usize),
}

impl Pager {
    /// Starts the reads of a checked plan. `arena` outlives the pager.
    ///
    /// Errors: the file cannot be examined, or a thread is refused.
    pub(crate) fn start(
        plan: &Plan,
        paged: &PagePlan,
        source: Source,
        frames: Option<Source>,
        arena: &Region,
        options: &LoadOptions,
    ) -> Result<Pager, RunError> {
        let stamp_of = |source: &Source| {
            let stamp = source.file.stamp();
            stamp.map_err(RunError::io("examine the packed model", &source.path))
        };
        let stamp = stamp_of(&source)?;
        let frames = match frames.zip(paged.stages) {
            None => None,
            Some((source, stages)) => {
                let bytes = plan.buffers[stages.index()].bytes / u64::from(paged.depth);
                Some(Frames::new(
                    stamp_of(&source)?,
                    source,
                    paged.frames.clone(),
                    Window::of(plan, stages, arena),
                    bytes as usize,
                ))
            }
        };
        let mut slots = Vec::new();
        let reads: Vec<Read> = paged
            .reads
            .iter()
            .map(|read| {
                let slot_index = slots.iter().position(|s| *s == read.slot);
                let slot_index = slot_index.unwrap_or_else(|| {
                    slots.push(read.slot);
                    slots.len() - 1
                });
                let first = read.first_page.index();
                Read {
                    offset: plan.weights.pages[first].file_offset,
                    bytes: PagePlan::read_bytes(plan, read) as usize,
                    slot: Window::of(plan, read.slot, arena),
                    slot_index,
                    start_phase: read.start_phase.into(),
                    pages: first..first + read.pages as usize,
                    compressed: read.compressed,
                }
            })
            .collect();
        let phases = plan.phases.len();
        let mut opens = vec![false; phases];
        let mut needed_by = vec![0..0; phases];
        for (i, read) in paged.reads.iter().enumerate() {
            opens[read.start_phase.rem_euclid(phases as i32) as usize] = true;
            let needed: &mut Range<usize> = &mut needed_by[read.first_phase as usize];
            if needed.start == needed.end {
                needed.start = i;
            }
            needed.end = i + 1;
        }
        let pages = plan.weights.pages.iter().zip(&paged.resident);
        let pages = pages.map(|(page, resident)| PageState {
            page: page.clone(),
            resident: resident.is_some(),
            verified: AtomicBool::new(resident.is_some()),
        });
        let gather = paged.gather.map(|buffer| {
            let unit = gathered_unit_bytes(plan).unwrap_or(0);
            let stride = gather_stride_bytes(unit) as usize;
            Gather::new(Window::of(plan, buffer, arena), stride, plan.threads_max)
        });
        let head = |read: &&omex_plan::paging::PageRead| read.first_phase < plan.body_phases;
        let ring = match options.io_uring && frames.is_none() && !reads.is_empty() {
            true => ring::ring_for(&source, &reads, paged.depth),
            false => None,
        };
        let flights = match ring {
            Some(_) => paged.depth as usize,
            None => 0,
        };
        let timeline = options.trace.then(|| {
            let reader = match ring {
                Some(_) => "io_uring",
                None => "threads",
            };
            Timeline::new(plan, reader)
        });
        let shared = Arc::new(Shared {
            source,
            stamp,
            needed_by,
            opens,
            body_phases: plan.body_phases.into(),
            body_reads: paged.reads.iter().take_while(head).count(),
            pages: pages.collect(),
            gather,
            frames,
            timeline,
            ring,
            pass: AtomicU64::new(0),
            arrived: reads.iter().map(|_| AtomicU64::new(0)).collect(),
            arrivals: Signal::default(),
            state: Mutex::new(State {
                clock: phases as u64,
                next: (1, 0),
                head_follows: true,
                busy: vec![false; slots.len()],
                flights: vec![None; flights],
                reaping: false,
                running: 0,
                stop: false,
            }),
            changed: Condvar::new(),
            failed: AtomicBool::new(false),
            fault: Mutex::new(None),
            reads,
        });
        let mut pager = Pager {
            shared,
            threads: Vec::new(),
            head_ahead: AtomicBool::new(false),
        };
        if pager.shared.ring.is_some() {
            pager.shared.advance(|_| ());
        } else if !pager.shared.reads.is_empty() {
            pager.start_threads(paged.depth)?;
        }
        Ok(pager)
    }

    /// A new pass begins with its body. `head_follows`: its logits will be asked for.
    pub(crate) fn begin_body(&self, head_follows: bool) {
        let shared = &self.shared;
        let pass = shared.pass.load(Ordering::Relaxed) + 1;
        self.head_ahead.store(head_follows, Ordering::Relaxed);
        shared.begin(pass, 0, 0, head_follows);
    }

    /// The head begins: of the current pass, or once more.
    pub(crate) fn begin_head(&self) {
        let shared = &self.shared;
        let current = self.head_ahead.swap(false, Ordering::Relaxed);
        let pass = shared.pass.load(Ordering::Relaxed) + u64::from(!current);
        shared.begin(pass, shared.body_phases, shared.body_reads, true);
    }

    /// Waits until the pages that a phase of the current pass needs are there.
    /// One thread is the `first` in a phase and calls it before it computes.
    ///
    /// Returns false after a fault.
    pub(crate) fn enter(&self, phase: usize, first: bool) -> bool {
        let shared = &self.shared;
        let pass = shared.pass.load(Ordering::Relaxed);
        if first && shared.opens[phase] {
            let clock = pass * shared.phases() + phase as u64;
            shared.advance(|state| state.clock = clock);
        }
        if let Some(ring) = &shared.ring {
            shared.reap_ready(ring);
        }
        let timeline = shared.timeline.as_ref().filter(|_| first);
        let from_ns = timeline.map_or(0, Timeline::now_ns);
        let mut waited = false;
        for read in shared.needed_by[phase].clone() {
            loop {
                let seen = shared.arrivals.value();
                if shared.arrived[read].load(Ordering::Acquire) == pass {
                    break;
                }
                if shared.failed.load(Ordering::Acquire) {
                    return false;
                }
                waited = true;
                match &shared.ring {
                    None => shared.arrivals.wait_while(seen),
                    Some(ring) => shared.reap_or_wait(ring, pass, read, seen),
                }
            }
        }
        if let Some(timeline) = timeline {
            timeline.phase(phase, from_ns, waited);
        }
        true
    }

    /// Whether the pages that a phase of the current pass is the first to need
    /// are there.
    pub(crate) fn is_ready(&self, phase: usize) -> bool {
        let shared = &self.shared;
        let pass = shared.pass.load(Ordering::Relaxed);
        let mut reads = shared.needed_by[phase].clone();
        reads.all(|read| shared.arrived[read].load(Ordering::Relaxed) == pass)
    }

    /// The phases since the pass or its head began are over.
    pub(crate) fn leave(&self) {
        if let Some(timeline) = &self.shared.timeline {
            timeline.end();
        }
    }

    pub(crate) fn timeline(&self) -> Option<&Timeline> {
        self.shared.timeline.as_ref()
    }

    /// Reads one unit of a table, unless its page stays in memory: `offset` and
    /// `bytes` within `page`. `None` for a page in memory, `Some(None)` after a
    /// fault.
    pub(crate) fn gather(
        &self,
        page: PageId,
        offset: u64,
        bytes: usize,
    ) -> Option<Option<Gathered<'_>>> {
        let shared = &self.shared;
        let gather = shared.gather.as_ref()?;
        let state = &shared.pages[page.index()];
        if state.resident {
            return None;
        }
        let mut part = gather.claim();
        let result = shared
            .verify_through(page.index(), part.bytes_mut())
            .and_then(|()| {
                let start = shared.source.offset + state.page.file_offset + offset;
                part.read(start, bytes, |buffer, wanted, at| {
                    shared.source.file.read_at(buffer, wanted, at)
                })
                .map_err(|e| fault_of(&e))
            });
        match result {
            Ok(()) => Some(Some(part)),
            Err(fault) => {
                shared.fail(Origin::Pages, fault);
                Some(None)
            }
        }
    }

    /// What ended paging, if something did.
    pub(crate) fn fault(&self) -> Option<RunError> {
        let (origin, fault) = (*lock(&self.shared.fault))?;
        Some(self.shared.error(origin, fault))
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // An I/O thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Panics while a lock is held are our bugs and end the thread; the data stays
/// usable for an orderly end.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn phases(&self) -> u64 {
        self.opens.len() as u64
    }

    /// Sets the pass, the phase that begins and the first read that still matters.
    fn begin(&self, pass: u64, phase: u64, read: usize, head_follows: bool) {
        self.pass.store(pass, Ordering::Relaxed);
        self.advance(|state| {
            state.next = state.next.max((pass, read));
            if state.next.1 == self.reads.len() {
                state.next = (pass + 1, 0);
            }
            state.head_follows = head_follows;
            state.clock = pass * self.phases() + phase;
        });
        if let Some(ring) = &self.ring {
            self.reap_ready(ring);
        }
    }

    /// Starts the reads whose moment comes with what `happened`.
    fn advance(&self, happened: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        happened(&mut state);
        match &self.ring {
            None => {
                drop(state);
                self.changed.notify_all();
            }
            Some(ring) => self.submit(ring, state),
        }
    }

    /// A read has ended with this result.
    fn end(&self, pass: u64, index: usize, result: Result<(), Fault>) {
        match result {
            Ok(()) => self.advance(|state| {
                state.busy[self.reads[index].slot_index] = false;
                for lane in &mut state.flights {
                    lane.take_if(|flight| flight.is_of(pass, index));
                }
                self.arrived[index].store(pass, Ordering::Release);
                // The lock makes this thread the only one to set it.
                self.arrivals.increment();
            }),
            Err(fault) => self.fail(self.origin(index), fault),
        }
    }

    /// The next read, when its moment has come and its slot is idle.
    fn take(&self, state: &mut State) -> Option<(u64, usize)> {
        let running = state.clock / self.phases();
        while !state.head_follows && state.next.1 == self.body_reads {
            // Whether the head follows is known of the pass that runs only.
            if state.next.0 > running {
                return None;
            }
            state.next = (state.next.0 + 1, 0);
        }
        let (pass, index) = state.next;
        let read = &self.reads[index];
        let moment = (pass * self.phases()).checked_add_signed(read.start_phase);
        let moment = moment.expect("passes are counted from 1");
        if state.clock < moment || std::mem::replace(&mut state.busy[read.slot_index], true) {
            return None;
        }
        state.next = if index + 1 < self.reads.len() {
            (pass, index + 1)
        } else {
            (pass + 1, 0)
        };
        Some((pass, index))
    }

    /// Takes what a read brought: its pages are verified the first time.
    fn accept(&self, index: usize) -> Result<(), Fault> {
        let read = &self.reads[index];
        if !read.compressed && (index == 0 || index == self.body_reads) {
            self.require_unchanged()?;
        }
        // `take` marked the slot as busy.
        let bytes = read.slot.bytes_mut();
        for page in read.pages.clone() {
            let state = &self.pages[page];
            if !state.verified.load(Ordering::Relaxed) {
                let start = (state.page.file_offset - read.offset) as usize;
                let content = &bytes[start..start + state.page.bytes as usize];
                if blake3::hash(content).as_bytes() != &state.page.digest {
                    return Err(Fault::Digest(page));
                }
                state.verified.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// The file that a read is of.
    fn origin(&self, index: usize) -> Origin {
        match self.reads[index].compressed {
            true => Origin::Frames,
            false => Origin::Pages,
        }
    }

    /// Verifies a page of which only units are read, piece by piece through `buffer`.
    fn verify_through(&self, page: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        let state = &self.pages[page];
        if state.verified.load(Ordering::Acquire) {
            return Ok(());
        }
        self.require_unchanged()?;
        let mut hasher = blake3::Hasher::new();
        let mut done = 0;
        while done < state.page.bytes {
            let wanted = (state.page.bytes - done).min(buffer.len() as u64) as usize;
            let at = self.source.offset + state.page.file_offset + done;
            read_twice(&self.source, buffer, wanted, at).map_err(|e| fault_of(&e))?;
            hasher.update(&buffer[..wanted]);
            done += wanted as u64;
        }
        if hasher.finalize().as_bytes() != &state.page.digest {
            return Err(Fault::Digest(page));
        }
        state.verified.store(true, Ordering::Release);
        Ok(())
    }

    /// Pages are verified once; a file that changes later must not go unnoticed.
    fn require_unchanged(&self) -> Result<(), Fault> {
        unchanged(&self.source, self.stamp)
    }

    fn fail(&self, origin: Origin, fault: Fault) {
        lock(&self.fault).get_or_insert((origin, fault));
        let state = lock(&self.state);
        self.failed.store(true, Ordering::Release);
        self.arrivals.increment();
        drop(state);
        self.changed.notify_all();
    }

    fn error(&self, origin: Origin, fault: Fault) -> RunError {
        let (source, what) = match (origin, &self.frames) {
            (Origin::Frames, Some(frames)) => (&frames.source, "the file of compressed pages"),
            (Origin::Frames, None) | (Origin::Pages, _) => (&self.source, "the packed model"),
        };
        let path: &Path = &source.path;
        let place = |page: usize| match (origin, &self.frames) {
            (Origin::Frames, Some(frames)) => frames.of_pages[page].file_offset,
            (Origin::Frames, None) | (Origin::Pages, _) => {
                self.source.offset + self.pages[page].page.file_offset
            }
        };
        match fault {
            Fault::Io(kind, code) => {
                let error = match code {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => kind.into(),
                };
                RunError::io("read a page of the packed model", path)(error)
            }
            Fault::Truncated => {
                let message = format!("{what} was truncated while it was used");
                RunError::integrity(path, None, message)
            }
            Fault::Changed => {
                let message = format!("{what} was changed while it was used");
                RunError::integrity(path, None, message)
            }
            Fault::Digest(page) => RunError::integrity(path, Some(place(page)), damaged_page(page)),
            Fault::Frame(page) => RunError::integrity(
                path,
                Some(place(page)),
                format!("the compressed copy of page {page} is damaged"),
            ),
        }
    }
}

/// Reads once more after an error: it may have been a passing fault of the device.
fn read_twice(source: &Source, bytes: &mut [u8], wanted: usize, at: u64) -> io::Result<()> {
    let read = source.file.read_at(bytes, wanted, at);
    read.or_else(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Err(e),
        _ => source.file.read_at(bytes, wanted, at),
    })
}

fn unchanged(source: &Source, stamp: Stamp) -> Result<(), Fault> {
    match source.file.stamp() {
        Ok(now) if now == stamp => Ok(()),
        Ok(now) if now.bytes < stamp.bytes => Err(Fault::Truncated),
        Ok(_) => Err(Fault::Changed),
        Err(e) => Err(fault_of(&e)),
    }
}

fn fault_of(e: &io::Error) -> Fault {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Fault::Truncated,
        kind => Fault::Io(kind, e.raw_os_error()),
    }
}
