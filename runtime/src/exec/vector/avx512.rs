//! Sixteen f32 in an AVX-512 register.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::exec::ahead;
use omex_kernels::lanes::{LANES, Lanes};
use omex_kernels::math::{EXP_MAX, EXP_MIN, EXP_POLY, LN2_HIGH, LN2_LOW, LOG2_E, ROUND_MAGIC};

/// Operations may only be executed on CPUs with AVX-512 F, BW and VL, which whoever
/// names the type has checked; they are inlined into functions with these features.
#[derive(Clone, Copy)]
pub(in crate::exec) struct Avx512(__m512);

impl Lanes for Avx512 {
    const QUERIES: usize = 8;

    #[inline(always)]
    fn prefetch<T>(at: &T) {
        ahead::prefetch(std::ptr::from_ref(at).addr());
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the type's contract.
        Avx512(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        // SAFETY: the type's contract; the array is a register long.
        Avx512(unsafe { _mm512_loadu_ps(x.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: the type's contract; the array is a register long.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn from_f16(halves: &[u16; LANES]) -> Self {
        // SAFETY: the type's contract; the array is half a register long.
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().cast())) })
    }

    #[inline(always)]
    fn from_i8(codes: &[i8; LANES]) -> Self {
        // SAFETY: the type's contract; the array is a quarter of a register long.
        unsafe {
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)))
        }
    }

    #[inline(always)]
    fn to_f16(self, halves: &mut [u16; LANES]) {
        const NEAREST_EVEN: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: the type's contract; the array is half a register long.
        unsafe {
            let converted = _mm512_cvtps_ph::<NEAREST_EVEN>(self.0);
            _mm256_storeu_si256(halves.as_mut_ptr().cast(), converted);
        }
    }

    #[inline(always)]
    fn to_i8(self, codes: &mut [i8; LANES]) -> i32 {
        // SAFETY: the type's contract; the array is a quarter of a register long.
        unsafe {
            let magic = _mm512_set1_ps(ROUND_MAGIC);
            // The sum's low bits hold the rounded integer in two's complement.
            let shifted = _mm512_castps_si512(_mm512_add_ps(self.0, magic));
            let rounded = _mm512_sub_epi32(shifted, _mm512_castps_si512(magic));
            _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(rounded));
            _mm512_reduce_add_epi32(rounded)
        }
    }

    #[inline(always)]
    fn magnitude_bits_max(self, other: Self) -> u32 {
        // SAFETY: the type's contract.
        unsafe {
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            let [a, b] = [self.0, other.0].map(|x| _mm512_and_si512(_mm512_castps_si512(x), mask));
            _mm512_reduce_max_epu32(_mm512_max_epu32(a, b))
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the type's contract.
        Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the type's contract.
        Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the type's contract.
        Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: the type's contract.
        Avx512(unsafe { _mm512_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // The instruction is `a > b ? a : b`, as the contract's maximum.
        // SAFETY: the type's contract.
        Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    /// The sequence of [`omex_kernels::math::exp`].
    #[inline(always)]
    fn exp(self) -> Self {
        let x = self.0;
        // SAFETY: the type's contract.
        unsafe {
            let set = |x: f32| _mm512_set1_ps(x);
            let clamped = _mm512_max_ps(_mm512_min_ps(set(EXP_MAX), x), set(EXP_MIN));
            let shifted = _mm512_add_ps(_mm512_mul_ps(clamped, set(LOG2_E)), set(ROUND_MAGIC));
            let n = _mm512_sub_ps(shifted, set(ROUND_MAGIC));
            let r = _mm512_sub_ps(clamped, _mm512_mul_ps(n, set(LN2_HIGH)));
            let r = _mm512_sub_ps(r, _mm512_mul_ps(n, set(LN2_LOW)));
            let mut p = set(EXP_POLY[0]);
            let [_, a, b, c, d, e] = EXP_POLY;
            for c in [a, b, c, d, e, 1.0, 1.0] {
                p = _mm512_add_ps(_mm512_mul_ps(p, r), set(c));
            }
            let exponent = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
            let scale = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent));
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, set(EXP_MIN));
            Avx512(_mm512_maskz_mul_ps(above, p, scale))
        }
    }
}
