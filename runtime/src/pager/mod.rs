//! Brings pages of weights that do not stay in memory, as the plan says.
//!
//! I/O threads take the plan's reads in order and start each when its moment
//! has come; threads that compute tell which phase begins and wait for the
//! pages that it needs. Every decision is the plan's: see
//! [`omex_plan::paging`] for what makes the moments safe.
//!
//! A fault ends paging for good: whoever waits is told, and the engine turns
//! the fault into the run's error.

mod frames;
mod gather;
mod memory;
#[cfg(test)]
mod tests;
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
use crate::os::file::{Stamp, UncachedFile};
use crate::os::memory::Region;
use crate::pool::Signal;

use frames::{Decompressor, Frames, frames_bytes};
use gather::Gather;
pub(crate) use gather::Gathered;
use memory::Window;
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
    head_follows: bool,
    /// Per slot: a read into it is in flight.
    busy: Vec<bool>,
    /// I/O threads that run.
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
    /// Starts the reads of a checked plan. `arena` outlives the pager; `timeline`
    /// is told what happens when.
    ///
    /// Errors: the file cannot be examined, or a thread is refused.
    pub(crate) fn start(
        plan: &Plan,
        paged: &PagePlan,
        source: Source,
        frames: Option<Source>,
        arena: &Region,
        timeline: Option<Timeline>,
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
            pass: AtomicU64::new(0),
            arrived: reads.iter().map(|_| AtomicU64::new(0)).collect(),
            arrivals: Signal::default(),
            state: Mutex::new(State {
                clock: phases as u64,
                next: (1, 0),
                head_follows: true,
                busy: vec![false; slots.len()],
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
        if !pager.shared.reads.is_empty() {
            for index in 0..paged.depth {
                let shared = Arc::clone(&pager.shared);
                let mut decompressor = None;
                if shared.frames.is_some() {
                    decompressor = Decompressor::new();
                    if decompressor.is_none() {
                        return Err(RunError::Memory("no memory to decompress with".to_owned()));
                    }
                }
                let thread = std::thread::Builder::new()
                    .name(format!("omex-io-{index}"))
                    .stack_size(IO_STACK_BYTES)
                    .spawn(move || shared.serve(index, decompressor))
                    .map_err(|e| RunError::Memory(format!("cannot start an I/O thread: {e}")))?;
                pager.threads.push(thread);
            }
            // A thread that starts allocates, which has to be over with loading.
            let shared = &pager.shared;
            let mut state = lock(&shared.state);
            while state.running < paged.depth {
                let changed = shared.changed.wait(state);
                state = changed.unwrap_or_else(PoisonError::into_inner);
            }
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
            shared.set_clock(pass, phase as u64);
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
                shared.arrivals.wait_while(seen);
            }
        }
        if let Some(timeline) = timeline {
            timeline.phase(phase, from_ns, waited);
        }
        true
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
        let mut state = lock(&self.state);
        state.next = state.next.max((pass, read));
        if state.next.1 == self.reads.len() {
            state.next = (pass + 1, 0);
        }
        state.head_follows = head_follows;
        state.clock = pass * self.phases() + phase;
        drop(state);
        self.changed.notify_all();
    }

    fn set_clock(&self, pass: u64, phase: u64) {
        lock(&self.state).clock = pass * self.phases() + phase;
        self.changed.notify_all();
    }

    /// An I/O thread's work.
    fn serve(&self, thread: u32, mut decompressor: Option<Decompressor>) {
        let mut state = lock(&self.state);
        state.running += 1;
        self.changed.notify_all();
        while !state.stop && !self.failed.load(Ordering::Relaxed) {
            let Some((pass, index)) = self.take(&mut state) else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let from_ns = self.timeline.as_ref().map(Timeline::now_ns);
            let result = self.read(index, thread, decompressor.as_mut());
            if let (Some(timeline), Some(from_ns)) = (&self.timeline, from_ns) {
                timeline.read(thread, index, from_ns);
            }
            state = lock(&self.state);
            state.busy[self.reads[index].slot_index] = false;
            match result {
                Ok(()) => {
                    self.arrived[index].store(pass, Ordering::Release);
                    // The lock makes this thread the only one to set it.
                    self.arrivals.increment();
                    self.changed.notify_all();
                }
                Err(fault) => {
                    drop(state);
                    self.fail(self.origin(index), fault);
                    return;
                }
            }
        }
    }

    /// The next read, when its moment has come and its slot is idle.
    fn take(&self, state: &mut State) -> Option<(u64, usize)> {
        let (pass, index) = state.next;
        let read = &self.reads[index];
        let moment = (pass * self.phases()).checked_add_signed(read.start_phase);
        let moment = moment.expect("passes are counted from 1");
        if state.clock < moment || std::mem::replace(&mut state.busy[read.slot_index], true) {
            return None;
        }
        let last = if state.head_follows || index >= self.body_reads {
            self.reads.len()
        } else {
            self.body_reads
        };
        state.next = if index + 1 < last {
            (pass, index + 1)
        } else {
            (pass + 1, 0)
        };
        Some((pass, index))
    }

    /// Performs a read; its pages are verified the first time.
    fn read(
        &self,
        index: usize,
        thread: u32,
        decompressor: Option<&mut Decompressor>,
    ) -> Result<(), Fault> {
        let read = &self.reads[index];
        // `take` marked the slot as busy.
        let bytes = read.slot.bytes_mut();
        match (self.origin(index), &self.frames, decompressor) {
            (Origin::Frames, Some(frames), Some(decompressor)) => {
                self.read_frames(index, frames, frames.stage(thread), decompressor)?;
            }
            (Origin::Pages, _, _) => {
                if index == 0 || index == self.body_reads {
                    self.require_unchanged()?;
                }
                let at = self.source.offset + read.offset;
                read_twice(&self.source, bytes, read.bytes, at).map_err(|e| fault_of(&e))?;
            }
            (Origin::Frames, _, _) => unreachable!("reads of frames have frames and a stage"),
        }
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

    /// Reads the frames of a read's pages to `stage` and decompresses them.
    fn read_frames(
        &self,
        index: usize,
        frames: &Frames,
        stage: &mut [u8],
        decompressor: &mut Decompressor,
    ) -> Result<(), Fault> {
        let read = &self.reads[index];
        unchanged(&frames.source, frames.stamp)?;
        let of_pages = &frames.of_pages[read.pages.clone()];
        let (first, last) = (of_pages[0], of_pages[of_pages.len() - 1]);
        let start = first.file_offset;
        let wanted = (last.file_offset + last.bytes - start) as usize;
        read_twice(&frames.source, stage, wanted, start).map_err(|e| fault_of(&e))?;
        let slot = read.slot.bytes_mut();
        for (page, frame) in read.pages.clone().zip(of_pages) {
            let content = &self.pages[page].page;
            let at = (content.file_offset - read.offset) as usize;
            let into = &mut slot[at..at + content.bytes as usize];
            let from = &stage[(frame.file_offset - start) as usize..][..frame.bytes as usize];
            if !decompressor.fill(into, from) {
                return Err(Fault::Frame(page));
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
            self.source
                .file
                .read_at(buffer, wanted, at)
                .map_err(|e| fault_of(&e))?;
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
            Fault::Digest(page) => RunError::integrity(
                path,
                Some(place(page)),
                format!("page {page} of the packed model does not match its digest"),
            ),
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
