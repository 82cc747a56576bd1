//! Sixteen f32 of some vector instruction set, and as an array.

use core::array::from_fn;

use crate::math::{ROUND_MAGIC, exp, f32_to_f16, finite_f16_to_f32, max};

/// Virtual lanes of every float reduction, positions of a group of keys.
pub const LANES: usize = 16;

/// Sixteen f32. Every operation is that of [`crate::math`] and of IEEE 754, lane
/// by lane.
pub trait Lanes: Copy {
    /// Queries whose attention is computed together: their sums stay in registers. A
    /// power of two.
    const QUERIES: usize = 4;

    /// Asks for the line of the cache that `at` lies in: a hint, where there is one.
    #[inline(always)]
    fn prefetch<T>(_at: &T) {}

    fn splat(x: f32) -> Self;
    fn load(x: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    /// Finite halves, exactly.
    fn from_f16(halves: &[u16; LANES]) -> Self;
    /// As [`f32_to_f16`]; a NaN's payload is unspecified.
    fn to_f16(self, halves: &mut [u16; LANES]);
    fn from_i8(codes: &[i8; LANES]) -> Self;
    /// The integers nearest to the lanes, half to even, and their sum; unspecified
    /// beside [-127, 127].
    fn to_i8(self, codes: &mut [i8; LANES]) -> i32;
    /// The bits of the largest magnitude of both, which are above those of every
    /// number for a NaN.
    fn magnitude_bits_max(self, other: Self) -> u32;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn exp(self) -> Self;
}

impl Lanes for [f32; LANES] {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; LANES]
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        *x
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self;
    }

    #[inline(always)]
    fn from_f16(halves: &[u16; LANES]) -> Self {
        from_fn(|i| finite_f16_to_f32(halves[i]))
    }

    #[inline(always)]
    fn to_f16(self, halves: &mut [u16; LANES]) {
        *halves = from_fn(|i| f32_to_f16(self[i]));
    }

    #[inline(always)]
    fn from_i8(codes: &[i8; LANES]) -> Self {
        from_fn(|i| codes[i] as f32)
    }

    #[inline(always)]
    fn to_i8(self, codes: &mut [i8; LANES]) -> i32 {
        // The sum's low bits hold the rounded integer in two's complement.
        let rounded: [i32; LANES] = from_fn(|i| {
            let bits = (self[i] + ROUND_MAGIC).to_bits() as i32;
            bits.wrapping_sub(ROUND_MAGIC.to_bits() as i32)
        });
        *codes = rounded.map(|code| code as i8);
        rounded.iter().fold(0, |sum, &code| sum.wrapping_add(code))
    }

    #[inline(always)]
    fn magnitude_bits_max(self, other: Self) -> u32 {
        let bits = |x: f32| x.to_bits() & 0x7fff_ffff;
        let of_lanes: [u32; LANES] = from_fn(|i| bits(self[i]).max(bits(other[i])));
        of_lanes.iter().fold(0, |top, &bits| top.max(bits))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        from_fn(|i| self[i] + other[i])
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        from_fn(|i| self[i] - other[i])
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        from_fn(|i| self[i] * other[i])
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        from_fn(|i| self[i] / other[i])
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        from_fn(|i| max(self[i], other[i]))
    }

    #[inline(always)]
    fn exp(self) -> Self {
        from_fn(|i| exp(self[i]))
    }
}
