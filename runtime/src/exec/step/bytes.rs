//! Slices of the arena and of pages, and what they hold.

use std::ops::Range;

use omex_kernels::activation::Q8Layout;
use omex_kernels::output::Output;
use omex_kernels::reference::{KvRing, KvRingMut, Q8Blocks, Q8BlocksMut};
use omex_kernels::spec::{Activation, KvFormat, Rope};

/// Elements that any bit pattern is valid for.
pub(in crate::exec) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for i16 {}
impl Plain for f32 {}

/// Bytes of one argument of a step.
#[derive(Clone, Copy, Debug)]
pub(in crate::exec) struct Bytes {
    pub(super) start: *mut u8,
    pub(super) len: usize,
}

impl Bytes {
    pub(in crate::exec) fn len(self) -> usize {
        self.len
    }

    /// What matrices and constants have, which are not read as a slice.
    pub(in crate::exec) const NONE: Bytes = Bytes {
        start: std::ptr::null_mut(),
        len: 0,
    };

    pub(in crate::exec) fn address_of_start(self) -> usize {
        self.start.addr()
    }

    /// All but the first `bytes` bytes, checked.
    pub(in crate::exec) fn skip(self, bytes: usize) -> Bytes {
        assert!(bytes <= self.len, "selected column outside its buffer");
        Bytes {
            start: self.start.wrapping_add(bytes),
            len: self.len - bytes,
        }
    }

    /// Address of `count` elements at byte `offset`, checked.
    pub(super) fn address<T: Plain>(self, offset: usize, count: usize) -> *mut T {
        let end = count
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_add(offset));
        assert!(
            end.is_some_and(|end| end <= self.len),
            "slice outside its slot"
        );
        let address = self.start.wrapping_add(offset).cast::<T>();
        assert!(address.is_aligned(), "slice misaligned in its slot");
        address
    }

    /// The part number `index` of parts of `bytes` bytes each, checked.
    pub(super) fn part(self, index: u32, bytes: u64) -> Bytes {
        let start = u64::from(index).checked_mul(bytes);
        let end = start.and_then(|start| start.checked_add(bytes));
        assert!(
            end.is_some_and(|end| end <= self.len as u64),
            "part outside its slot"
        );
        let start = start.unwrap_or(0) as usize;
        Bytes {
            start: self.start.wrapping_add(start),
            len: bytes as usize,
        }
    }

    /// # Safety
    /// Nothing writes these elements while the slice lives.
    pub(super) unsafe fn slice<'a, T: Plain>(self, offset: usize, count: usize) -> &'a [T] {
        let address = self.address(offset, count);
        // SAFETY: in bounds and aligned by the checks of `address`, initialised
        // (arena and pages are zeroed or read), unwritten by the contract.
        unsafe { std::slice::from_raw_parts(address, count) }
    }

    /// # Safety
    /// Nothing else reads or writes these elements while the slice lives, and
    /// they are not part of weights.
    #[allow(clippy::mut_from_ref)]
    pub(in crate::exec) unsafe fn slice_mut<'a, T: Plain>(
        self,
        offset: usize,
        count: usize,
    ) -> &'a mut [T] {
        let address = self.address(offset, count);
        // SAFETY: in bounds and aligned by the checks of `address`, initialised,
        // exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(address, count) }
    }
}

/// Elements `first..first + count` of the column of `len` elements at byte `at`,
/// in the form that `kind` says.
///
/// # Safety
/// As for [`Bytes::slice_mut`].
#[inline(always)]
pub(super) unsafe fn output_mut<'a>(
    out: Bytes,
    at: usize,
    kind: Activation,
    len: u32,
    first: usize,
    count: usize,
) -> Output<'a> {
    // SAFETY: this function's contract.
    unsafe {
        match kind {
            Activation::F32 => Output::F32(out.slice_mut(at + first * 4, count)),
            Activation::Q8 => Output::Q8(q8_mut(out, at, len, first, count)),
        }
    }
}

/// # Safety
/// As for [`Bytes::slice`], for one panel's rows at byte `at`.
#[inline(always)]
pub(super) unsafe fn lanes(bytes: Bytes, at: usize) -> [f32; 16] {
    // SAFETY: this function's contract.
    let slice = unsafe { bytes.slice::<f32>(at, 16) };
    std::array::from_fn(|lane| slice[lane])
}

/// The RoPE table of the column at byte `at`.
///
/// # Safety
/// As for [`Bytes::slice`].
#[inline(always)]
pub(super) unsafe fn rope_table<'a>(rope: Rope, bytes: Bytes, at: usize) -> &'a [f32] {
    // SAFETY: this function's contract.
    unsafe { bytes.slice(at, 2 * rope.pairs as usize) }
}

/// Slots `slots`, whose ends are multiples of 16, of one head's ring of keys
/// or values. A head's scales follow its codes.
pub(super) struct RingPart {
    pub(super) format: KvFormat,
    pub(super) head: usize,
    pub(super) dim: usize,
    pub(super) ring: usize,
    pub(super) slots: Range<usize>,
}

impl RingPart {
    /// Byte of the head's first element.
    fn start(&self) -> usize {
        self.head * self.ring * self.format.head_bytes(self.dim as u32) as usize
    }

    /// Byte of the head's first scale.
    fn scales_start(&self) -> usize {
        self.start() + self.ring * self.dim
    }

    /// # Safety
    /// As for [`Bytes::slice`].
    #[inline(always)]
    pub(super) unsafe fn slice<'a>(&self, bytes: Bytes) -> KvRing<'a> {
        let (first, count) = (self.slots.start, self.slots.len());
        let blocks = self.dim / 32;
        // SAFETY: this function's contract.
        unsafe {
            match self.format {
                KvFormat::F16 => {
                    KvRing::F16(bytes.slice(self.start() + first * self.dim * 2, count * self.dim))
                }
                KvFormat::Q8 => KvRing::Q8 {
                    codes: bytes.slice(self.start() + first * self.dim, count * self.dim),
                    scales: bytes.slice(self.scales_start() + first * blocks * 4, count * blocks),
                },
            }
        }
    }

    /// # Safety
    /// As for [`Bytes::slice_mut`].
    #[inline(always)]
    pub(super) unsafe fn slice_mut<'a>(&self, bytes: Bytes) -> KvRingMut<'a> {
        let (first, count) = (self.slots.start, self.slots.len());
        let blocks = self.dim / 32;
        // SAFETY: this function's contract; codes and scales are disjoint.
        unsafe {
            match self.format {
                KvFormat::F16 => KvRingMut::F16(
                    bytes.slice_mut(self.start() + first * self.dim * 2, count * self.dim),
                ),
                KvFormat::Q8 => KvRingMut::Q8 {
                    codes: bytes.slice_mut(self.start() + first * self.dim, count * self.dim),
                    scales: bytes
                        .slice_mut(self.scales_start() + first * blocks * 4, count * blocks),
                },
            }
        }
    }
}

/// Elements `first..first + count`, multiples of 32, of the int8 column of `k`
/// elements at byte `at`.
///
/// # Safety
/// As for [`Bytes::slice`].
#[inline(always)]
pub(super) unsafe fn q8<'a>(
    bytes: Bytes,
    at: usize,
    k: u32,
    first: usize,
    count: usize,
) -> Q8Blocks<'a> {
    let layout = Q8Layout::new(k);
    let (block, blocks) = (first / 32, count / 32);
    // SAFETY: this function's contract.
    unsafe {
        Q8Blocks {
            codes: bytes.slice(at + first, count),
            scales: bytes.slice(at + layout.scales_offset as usize + 4 * block, blocks),
            scaled_sums: bytes.slice(at + layout.scaled_sums_offset as usize + 4 * block, blocks),
            sums: bytes.slice(at + layout.sums_offset as usize + 4 * block, 2 * blocks),
        }
    }
}

/// As [`q8`], to be written.
///
/// # Safety
/// As for [`Bytes::slice_mut`].
#[inline(always)]
pub(super) unsafe fn q8_mut<'a>(
    bytes: Bytes,
    at: usize,
    k: u32,
    first: usize,
    count: usize,
) -> Q8BlocksMut<'a> {
    let layout = Q8Layout::new(k);
    let (block, blocks) = (first / 32, count / 32);
    // SAFETY: this function's contract; the four ranges are disjoint.
    unsafe {
        Q8BlocksMut {
            codes: bytes.slice_mut(at + first, count),
            scales: bytes.slice_mut(at + layout.scales_offset as usize + 4 * block, blocks),
            scaled_sums: bytes
                .slice_mut(at + layout.scaled_sums_offset as usize + 4 * block, blocks),
            sums: bytes.slice_mut(at + layout.sums_offset as usize + 4 * block, 2 * blocks),
        }
    }
}
