//! The pager's parts of the arena as slices.
#![allow(unsafe_code)]

use std::io;

use omex_plan::{BufferId, Plan};

use crate::os::file::ReadAt;
use crate::os::memory::Region;
use crate::os::uring::Ring;

/// A buffer of the arena that belongs to the pager.
#[derive(Debug)]
pub(super) struct Window {
    start: *mut u8,
    len: usize,
}

// SAFETY: a window is an address and a length; who may touch its bytes is said
// at `bytes_mut` and `part`.
unsafe impl Send for Window {}
// SAFETY: see above.
unsafe impl Sync for Window {}

impl Window {
    /// The buffer's bytes in `arena`, which outlives the window.
    pub(super) fn of(plan: &Plan, buffer: BufferId, arena: &Region) -> Window {
        let buffer = &plan.buffers[buffer.index()];
        let end = buffer.offset.checked_add(buffer.bytes);
        assert!(
            end.is_some_and(|end| end <= arena.len() as u64),
            "buffer outside the arena"
        );
        Window {
            start: arena.base().wrapping_add(buffer.offset as usize),
            len: buffer.bytes as usize,
        }
    }

    /// The bytes of a slot, for the one read that is in flight into it.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn bytes_mut(&self) -> &mut [u8] {
        // SAFETY: the range is inside the arena, initialised and alive (`of`).
        // The pager calls this for a read that it has taken: the slot is marked
        // busy, so no other read has it, and by the checked plan the read's
        // moment lies behind every step that used what the slot held before;
        // steps that use the new pages wait for the read's end.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Has `ring` read `bytes` bytes from `offset` of `file` on to a slot, for the
    /// one read that is in flight into it.
    ///
    /// Errors: the ring takes no reads.
    pub(super) fn read_by(
        &self,
        ring: &Ring,
        id: u64,
        file: &dyn ReadAt,
        bytes: usize,
        offset: u64,
    ) -> io::Result<()> {
        assert!(bytes <= self.len, "read past its slot");
        let count = u32::try_from(bytes).expect("slots are far smaller than 4 GiB");
        // SAFETY: the range is inside the arena, which outlives the pager and
        // with it the ring. Nobody else touches it until the pager has taken
        // the completion, for the reasons at `bytes_mut`.
        unsafe { ring.read(id, file.descriptor(), self.start, count, offset) }
    }

    /// Part `index` of parts of `stride` bytes, for the holder of its lock or
    /// the I/O thread of this number.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn part(&self, index: usize, stride: usize) -> &mut [u8] {
        let first = index * stride;
        assert!(first + stride <= self.len, "part outside its buffer");
        // SAFETY: in bounds as above; parts are disjoint, and each is used by
        // the holder of its lock alone (`Gather::claim`), or by one I/O thread
        // for one read at a time (`Frames::stage`).
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(first), stride) }
    }
}
