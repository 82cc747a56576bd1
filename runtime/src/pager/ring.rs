//! Reads by the system's ring: the thread that lets a read start submits it,
//! and threads that lack a page take completions until it is there. A thread
//! that lacks none takes those that have come, so that the next reads start.
//!
//! Only the common case is the ring's: a read that fails or ends early is
//! completed as I/O threads would.

use std::io;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use super::timeline::Timeline;
use super::{Origin, Read, Shared, Source, State, fault_of, lock, read_twice};
use crate::os::file::DIRECT_ALIGN;
use crate::os::uring::Ring;

/// A read that was submitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pass: u64,
    read: usize,
    /// When, on the timeline.
    from_ns: u64,
    /// Its completion was taken; its pages are being verified.
    landed: bool,
}

impl Flight {
    pub(super) fn is_of(&self, pass: u64, read: usize) -> bool {
        (self.pass, self.read) == (pass, read)
    }
}

/// A ring for these reads, `depth` in flight: where the system allows one and
/// every read can bypass the page cache.
pub(super) fn ring_for(source: &Source, reads: &[Read], depth: u32) -> Option<Ring> {
    let is_direct = |read: &Read| {
        let at = source.offset + read.offset;
        let direct = source.file.direct(read.slot.bytes_mut(), read.bytes, at);
        direct.is_some()
    };
    let ring = reads.iter().all(is_direct).then(|| Ring::new(depth));
    ring?.ok()
}

impl Shared {
    /// Submits the reads whose moment has come.
    pub(super) fn submit(&self, ring: &Ring, mut state: MutexGuard<'_, State>) {
        while !self.failed.load(Ordering::Relaxed)
            && let Some(lane) = state.flights.iter().position(Option::is_none)
            && let Some((pass, index)) = self.take(&mut state)
        {
            state.flights[lane] = Some(Flight {
                pass,
                read: index,
                from_ns: self.timeline.as_ref().map_or(0, Timeline::now_ns),
                landed: false,
            });
            let read = &self.reads[index];
            let at = self.source.offset + read.offset;
            // `take` marked the slot as busy.
            let direct = self
                .source
                .file
                .direct(read.slot.bytes_mut(), read.bytes, at);
            let (file, bytes) = direct.expect("`ring_for` saw that the read can be direct");
            if let Err(e) = read.slot.read_by(ring, lane as u64, file, bytes, at) {
                drop(state);
                self.fail(Origin::Pages, fault_of(&e));
                return;
            }
        }
    }

    /// Takes the completions that have come.
    pub(super) fn reap_ready(&self, ring: &Ring) {
        // Whoever has the lock looks for completions too, or lets reads start.
        while let Ok(state) = self.state.try_lock() {
            if state.reaping || !self.reap(ring, state) {
                return;
            }
        }
    }

    /// Takes a completion, or waits for one or for another thread's arrivals:
    /// that of `read` for `pass`. `seen` is the value of arrivals before the
    /// caller looked for it.
    pub(super) fn reap_or_wait(&self, ring: &Ring, pass: u64, read: usize, seen: u32) {
        let mut state = lock(&self.state);
        if self.arrived[read].load(Ordering::Relaxed) == pass {
            return;
        }
        let flights = || state.flights.iter().flatten();
        let landed = flights().any(|f| f.landed && f.is_of(pass, read));
        let flying = flights().any(|f| !f.landed);
        // One thread waits for the ring; what it takes wakes the others. The
        // first thread of a phase lets its reads start before it comes here.
        if state.reaping || landed || !flying {
            drop(state);
            self.arrivals.wait_while(seen);
            return;
        }
        state.reaping = true;
        drop(state);
        let result = ring.wait();
        state = lock(&self.state);
        state.reaping = false;
        match result {
            Ok(()) => {
                self.reap(ring, state);
            }
            Err(e) => {
                drop(state);
                self.fail(Origin::Pages, fault_of(&e));
            }
        }
    }

    /// Takes a completion, if there is one, and lets the next read start.
    fn reap(&self, ring: &Ring, mut state: MutexGuard<'_, State>) -> bool {
        let Some((lane, result)) = ring.completion() else {
            return false;
        };
        let lane = lane as usize;
        let flight = state.flights[lane].as_mut();
        let flight = flight.expect("completions are of reads in flight");
        flight.landed = true;
        let Flight {
            pass,
            read,
            from_ns,
            ..
        } = *flight;
        drop(state);
        if let Some(timeline) = &self.timeline {
            timeline.read(lane as u32, read, from_ns);
        }
        let result = self.complete(read, result).map_err(|e| fault_of(&e));
        self.end(pass, read, result.and_then(|()| self.accept(read)));
        true
    }

    /// Makes a read whole of which the ring says `result`.
    fn complete(&self, index: usize, result: io::Result<usize>) -> io::Result<()> {
        let (read, file) = (&self.reads[index], &self.source.file);
        let at = self.source.offset + read.offset;
        // `take` marked the slot as busy.
        let bytes = read.slot.bytes_mut();
        let result = match file.direct(bytes, read.bytes, at) {
            Some((direct, aligned)) => direct.completed(&mut bytes[..aligned], at, result),
            None => unreachable!("`ring_for` saw that the read can be direct"),
        };
        let done = match result {
            Ok(count) if count >= read.bytes => return Ok(()),
            Ok(count) => count as u64 / DIRECT_ALIGN * DIRECT_ALIGN,
            // No faults of the device: a signal came, or direct reads are refused.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => 0,
            Err(_) => return file.read_at(bytes, read.bytes, at),
        };
        let rest = &mut bytes[done as usize..];
        read_twice(&self.source, rest, read.bytes - done as usize, at + done)
    }
}
