//! Elementwise kernels on sixteen lanes at a time, bit for bit what the functions
//! of [`reference`] with the same names compute. What is left behind the last
//! whole sixteen is left to them.
//!
//! Everything is inlined into a caller that is compiled for the vectors of its
//! [`Lanes`]; a closure would be a function without them.

use crate::lanes::{LANES, Lanes};
use crate::math::{GELU_CUBE, GELU_SCALE, f32_to_f16};
use crate::reference::{self, HeadTransform, KvRingMut, NonFinite, Q8BlocksMut, SumOfSquares};
use crate::spec::{GateFunction, HEAD_DIM_MAX};

/// The firsts of the whole sixteens of `len` elements, and the first behind them.
#[inline(always)]
fn sixteens(len: usize) -> (core::iter::StepBy<core::ops::Range<usize>>, usize) {
    let end = len / LANES * LANES;
    ((0..end).step_by(LANES), end)
}

#[inline(always)]
fn load<V: Lanes>(x: &[f32], at: usize) -> V {
    V::load(x[at..].first_chunk().expect("a whole sixteen"))
}

#[inline(always)]
fn store<V: Lanes>(v: V, x: &mut [f32], at: usize) {
    v.store(x[at..].first_chunk_mut().expect("a whole sixteen"));
}

/// [`reference::quantize`].
#[inline(always)]
pub fn quantize<V: Lanes>(x: &[f32], out: Q8BlocksMut<'_>) -> Result<(), NonFinite> {
    let mut finite = true;
    let (x, _) = x.as_chunks::<32>();
    let (codes, _) = out.codes.as_chunks_mut::<32>();
    let (sums, _) = out.sums.as_chunks_mut::<2>();
    let scales = out.scales.iter_mut().zip(out.scaled_sums.iter_mut());
    for (((x, codes), (scale, scaled_sum)), sums) in x.iter().zip(codes).zip(scales).zip(sums) {
        let (d, of_halves) = quantize_block::<V>(x, codes);
        finite &= d.is_finite();
        *sums = of_halves.map(|sum| sum as i16);
        *scale = d;
        *scaled_sum = d * of_halves[0].wrapping_add(of_halves[1]) as f32;
    }
    if finite { Ok(()) } else { Err(NonFinite) }
}

/// [`reference::kv_store`].
#[inline(always)]
pub fn kv_store<V: Lanes>(
    k: &[f32],
    v: &[f32],
    transform: HeadTransform<'_>,
    position: u32,
    keys: &mut KvRingMut<'_>,
    values: &mut KvRingMut<'_>,
) -> Result<(), NonFinite> {
    let slot = position as usize % LANES;
    let mut key = [0.0f32; HEAD_DIM_MAX as usize];
    let key = &mut key[..k.len()];
    transform.apply(k, key)?;
    let blocks = v.len() / 32;
    put::<V>(keys, key, slot, slot, LANES)?;
    put::<V>(values, v, slot * v.len(), slot * blocks, 1)
}

/// Stores one slot's elements: element d at `base + d * stride`, block b's scale
/// at `scale_base + b * stride`.
#[inline(always)]
fn put<V: Lanes>(
    ring: &mut KvRingMut<'_>,
    x: &[f32],
    base: usize,
    scale_base: usize,
    stride: usize,
) -> Result<(), NonFinite> {
    let mut finite = true;
    match ring {
        KvRingMut::F16(halves) => {
            let (firsts, end) = sixteens(x.len());
            let mut of_lanes = [0; LANES];
            for at in firsts {
                load::<V>(x, at).to_f16(&mut of_lanes);
                for (d, half) in (at..).zip(of_lanes) {
                    finite &= half & 0x7c00 != 0x7c00;
                    halves[base + d * stride] = half;
                }
            }
            for (d, &x) in x.iter().enumerate().skip(end) {
                let half = f32_to_f16(x);
                finite &= half & 0x7c00 != 0x7c00;
                halves[base + d * stride] = half;
            }
        }
        KvRingMut::Q8 { codes, scales } => {
            for (b, block) in x.as_chunks::<32>().0.iter().enumerate() {
                let mut of_block = [0; 32];
                let (d, _) = quantize_block::<V>(block, &mut of_block);
                finite &= d.is_finite();
                scales[scale_base + b * stride] = d;
                for (d, &code) in of_block.iter().enumerate() {
                    codes[base + (b * 32 + d) * stride] = code;
                }
            }
        }
    }
    if finite { Ok(()) } else { Err(NonFinite) }
}

/// Codes of one block of [`reference::quantize`]; returns its scale, which is
/// finite when the elements are, and the sums of its halves.
#[inline(always)]
fn quantize_block<V: Lanes>(x: &[f32; 32], codes: &mut [i8; 32]) -> (f32, [i32; 2]) {
    let [low, high] = [load::<V>(x, 0), load::<V>(x, LANES)];
    let (d, inverse) = reference::quantize_scale(low.magnitude_bits_max(high));
    let inverse = V::splat(inverse);
    let (codes, _) = codes.as_chunks_mut::<LANES>();
    let sums = [
        low.mul(inverse).to_i8(&mut codes[0]),
        high.mul(inverse).to_i8(&mut codes[1]),
    ];
    (d, sums)
}

/// Adds the next elements to a sum; all parts but the last are whole lanes.
#[inline(always)]
pub fn add_squares<V: Lanes>(squares: &mut SumOfSquares, x: &[f32]) {
    let mut sum = V::load(squares.lanes_mut());
    let (firsts, end) = sixteens(x.len());
    for at in firsts {
        let v: V = load(x, at);
        sum = sum.add(v.mul(v));
    }
    sum.store(squares.lanes_mut());
    squares.add(&x[end..]);
}

/// [`reference::rms_reciprocal`].
#[inline(always)]
pub fn rms_reciprocal<V: Lanes>(x: &[f32], eps: f32) -> Result<f32, NonFinite> {
    let mut squares = SumOfSquares::default();
    add_squares::<V>(&mut squares, x);
    squares.reciprocal(x.len(), eps)
}

/// [`reference::rms_scale`].
#[inline(always)]
pub fn rms_scale<V: Lanes>(x: &[f32], r: f32, weight: &[f32], out: &mut [f32]) {
    let factor = V::splat(r);
    let (firsts, end) = sixteens(out.len());
    for at in firsts {
        let scaled = load::<V>(x, at).mul(factor).mul(load(weight, at));
        store(scaled, out, at);
    }
    reference::rms_scale(&x[end..], r, &weight[end..], &mut out[end..]);
}

/// [`reference::rms_scale_in_place`].
#[inline(always)]
pub fn rms_scale_in_place<V: Lanes>(x: &mut [f32], r: f32, weight: &[f32]) {
    let factor = V::splat(r);
    let (firsts, end) = sixteens(x.len());
    for at in firsts {
        let scaled = load::<V>(x, at).mul(factor).mul(load(weight, at));
        store(scaled, x, at);
    }
    reference::rms_scale_in_place(&mut x[end..], r, &weight[end..]);
}

/// [`reference::add`].
#[inline(always)]
pub fn add<V: Lanes>(x: &[f32], out: &mut [f32]) {
    let (firsts, end) = sixteens(out.len());
    for at in firsts {
        store(load::<V>(out, at).add(load(x, at)), out, at);
    }
    reference::add(&x[end..], &mut out[end..]);
}

/// [`reference::softcap_all`].
#[inline(always)]
pub fn softcap_all<V: Lanes>(x: &[f32], cap: f32, out: &mut [f32]) -> Result<(), NonFinite> {
    // Zero times a number is zero, times NaN or infinity NaN.
    let mut wrong = V::splat(0.0);
    let of_lanes = V::splat(cap);
    let (firsts, end) = sixteens(out.len());
    for at in firsts {
        let v: V = load(x, at);
        wrong = wrong.add(v.mul(V::splat(0.0)));
        store(of_lanes.mul(tanh(v.div(of_lanes))), out, at);
    }
    let mut lanes = [0.0; LANES];
    wrong.store(&mut lanes);
    let rest = reference::softcap_all(&x[end..], cap, &mut out[end..]);
    if lanes.iter().any(|x| x.is_nan()) {
        return Err(NonFinite);
    }
    rest
}

/// [`reference::gate`].
#[inline(always)]
pub fn gate<V: Lanes>(function: GateFunction, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (firsts, end) = sixteens(out.len());
    match function {
        GateFunction::Silu => {
            for at in firsts {
                store(silu(load::<V>(gate, at)).mul(load(up, at)), out, at);
            }
        }
        GateFunction::GeluTanh => {
            for at in firsts {
                store(gelu_tanh(load::<V>(gate, at)).mul(load(up, at)), out, at);
            }
        }
    }
    reference::gate(function, &gate[end..], &up[end..], &mut out[end..]);
}

/// [`crate::math::silu`].
#[inline(always)]
fn silu<V: Lanes>(x: V) -> V {
    let negative = x.mul(V::splat(-1.0));
    x.div(V::splat(1.0).add(negative.exp()))
}

/// [`crate::math::tanh`].
#[inline(always)]
fn tanh<V: Lanes>(x: V) -> V {
    let one = V::splat(1.0);
    one.sub(V::splat(2.0).div(x.add(x).exp().add(one)))
}

/// [`crate::math::gelu_tanh`].
#[inline(always)]
fn gelu_tanh<V: Lanes>(x: V) -> V {
    let cube = V::splat(GELU_CUBE).mul(x.mul(x)).mul(x);
    let inner = V::splat(GELU_SCALE).mul(x.add(cube));
    V::splat(0.5).mul(x).mul(V::splat(1.0).add(tanh(inner)))
}
