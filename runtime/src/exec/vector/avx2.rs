//! Sixteen f32 in two AVX registers.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::exec::ahead;
use omex_kernels::lanes::{LANES, Lanes};
use omex_kernels::math::{EXP_MAX, EXP_MIN, EXP_POLY, LN2_HIGH, LN2_LOW, LOG2_E, ROUND_MAGIC};

/// Operations may only be executed on CPUs with AVX2 and F16C, which whoever names
/// the type has checked; they are inlined into functions with these features.
#[derive(Clone, Copy)]
pub(in crate::exec) struct Avx2([__m256; 2]);

impl Avx2 {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(__m256, __m256) -> __m256) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        Avx2([f(a, c), f(b, d)])
    }
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn prefetch<T>(at: &T) {
        ahead::prefetch(std::ptr::from_ref(at).addr());
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the type's contract.
        let x = unsafe { _mm256_set1_ps(x) };
        Avx2([x, x])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        // SAFETY: the type's contract; both halves lie in the array.
        unsafe {
            Avx2([
                _mm256_loadu_ps(x.as_ptr()),
                _mm256_loadu_ps(x.as_ptr().add(8)),
            ])
        }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: the type's contract; both halves lie in the array.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self.0[1]);
        }
    }

    #[inline(always)]
    fn from_f16(halves: &[u16; LANES]) -> Self {
        // SAFETY: the type's contract; both halves lie in the array.
        unsafe {
            let at = halves.as_ptr().cast::<__m128i>();
            Avx2([
                _mm256_cvtph_ps(_mm_loadu_si128(at)),
                _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))),
            ])
        }
    }

    #[inline(always)]
    fn from_i8(codes: &[i8; LANES]) -> Self {
        // SAFETY: the type's contract; all 16 bytes lie in the array.
        unsafe {
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            let [low, high] = [codes, _mm_srli_si128::<8>(codes)]
                .map(|codes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
            Avx2([low, high])
        }
    }

    #[inline(always)]
    fn to_f16(self, halves: &mut [u16; LANES]) {
        const NEAREST_EVEN: i32 = _MM_FROUND_TO_NEAREST_INT;
        let at = halves.as_mut_ptr().cast::<__m128i>();
        // SAFETY: the type's contract; both halves lie in the array.
        unsafe {
            _mm_storeu_si128(at, _mm256_cvtps_ph::<NEAREST_EVEN>(self.0[0]));
            _mm_storeu_si128(at.add(1), _mm256_cvtps_ph::<NEAREST_EVEN>(self.0[1]));
        }
    }

    #[inline(always)]
    fn to_i8(self, codes: &mut [i8; LANES]) -> i32 {
        // SAFETY: the type's contract; 16 bytes lie in the array.
        unsafe {
            let magic = _mm256_set1_ps(ROUND_MAGIC);
            // The sum's low bits hold the rounded integer in two's complement.
            let [a, b] = self.0.map(|x| {
                let shifted = _mm256_castps_si256(_mm256_add_ps(x, magic));
                _mm256_sub_epi32(shifted, _mm256_castps_si256(magic))
            });
            // Packing works on halves of the registers: quarters a0 b0 a1 b1.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let (low, high) = (
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm_packs_epi16(low, high));
            let sums = _mm_madd_epi16(_mm_add_epi16(low, high), _mm_set1_epi16(1));
            let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
            let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums));
            _mm_cvtsi128_si32(sums)
        }
    }

    #[inline(always)]
    fn magnitude_bits_max(self, other: Self) -> u32 {
        // SAFETY: the type's contract.
        unsafe {
            let mask = _mm256_set1_epi32(0x7fff_ffff);
            let bits = |x: __m256| _mm256_and_si256(_mm256_castps_si256(x), mask);
            let [a, b] = self.0.map(bits);
            let [c, d] = other.0.map(bits);
            let top = _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d));
            let (low, high) = (
                _mm256_castsi256_si128(top),
                _mm256_extracti128_si256::<1>(top),
            );
            let top = _mm_max_epi32(low, high);
            let top = _mm_max_epi32(top, _mm_shuffle_epi32::<0b01_00_11_10>(top));
            let top = _mm_max_epi32(top, _mm_shuffle_epi32::<0b10_11_00_01>(top));
            _mm_cvtsi128_si32(top) as u32
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the type's contract.
        self.zip(other, |a, b| unsafe { _mm256_add_ps(a, b) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: the type's contract.
        self.zip(other, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the type's contract.
        self.zip(other, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: the type's contract.
        self.zip(other, |a, b| unsafe { _mm256_div_ps(a, b) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // The instruction is `a > b ? a : b`, as the contract's maximum.
        // SAFETY: the type's contract.
        self.zip(other, |a, b| unsafe { _mm256_max_ps(a, b) })
    }

    /// The sequence of [`omex_kernels::math::exp`].
    #[inline(always)]
    fn exp(self) -> Self {
        let [a, b] = self.0;
        // SAFETY: the type's contract.
        Avx2(unsafe { [exp(a), exp(b)] })
    }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn exp(x: __m256) -> __m256 {
    // SAFETY: this function's contract.
    unsafe {
        let set = |x: f32| _mm256_set1_ps(x);
        let clamped = _mm256_max_ps(_mm256_min_ps(set(EXP_MAX), x), set(EXP_MIN));
        let shifted = _mm256_add_ps(_mm256_mul_ps(clamped, set(LOG2_E)), set(ROUND_MAGIC));
        let n = _mm256_sub_ps(shifted, set(ROUND_MAGIC));
        let r = _mm256_sub_ps(clamped, _mm256_mul_ps(n, set(LN2_HIGH)));
        let r = _mm256_sub_ps(r, _mm256_mul_ps(n, set(LN2_LOW)));
        let mut p = set(EXP_POLY[0]);
        let [_, a, b, c, d, e] = EXP_POLY;
        for c in [a, b, c, d, e, 1.0, 1.0] {
            p = _mm256_add_ps(_mm256_mul_ps(p, r), set(c));
        }
        let exponent = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
        let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent));
        let above = _mm256_cmp_ps::<_CMP_GT_OQ>(x, set(EXP_MIN));
        _mm256_and_ps(_mm256_mul_ps(p, scale), above)
    }
}
