//! The elementary functions, as fixed sequences of IEEE operations.
//!
//! Every back end reproduces these sequences exactly; none may call a libm.
//! Errors against the true functions are tested below.

/// Bits of a finite f16 to f32, exactly.
///
/// The sign is extended over the three bits between it and the exponent, and
/// masked off them again; a multiplication by 2^112 rebases the exponent and
/// normalises denormals.
#[inline(always)]
pub const fn finite_f16_to_f32(bits: u16) -> f32 {
    let shifted = (bits as i16 as i32) << 13;
    f32::from_bits(shifted as u32 & 0x8fff_e000) * f32::from_bits((112 + 127) << 23)
}

/// f16 bits to f32, exactly; infinity and NaN stay what they are, so that a
/// checker can see them.
#[inline]
pub const fn f16_to_f32(bits: u16) -> f32 {
    if bits & 0x7c00 == 0x7c00 {
        let sign = (bits as u32 & 0x8000) << 16;
        f32::from_bits(sign | 0x7f80_0000 | (bits as u32 & 0x3ff) << 13)
    } else {
        finite_f16_to_f32(bits)
    }
}

/// f32 to f16 bits, round to nearest even; too large becomes infinity.
#[inline]
pub const fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    // 65520, the first value that rounds to 2^16, and everything above.
    if magnitude >= 0x477f_f000 {
        let nan = (magnitude > 0x7f80_0000) as u16;
        return sign | 0x7c00 | nan << 9;
    }
    let half = if magnitude < 0x3880_0000 {
        // Below 2^-14: adding 0.5 aligns the f16 denormal unit, 2^-24, with
        // the last bit of the sum, which rounds it to nearest even.
        let sum = f32::from_bits(magnitude) + 0.5;
        sum.to_bits() - 0x3f00_0000
    } else {
        let odd = magnitude >> 13 & 1;
        (magnitude + 0xfff + odd - (112 << 23)) >> 13
    };
    sign | half as u16
}

#[inline]
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Half of 2^(e - 127), the scale that goes with doubled MXFP4 values.
///
/// 2^-128 is an f32 denormal, so exponents 0 and 1 are spelled out.
#[inline]
pub const fn e8m0_half_to_f32(e: u8) -> f32 {
    match e {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        e => f32::from_bits((e as u32 - 1) << 23),
    }
}

/// Adding and subtracting this rounds |x| < 2^22 to an integer, half to even.
pub const ROUND_MAGIC: f32 = 12_582_912.0;

/// `a > b ? a : b`, the only maximum of the contract.
#[inline(always)]
pub const fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// log2 of e.
pub const LOG2_E: f32 = core::f32::consts::LOG2_E;
/// ln 2 with 9 trailing zero bits, so that n * LN2_HIGH is exact for |n| < 2^9.
pub const LN2_HIGH: f32 = 0.693_359_4;
/// ln 2 - [`LN2_HIGH`].
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below this exp is 0; it is near the logarithm of the smallest normal f32.
pub const EXP_MIN: f32 = -87.0;
/// Arguments above are treated as this, near the logarithm of the largest f32.
pub const EXP_MAX: f32 = 88.0;

/// Taylor coefficients 1/7! .. 1/2!, highest degree first.
pub const EXP_POLY: [f32; 6] = [
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
];

/// e^x within 2 ulp; 0 below [`EXP_MIN`], e^[`EXP_MAX`] above it.
#[inline(always)]
pub const fn exp(x: f32) -> f32 {
    let clamped = if x > EXP_MAX { EXP_MAX } else { x };
    let clamped = if clamped > EXP_MIN { clamped } else { EXP_MIN };
    let shifted = clamped * LOG2_E + ROUND_MAGIC;
    let n = shifted - ROUND_MAGIC;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = EXP_POLY[0];
    p = p * r + EXP_POLY[1];
    p = p * r + EXP_POLY[2];
    p = p * r + EXP_POLY[3];
    p = p * r + EXP_POLY[4];
    p = p * r + EXP_POLY[5];
    p = p * r + 1.0;
    p = p * r + 1.0;
    // The low bits of `shifted` are n; -126 <= n <= 127 keeps 2^n normal.
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x > EXP_MIN { p * scale } else { 0.0 }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub const fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `tanh(x) = 1 - 2 / (e^2x + 1)`.
#[inline(always)]
pub const fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(x + x) + 1.0)
}

/// `cap * tanh(x / cap)`, for cap > 0.
#[inline(always)]
pub const fn softcap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// The square root of 2/pi, and the weight of the cube beside x.
pub const GELU_SCALE: f32 = 0.797_884_6;
pub const GELU_CUBE: f32 = 0.044_715;

/// GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415).
#[inline(always)]
pub const fn gelu_tanh(x: f32) -> f32 {
    let inner = GELU_SCALE * (x + (GELU_CUBE * (x * x)) * x);
    (0.5 * x) * (1.0 + tanh(inner))
}

/// Correctly rounded square root of a finite `x >= 0`, the IEEE operation.
///
/// Digit by digit on integers, because `core` has no square root.
pub const fn sqrt(x: f32) -> f32 {
    let bits = x.to_bits();
    if bits == 0 || bits >= 0x7f80_0000 {
        return x;
    }
    let (mut mantissa, mut exponent) = ((bits & 0x7f_ffff) as u64, (bits >> 23) as i32);
    if exponent == 0 {
        let shift = mantissa.leading_zeros() as i32 - 40;
        mantissa <<= shift;
        exponent = 1 - shift;
    } else {
        mantissa |= 1 << 23;
    }
    // x = mantissa * 2^(exponent - 150); make the power even.
    let mut power = exponent - 150;
    if power % 2 != 0 {
        mantissa <<= 1;
        power -= 1;
    }
    // 26 more bits give a root of 25 bits: 24 and one to round with.
    let square = mantissa << 26;
    let mut root = 0u64;
    let mut bit = 1u64 << 25;
    while bit > 0 {
        let trial = root | bit;
        if trial * trial <= square {
            root = trial;
        }
        bit >>= 1;
    }
    let inexact = root * root != square;
    // root has 25 or 26 bits; the last ones and the remainder round half to even.
    let root_power = power / 2 - 13;
    let extra = 64 - root.leading_zeros() - 24;
    let rest = root & ((1 << extra) - 1);
    let half = 1 << (extra - 1);
    let mut kept = root >> extra;
    if rest > half || (rest == half && (inexact || kept & 1 == 1)) {
        kept += 1;
    }
    // The implicit bit of `kept` adds one to the exponent field, and a carry
    // out of the mantissa adds one more, as it should.
    let field = (root_power + extra as i32 + 149) as u32;
    f32::from_bits((field << 23) + kept as u32)
}

/// pi/2 in three parts of at most 33 significant bits: n * part is exact for n < 2^20.
const PIO2: [f64; 3] = [
    f64::from_bits(0x3ff9_21fb_5440_0000),
    f64::from_bits(0x3dd0_b461_1a60_0000),
    f64::from_bits(0x3ba3_198a_2e03_7073),
];
const ROUND_MAGIC_F64: f64 = 6_755_399_441_055_744.0;

/// (cos x, sin x) for 0 <= x < 2^20, to f32.
///
/// Cody-Waite reduction to [-pi/4, pi/4], then Taylor polynomials in f64: the
/// truncation error is below 2^-60, so f32 results are rounded once in effect.
pub const fn cos_sin(x: f64) -> (f32, f32) {
    let n = (x * core::f64::consts::FRAC_2_PI + ROUND_MAGIC_F64) - ROUND_MAGIC_F64;
    let r = ((x - n * PIO2[0]) - n * PIO2[1]) - n * PIO2[2];
    let z = r * r;
    // 1 - z/2! (1 - z/(3*4) (1 - z/(5*6) ...)) by nested division-free Horner.
    let mut c = 1.0;
    let mut s = 1.0;
    let mut k = 18;
    while k >= 2 {
        let kf = k as f64;
        c = 1.0 - (z / (kf * (kf - 1.0))) * c;
        s = 1.0 - (z / (kf * (kf + 1.0))) * s;
        k -= 2;
    }
    let s = s * r;
    let (c, s) = (c as f32, s as f32);
    match (n as u64) & 3 {
        0 => (c, s),
        1 => (-s, c),
        2 => (-c, -s),
        _ => (s, -c),
    }
}

/// `base^(-2 i / width)` in f64 by a fixed sequence, for RoPE's frequencies.
///
/// exp(-(2 i / width) * ln base), with both functions from series; relative
/// error below 1e-14, far under the f32 resolution of any angle.
pub const fn inverse_frequency(base: f64, i: u32, width: u32) -> f64 {
    let exponent = -((2 * i) as f64 / width as f64);
    pow_f64(base, exponent)
}

/// `base^exponent` in f64 by a fixed sequence, for a positive normal base and a
/// result that is normal.
pub const fn pow_f64(base: f64, exponent: f64) -> f64 {
    exp_f64(exponent * ln_f64(base))
}

/// ln x for a positive normal x: exponent times ln 2 plus the atanh series.
pub const fn ln_f64(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut e = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > core::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    let t = (m - 1.0) / (m + 1.0);
    let z = t * t;
    let mut sum = 0.0;
    let mut k = 25;
    while k >= 1 {
        sum = sum * z + 1.0 / k as f64;
        k -= 2;
    }
    e as f64 * core::f64::consts::LN_2 + (t + t) * sum
}

/// e^x for |x| < 700: powers of two times the Taylor series.
const fn exp_f64(x: f64) -> f64 {
    let n = (x * core::f64::consts::LOG2_E + ROUND_MAGIC_F64) - ROUND_MAGIC_F64;
    let r = x - n * core::f64::consts::LN_2;
    let mut p = 1.0;
    let mut k = 16;
    while k >= 1 {
        p = 1.0 + (r / k as f64) * p;
        k -= 1;
    }
    p * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
// The oracles of these tests are the std functions that the contract bans.
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn f16_round_trips_every_finite_value() {
        for bits in 0..=u16::MAX {
            if bits & 0x7c00 != 0x7c00 {
                let value = f16_to_f32(bits);
                assert_eq!(f32_to_f16(value), bits, "{bits:#x}");
                let (e, m) = (bits >> 10 & 31, (bits & 1023) as f64);
                let want = match e {
                    0 => m * 2f64.powi(-24),
                    e => (1024.0 + m) * 2f64.powi(e as i32 - 25),
                };
                let want = if bits >> 15 == 1 { -want } else { want };
                assert_eq!(value as f64, want, "{bits:#x}");
            }
        }
    }

    #[test]
    fn f32_to_f16_rounds_half_to_even() {
        for bits in 0u16..0x7bff {
            let (low, high) = (f16_to_f32(bits) as f64, f16_to_f32(bits + 1) as f64);
            let middle = ((low + high) / 2.0) as f32;
            assert_eq!(f32_to_f16(middle), bits + (bits & 1), "{bits:#x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), bits + 1);
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), bits);
        }
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(65519.996), 0x7bff);
        assert_eq!(f32_to_f16(-1e10), 0xfc00);
    }

    #[test]
    fn sqrt_is_correctly_rounded() {
        let mut state = 1u32;
        let check = |x: f32| assert_eq!(sqrt(x).to_bits(), x.sqrt().to_bits(), "{x:e}");
        for i in 0..1 << 20 {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            check(f32::from_bits(state % 0x7f80_0000));
            check(i as f32);
            check(f32::from_bits(i));
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            if x <= EXP_MIN {
                continue;
            }
            let (got, want) = (exp(x) as f64, (x as f64).exp());
            let ulp = (want as f32).to_bits();
            let ulp = f32::from_bits(ulp + 1) as f64 - f32::from_bits(ulp) as f64;
            worst = worst.max((got - want).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(1e30).is_finite());
    }

    #[test]
    fn cos_sin_is_exact_to_f32() {
        for i in 0..2_000_000u64 {
            let x = (i * i % 1_048_573) as f64 + i as f64 * 1e-7;
            let (c, s) = cos_sin(x);
            assert!((c as f64 - x.cos()).abs() < 6.1e-8, "cos {x}");
            assert!((s as f64 - x.sin()).abs() < 6.1e-8, "sin {x}");
        }
    }

    #[test]
    fn inverse_frequencies_match_pow() {
        for base in [1e4, 1e5, 5e5, 1e6, 1.0001] {
            for i in 0..64 {
                let want = f64::powf(base, -(2.0 * i as f64) / 128.0);
                let got = inverse_frequency(base, i, 128);
                assert!((got / want - 1.0).abs() < 1e-14, "{base} {i}");
            }
        }
    }

    #[test]
    fn activations_are_close_to_their_functions() {
        for i in -4000..4000 {
            let x = i as f32 * 0.005;
            let x64 = x as f64;
            let want = x64 / (1.0 + (-x64).exp());
            assert!(
                (silu(x) as f64 - want).abs() <= 1e-6 * (1.0 + want.abs()),
                "{x}"
            );
            let inner = 0.797_884_560_802_865_4 * (x64 + 0.044715 * x64 * x64 * x64);
            let want = 0.5 * x64 * (1.0 + inner.tanh());
            assert!(
                (gelu_tanh(x) as f64 - want).abs() <= 2e-6 * (1.0 + want.abs()),
                "{x}"
            );
        }
    }
}
