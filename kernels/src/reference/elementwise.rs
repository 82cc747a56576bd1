use super::NonFinite;
use crate::block;
use crate::format::WeightFormat;
use crate::lanes::LANES;
use crate::math::{ROUND_MAGIC, cos_sin, gelu_tanh, silu, softcap, sqrt};
use crate::panel;
use crate::spec::{GateFunction, Rope, RopePairing};

/// Blocks whose largest magnitude is below this quantize to zero: its
/// reciprocal would overflow.
const QUANTIZE_MIN: f32 = f32::from_bits((127 - 100) << 23); // 2^-100

/// Merges 16 partial sums by halving: lane i takes lane i + 8, then + 4, 2, 1.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// A run of whole 32-blocks of one activation column.
#[derive(Clone, Copy, Debug)]
pub struct Q8Blocks<'a> {
    pub codes: &'a [i8],
    pub scales: &'a [f32],
    pub scaled_sums: &'a [f32],
    pub sums: &'a [i16],
}

/// A run of whole 32-blocks of one activation column, to be written.
#[derive(Debug)]
pub struct Q8BlocksMut<'a> {
    /// 32 per block.
    pub codes: &'a mut [i8],
    /// 1 per block.
    pub scales: &'a mut [f32],
    /// 1 per block.
    pub scaled_sums: &'a mut [f32],
    /// 2 per block.
    pub sums: &'a mut [i16],
}

impl Q8BlocksMut<'_> {
    /// Elements `first..first + count`, both multiples of 32.
    #[inline(always)]
    pub fn part(&mut self, first: usize, count: usize) -> Q8BlocksMut<'_> {
        let (block, blocks) = (first / 32, count / 32);
        Q8BlocksMut {
            codes: &mut self.codes[first..][..count],
            scales: &mut self.scales[block..][..blocks],
            scaled_sums: &mut self.scaled_sums[block..][..blocks],
            sums: &mut self.sums[2 * block..][..2 * blocks],
        }
    }
}

/// Quantizes `x` (a multiple of 32) to int8 blocks.
///
/// `d = amax / 127`, `code = round_even(x * (127 / amax))`; an all but zero
/// block (amax < 2^-100) is zero.
///
/// Errors: a NaN or infinity in `x`.
#[inline(always)]
pub fn quantize(x: &[f32], out: Q8BlocksMut<'_>) -> Result<(), NonFinite> {
    let mut finite = true;
    let blocks = x
        .chunks_exact(32)
        .zip(out.codes.chunks_exact_mut(32))
        .zip(out.scales.iter_mut().zip(out.scaled_sums.iter_mut()))
        .zip(out.sums.chunks_exact_mut(2));
    for (((x, codes), (scale, scaled_sum)), sums) in blocks {
        let mut rounded = [0i32; 32];
        let d = quantize_codes(x, &mut rounded);
        finite &= d.is_ok();
        let d = d.unwrap_or(0.0);
        for (code, &r) in codes.iter_mut().zip(&rounded) {
            *code = r as i8;
        }
        let mut sum = [0i32; 2];
        for (half, s) in rounded.chunks_exact(16).zip(&mut sum) {
            for &r in half {
                *s = s.wrapping_add(r);
            }
        }
        sums.copy_from_slice(&sum.map(|sum| sum as i16));
        *scale = d;
        *scaled_sum = d * (sum[0].wrapping_add(sum[1])) as f32;
    }
    if finite { Ok(()) } else { Err(NonFinite) }
}

/// The codes of one block of 32 and its scale d; see [`quantize`].
///
/// Errors: a NaN or infinity in `x`; the codes then mean nothing.
#[inline(always)]
pub(super) fn quantize_codes(x: &[f32], codes: &mut [i32; 32]) -> Result<f32, NonFinite> {
    // Magnitudes as integers: the maximum is exact in any order and a NaN or
    // infinity is larger than every number.
    let mut top = 0u32;
    for &v in x {
        let bits = v.to_bits() & 0x7fff_ffff;
        top = if bits > top { bits } else { top };
    }
    let (d, inverse) = quantize_scale(top);
    for (code, &v) in codes.iter_mut().zip(x) {
        // The sum's low bits hold the rounded integer in two's complement.
        *code = ((v * inverse + ROUND_MAGIC).to_bits() as i32)
            .wrapping_sub(ROUND_MAGIC.to_bits() as i32);
    }
    if d.is_finite() { Ok(d) } else { Err(NonFinite) }
}

/// The scale d of a block with the largest magnitude `top`, as bits, and the
/// factor of its elements. d is finite when the elements are.
#[inline(always)]
pub(crate) fn quantize_scale(top: u32) -> (f32, f32) {
    let amax = f32::from_bits(top);
    if amax < QUANTIZE_MIN {
        (0.0, 0.0)
    } else {
        (amax / 127.0, 127.0 / amax)
    }
}

/// RMSNorm (Zhang and Sennrich, arXiv 1910.07467): `out = (x * r) * weight`,
/// with the r of [`rms_reciprocal`].
///
/// Errors: a NaN or infinity in `x`, or a sum of squares that overflows.
#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<(), NonFinite> {
    rms_scale(x, rms_reciprocal(x, eps)?, weight, out);
    Ok(())
}

/// `1 / sqrt(mean(x^2) + eps)`, with the sum of [`SumOfSquares`].
///
/// Errors: a NaN or infinity in `x`, or a sum of squares that overflows.
#[inline(always)]
pub fn rms_reciprocal(x: &[f32], eps: f32) -> Result<f32, NonFinite> {
    let mut squares = SumOfSquares::default();
    squares.add(x);
    squares.reciprocal(x.len(), eps)
}

/// The sum of squares of a vector in 16 virtual lanes, lane i taking the
/// elements whose index is i modulo 16, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct SumOfSquares([f32; LANES]);

impl SumOfSquares {
    /// The sums of the lanes so far.
    pub(crate) fn lanes_mut(&mut self) -> &mut [f32; LANES] {
        &mut self.0
    }

    /// Adds the next elements; all parts but the last are whole lanes.
    #[inline(always)]
    pub fn add(&mut self, part: &[f32]) {
        let mut lanes = self.0;
        for chunk in part.chunks(LANES) {
            for (lane, &v) in lanes.iter_mut().zip(chunk) {
                *lane += v * v;
            }
        }
        self.0 = lanes;
    }

    /// `1 / sqrt(sum / len + eps)`.
    ///
    /// Errors: a sum that is NaN or infinite.
    #[inline(always)]
    pub fn reciprocal(self, len: usize, eps: f32) -> Result<f32, NonFinite> {
        let sum = sum_lanes(self.0);
        if !sum.is_finite() {
            return Err(NonFinite);
        }
        Ok(1.0 / sqrt(sum / len as f32 + eps))
    }
}

/// `out = (x * r) * weight`, element by element.
#[inline(always)]
pub fn rms_scale(x: &[f32], r: f32, weight: &[f32], out: &mut [f32]) {
    for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = (v * r) * w;
    }
}

/// `x = (x * r) * weight`, element by element.
#[inline(always)]
pub fn rms_scale_in_place(x: &mut [f32], r: f32, weight: &[f32]) {
    for (v, &w) in x.iter_mut().zip(weight) {
        *v = (*v * r) * w;
    }
}

/// `out = x + out`, element by element: biases and residuals.
#[inline(always)]
pub fn add(x: &[f32], out: &mut [f32]) {
    for (o, &v) in out.iter_mut().zip(x) {
        *o += v;
    }
}

/// Mean and `1 / sqrt(variance + eps)` of a LayerNorm (Ba et al., arXiv
/// 1607.06450). Both sums have the 16 virtual lanes of [`SumOfSquares`]; the
/// variance is the mean square of `x - mean`.
///
/// Errors: a NaN or infinity in `x`, or a sum that overflows.
#[inline(always)]
pub fn layer_moments(x: &[f32], eps: f32) -> Result<(f32, f32), NonFinite> {
    let mut lanes = [0.0f32; LANES];
    for chunk in x.chunks(LANES) {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += v;
        }
    }
    let mean = sum_lanes(lanes) / x.len() as f32;
    let mut squares = [0.0f32; LANES];
    for chunk in x.chunks(LANES) {
        for (lane, &v) in squares.iter_mut().zip(chunk) {
            let v = v - mean;
            *lane += v * v;
        }
    }
    Ok((mean, SumOfSquares(squares).reciprocal(x.len(), eps)?))
}

/// `out = ((x - mean) * r) * weight`, element by element.
#[inline(always)]
pub fn layer_scale(x: &[f32], mean: f32, r: f32, weight: &[f32], out: &mut [f32]) {
    for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = ((v - mean) * r) * w;
    }
}

/// `out = cap * tanh(x / cap)`, element by element.
///
/// Errors: a NaN or infinity in `x`, which the cap would hide.
#[inline(always)]
pub fn softcap_all(x: &[f32], cap: f32, out: &mut [f32]) -> Result<(), NonFinite> {
    let mut finite = true;
    for (o, &v) in out.iter_mut().zip(x) {
        finite &= v.is_finite();
        *o = softcap(v, cap);
    }
    if finite { Ok(()) } else { Err(NonFinite) }
}

/// `function(gate) * up`, element by element.
#[inline(always)]
pub fn gate(function: GateFunction, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match function {
        GateFunction::Silu => {
            for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *o = silu(g) * u;
            }
        }
        GateFunction::GeluTanh => {
            for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                *o = gelu_tanh(g) * u;
            }
        }
    }
}

/// `scale` times cos (first half) and sin (second half) of `position *
/// frequency` for one column.
pub fn rope_table(position: u32, inverse_frequencies: &[f64], scale: f32, out: &mut [f32]) {
    let pairs = inverse_frequencies.len();
    let (cos, sin) = out.split_at_mut(pairs);
    for ((c, s), &f) in cos.iter_mut().zip(sin).zip(inverse_frequencies) {
        let (cos, sin) = cos_sin(position as f64 * f);
        (*c, *s) = (cos * scale, sin * scale);
    }
}

/// Rotates one head by the column's table of [`rope_table`]:
/// `(a, b) -> (a cos - b sin, a sin + b cos)`.
#[inline(always)]
pub fn rotate_head(rope: Rope, table: &[f32], head: &mut [f32]) {
    let pairs = rope.pairs as usize;
    let (cos, sin) = (&table[..pairs], &table[pairs..2 * pairs]);
    for i in 0..pairs {
        let (a, b) = match rope.pairing {
            RopePairing::Adjacent => (2 * i, 2 * i + 1),
            RopePairing::Halves => (i, i + pairs),
        };
        let (x, y) = (head[a], head[b]);
        head[a] = x * cos[i] - y * sin[i];
        head[b] = x * sin[i] + y * cos[i];
    }
}

/// Row `token` of a panel-packed table: `out = scale * row`.
pub fn embed_panels(format: WeightFormat, table: &[u8], token: u32, scale: f32, out: &mut [f32]) {
    let size = format.panel_bytes(out.len() as u32) as usize;
    let at = (token / 16) as usize * size;
    panel::dequantize_lane(format, &table[at..at + size], (token % 16) as usize, out);
    for o in out {
        *o *= scale;
    }
}

/// Row `token` of a row-major table: `out = scale * row`.
pub fn embed_rows(format: WeightFormat, table: &[u8], token: u32, scale: f32, out: &mut [f32]) {
    let size = format.row_bytes(out.len() as u32) as usize;
    let at = token as usize * size;
    block::dequantize_row(format, &table[at..at + size], out);
    for o in out {
        *o *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// Codes, scales, scaled sums, sums.
    type Blocks = (Vec<i8>, Vec<f32>, Vec<f32>, Vec<i16>);

    fn quantized(x: &[f32]) -> Result<Blocks, NonFinite> {
        let n = x.len() / 32;
        let (mut c, mut d) = (vec![0; 32 * n], vec![0.0; n]);
        let (mut ds, mut s) = (vec![0.0; n], vec![0; 2 * n]);
        quantize(
            x,
            Q8BlocksMut {
                codes: &mut c,
                scales: &mut d,
                scaled_sums: &mut ds,
                sums: &mut s,
            },
        )?;
        Ok((c, d, ds, s))
    }

    #[test]
    fn quantize_rounds_half_to_even_and_keeps_the_largest_at_127() {
        let mut x = [0.0f32; 32];
        x[0] = -127.0;
        x[1] = 0.5;
        x[2] = 1.5;
        x[3] = 2.5;
        x[31] = -2.5;
        let (c, d, ds, s) = quantized(&x).unwrap();
        assert_eq!((c[0], c[1], c[2], c[3], c[31]), (-127, 0, 2, 2, -2));
        assert_eq!((d[0], s[0], s[1]), (1.0, -123, -2));
        assert_eq!(ds[0], -125.0);
    }

    #[test]
    fn quantize_never_leaves_its_range() {
        let mut state = 7u32;
        for _ in 0..100_000 {
            let x: [f32; 32] = core::array::from_fn(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                let v = f32::from_bits(state);
                if v.is_finite() { v } else { 1.0 }
            });
            let (c, ..) = quantized(&x).unwrap();
            assert!(c.iter().all(|&c| c != -128), "{x:?}");
        }
    }

    #[test]
    fn tiny_blocks_are_zero_and_non_finite_ones_are_errors() {
        let (c, d, ..) = quantized(&[1e-31; 32]).unwrap();
        assert_eq!((c[0], d[0]), (0, 0.0));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [0.0; 32];
            x[17] = bad;
            assert_eq!(quantized(&x), Err(NonFinite));
            assert_eq!(
                rms_norm(&x, &[1.0; 32], 1e-5, &mut [0.0; 32]),
                Err(NonFinite)
            );
        }
    }

    #[test]
    fn layer_norm_has_zero_mean_and_unit_variance() {
        let x: Vec<f32> = (0..100).map(|i| (i * i) as f32 * 0.01 - 30.0).collect();
        let (mean, r) = layer_moments(&x, 0.0).unwrap();
        let mut out = vec![0.0; 100];
        layer_scale(&x, mean, r, &[1.0; 100], &mut out);
        let mean: f32 = out.iter().sum::<f32>() / 100.0;
        let square: f32 = out.iter().map(|v| v * v).sum::<f32>() / 100.0;
        assert!(mean.abs() < 1e-6 && (square - 1.0).abs() < 1e-5);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = x.clone();
            x[63] = bad;
            assert_eq!(layer_moments(&x, 1e-5), Err(NonFinite));
        }
    }

    #[test]
    fn norm_has_unit_mean_square() {
        let x: Vec<f32> = (0..100).map(|i| i as f32 - 30.0).collect();
        let mut out = vec![0.0; 100];
        rms_norm(&x, &[1.0; 100], 0.0, &mut out).unwrap();
        let mean: f32 = out.iter().map(|v| v * v).sum::<f32>() / 100.0;
        assert!((mean - 1.0).abs() < 1e-5);
    }
}
