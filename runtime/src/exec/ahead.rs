//! Weights of a coming phase, fetched into the cache by a thread that waits.
// Prefetching takes an address.
#![allow(unsafe_code)]

/// Columns up to which a matmul is bound by reading its weights.
pub(super) const COLUMNS_AHEAD: u32 = 4;

/// Bytes to fetch ahead: a part of the second-level cache of any target, beside
/// what the current phase keeps there.
const BYTES_MAX: usize = 128 << 10;

/// Bytes of a cache line, or of a part of one.
pub(super) const LINE_BYTES: usize = 64;

/// Lines that are asked for between two looks at what the thread waits for.
const LINES: usize = 4;

/// What a thread fetches ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Whose weights they are.
    step: Option<usize>,
    /// Addresses of what is left.
    next: usize,
    end: usize,
}

impl Ahead {
    /// Turns to the weights of `step`, which are `bytes` bytes at an address, unless
    /// it has turned to them before.
    pub(super) fn aim(&mut self, step: usize, start: usize, bytes: usize) {
        if self.step != Some(step) {
            self.step = Some(step);
            self.next = start;
            self.end = start + bytes.min(BYTES_MAX);
        }
    }

    /// Asks for the next lines. Returns false when there are none.
    pub(super) fn fetch(&mut self) -> bool {
        for _ in 0..LINES {
            if self.next >= self.end {
                return false;
            }
            prefetch(self.next);
            self.next += LINE_BYTES;
        }
        true
    }
}

/// Asks for the line at an address, in the second-level cache. Any address will do.
#[inline(always)]
pub(super) fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the instruction is a hint that accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address as *const i8) };
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the instruction is a hint that accesses nothing.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
}
