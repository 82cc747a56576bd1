//! Reads by I/O threads, which also decompress.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::frames::{Decompressor, Frames};
use super::timeline::Timeline;
use super::{Fault, IO_STACK_BYTES, Origin, Pager, Shared, fault_of, lock, read_twice, unchanged};
use crate::error::RunError;
use crate::pool::indivisible;

impl Pager {
    /// Starts `depth` threads.
    ///
    /// Errors: one is refused.
    pub(super) fn start_threads(&mut self, depth: u32) -> Result<(), RunError> {
        for index in 0..depth {
            let shared = Arc::clone(&self.shared);
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
            self.threads.push(thread);
        }
        // A thread that starts allocates, which has to be over with loading.
        let shared = &self.shared;
        let mut state = lock(&shared.state);
        while state.running < depth {
            let changed = shared.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Shared {
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
            let mut result = Ok(());
            // Computing threads would wait for ever for a thread that is gone.
            indivisible(|| {
                let read = self.read(index, thread, decompressor.as_mut());
                result = read.and_then(|()| self.accept(index));
            });
            if let (Some(timeline), Some(from_ns)) = (&self.timeline, from_ns) {
                timeline.read(thread, index, from_ns);
            }
            self.end(pass, index, result);
            state = lock(&self.state);
        }
    }

    /// Performs a read.
    fn read(
        &self,
        index: usize,
        thread: u32,
        decompressor: Option<&mut Decompressor>,
    ) -> Result<(), Fault> {
        let read = &self.reads[index];
        match (self.origin(index), &self.frames, decompressor) {
            (Origin::Frames, Some(frames), Some(decompressor)) => {
                self.read_frames(index, frames, frames.stage(thread), decompressor)
            }
            (Origin::Pages, _, _) => {
                let at = self.source.offset + read.offset;
                // `take` marked the slot as busy.
                let bytes = read.slot.bytes_mut();
                read_twice(&self.source, bytes, read.bytes, at).map_err(|e| fault_of(&e))
            }
            (Origin::Frames, _, _) => unreachable!("reads of frames have frames and a stage"),
        }
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
}
