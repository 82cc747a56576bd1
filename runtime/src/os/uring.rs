//! Reads that the system performs by itself: io_uring(7).
// The system writes to memory that only an address stands for meanwhile.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use io_uring::{IoUring, opcode, types};

/// A queue of reads and one of their completions. Threads share it.
pub struct Ring {
    ring: IoUring,
    /// Reads without a completion yet. Who holds it uses the queues.
    in_flight: Mutex<u32>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} in flight)", self.lock())
    }
}

impl Ring {
    /// For at most `reads_max` reads in flight.
    ///
    /// Errors: the system has no such rings (Linux before 5.6, emulators), or
    /// does not allow them (seccomp, `kernel.io_uring_disabled`).
    pub fn new(reads_max: u32) -> io::Result<Ring> {
        let ring = IoUring::new(reads_max)?;
        // What reads to one buffer came with.
        if !ring.params().is_feature_rw_cur_pos() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Ring {
            ring,
            in_flight: Mutex::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to read `bytes` bytes from `offset` of `file` on; the completion
    /// will have this `id`. Never blocks.
    ///
    /// Errors: the system takes no reads; it may take this one later.
    ///
    /// Panics: more reads are in flight than the ring is for.
    ///
    /// # Safety
    ///
    /// `into` is valid for writing `bytes` bytes, which nobody else touches,
    /// until the completion was taken or the ring is dropped.
    pub unsafe fn read(
        &self,
        id: u64,
        file: BorrowedFd<'_>,
        into: *mut u8,
        bytes: u32,
        offset: u64,
    ) -> io::Result<()> {
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), into, bytes).offset(offset);
        let read = read.build().user_data(id);
        let mut in_flight = self.lock();
        // SAFETY: the lock makes this the only handle of the queue. The read's
        // memory is valid by this function's contract, and its file is open:
        // the system takes a reference of its own before `submit` returns.
        unsafe { self.ring.submission_shared().push(&read) }.expect("a place for each read");
        *in_flight += 1;
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The id of a read that has ended, and the bytes that it read.
    pub fn completion(&self) -> Option<(u64, io::Result<usize>)> {
        let mut in_flight = self.lock();
        // SAFETY: the lock makes this the only handle of the queue.
        let entry = unsafe { self.ring.completion_shared().next() }?;
        *in_flight -= 1;
        let result = match entry.result() {
            bytes @ 0.. => Ok(bytes as usize),
            error => Err(io::Error::from_raw_os_error(-error)),
        };
        Some((entry.user_data(), result))
    }

    /// Sleeps until there is a completion, unless no read is in flight; may
    /// return early. Nobody takes completions meanwhile: one that is taken
    /// before the sleep begins would be waited for.
    ///
    /// Errors: the system does not let wait.
    pub fn wait(&self) -> io::Result<()> {
        if *self.lock() == 0 {
            return Ok(());
        }
        match self.ring.submit_and_wait(1) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err(e),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Ring {
    /// Waits for the reads in flight, whose memory may go then.
    fn drop(&mut self) {
        while *self.lock() > 0 {
            if self.completion().is_none() && self.wait().is_err() {
                std::process::abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn reads_in_flight_complete_in_any_order_and_end_before_the_ring() {
        // Where the system allows no ring, there is nothing to test.
        let Ok(ring) = Ring::new(3) else { return };
        let path = std::env::temp_dir().join(format!("omex-uring-{}", std::process::id()));
        let bytes: Vec<u8> = (0..30_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut buffers = [[0; 10_000], [0; 10_000], [0; 10_000]];
        let mut read = |ring: &Ring, i: usize, offset| {
            // SAFETY: the buffers outlive the ring, and are looked at when it
            // said that their reads have ended.
            unsafe {
                ring.read(
                    i as u64,
                    file.as_fd(),
                    buffers[i].as_mut_ptr(),
                    10_000,
                    offset,
                )
            }
            .unwrap();
        };
        read(&ring, 0, 0);
        read(&ring, 1, 10_000);
        read(&ring, 2, 25_000);
        let mut results = [None, None, None];
        while results.iter().any(Option::is_none) {
            ring.wait().unwrap();
            while let Some((id, result)) = ring.completion() {
                results[id as usize] = Some(result.unwrap());
            }
        }
        ring.wait().unwrap();
        assert!(ring.completion().is_none());
        read(&ring, 2, 20_000);
        drop(ring);
        assert_eq!(results, [Some(10_000), Some(10_000), Some(5_000)]);
        assert!(buffers.concat() == bytes);
    }
}
