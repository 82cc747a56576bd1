//! Single units of a table, read by the threads that compute.

use std::io;
use std::sync::{Mutex, MutexGuard, TryLockError};

use omex_plan::paging::DIRECT_ALIGN;

use super::memory::Window;

/// One part of a buffer for each thread.
#[derive(Debug)]
pub(super) struct Gather {
    window: Window,
    stride: usize,
    parts: Vec<Mutex<()>>,
}

/// A unit in memory, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Gathered<'a> {
    part: &'a mut [u8],
    first: usize,
    bytes: usize,
    _claim: MutexGuard<'a, ()>,
}

impl Gather {
    pub(super) fn new(window: Window, stride: usize, threads: u32) -> Gather {
        Gather {
            window,
            stride,
            parts: (0..threads).map(|_| Mutex::new(())).collect(),
        }
    }

    /// A part that no other thread has: there is one for each.
    pub(super) fn claim(&self) -> Gathered<'_> {
        loop {
            for (index, part) in self.parts.iter().enumerate() {
                let claim = match part.try_lock() {
                    Ok(claim) => claim,
                    Err(TryLockError::Poisoned(e)) => e.into_inner(),
                    Err(TryLockError::WouldBlock) => continue,
                };
                return Gathered {
                    part: self.window.part(index, self.stride),
                    first: 0,
                    bytes: 0,
                    _claim: claim,
                };
            }
            std::hint::spin_loop();
        }
    }
}

impl Gathered<'_> {
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.part
    }

    /// Reads `bytes` bytes from `start` on with `read`, which takes a buffer,
    /// the wanted bytes and an offset; whole blocks can bypass the page cache.
    pub(super) fn read(
        &mut self,
        start: u64,
        bytes: usize,
        read: impl Fn(&mut [u8], usize, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let block = start / DIRECT_ALIGN * DIRECT_ALIGN;
        self.first = (start - block) as usize;
        self.bytes = bytes;
        let wanted = self.first + bytes;
        read(self.part, wanted, block).or_else(|_| read(self.part, wanted, block))
    }

    /// The unit's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.part[self.first..self.first + self.bytes]
    }
}
