//! F32, F16 and BF16 weights: f32 activations, sequential k per lane.

use super::emit::{Address, Emit};
use super::frame::{Frame, Pass, QUADS};
use super::scales::F16ToF32;
use crate::KernelShape;
use cranelift_codegen::ir::types::{F32X4, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use omex_kernels::WeightFormat;

/// Columns of a tile, which takes two quads at a time: 8 accumulators.
const TILE: usize = 4;

/// Quads of a tile's body.
const TILE_QUADS: usize = 2;

pub(super) fn shape() -> KernelShape {
    KernelShape {
        tile_columns: TILE,
        tile_rows: 4 * TILE_QUADS as u32,
        columns_in_work: None,
        prefetch: None,
    }
}

pub(super) fn build(e: &mut Emit, frame: &Frame) {
    frame.build(e, TILE, |e, pass| {
        let quads = if pass.columns == 1 { QUADS } else { TILE_QUADS };
        for first in (0..QUADS).step_by(quads) {
            rows(e, frame, &pass, first, quads);
        }
    });
}

/// All columns of the pass for `quads` quads from `first` on.
fn rows(e: &mut Emit, frame: &Frame, pass: &Pass, first: usize, quads: usize) {
    // A step is 64 bytes: one k of F32, two of the halves.
    let per_step = frame.format.k_multiple();
    let steps = frame.k / per_step;
    let unroll = [4, 2, 1]
        .into_iter()
        .find(|u| steps.is_multiple_of(*u))
        .expect("1 divides");
    let sums = pass.columns * quads;
    let halves = F16ToF32::new(e);
    let zero = e.f32s(0.0);
    let mut carried = vec![zero; sums];
    carried.push(e.advance(pass.weights, 16 * first as u64));
    carried.push(pass.activations);
    let carried = e.repeat(steps / unroll, &carried, |e, v| {
        let mut v = v.to_vec();
        let (weights, activations) = (Address::new(v[sums]), Address::new(v[sums + 1]));
        for i in 0..unroll * per_step {
            let at = weights.plus(64 * (i / per_step));
            let weight = |e: &mut Emit, q: usize| {
                element(
                    e,
                    frame.format,
                    halves,
                    at.plus(16 * q as u32),
                    i % per_step,
                )
            };
            if pass.columns == 1 {
                let a = e.load_splat(F32X4, activations.plus(4 * i));
                for (q, sum) in v[..quads].iter_mut().enumerate() {
                    let w = weight(e, q);
                    *sum = e.mul_add(*sum, a, w);
                }
                continue;
            }
            let w: Vec<Value> = (0..quads).map(|q| weight(e, q)).collect();
            for c in 0..pass.columns {
                let at = activations.plus(frame.activation_stride * c as u32 + 4 * i);
                let a = e.load_splat(F32X4, at);
                for (sum, w) in v[c * quads..].iter_mut().zip(&w) {
                    *sum = e.mul_add(*sum, a, *w);
                }
            }
        }
        v[sums] = e.advance(weights.base, 64 * unroll as u64);
        v[sums + 1] = e.advance(activations.base, 4 * (unroll * per_step) as u64);
        v
    });
    for c in 0..pass.columns {
        for q in 0..quads {
            frame.write(e, pass, c, first + q, carried[c * quads + q]);
        }
    }
}

/// Element `index` of the step whose four rows lie at `at`, as f32.
fn element(e: &mut Emit, format: WeightFormat, halves: F16ToF32, at: Address, index: u32) -> Value {
    if format == WeightFormat::F32 {
        return e.load(F32X4, at);
    }
    let pair = e.load(I32X4, at);
    if format == WeightFormat::BF16 {
        let bits = if index == 0 {
            e.shift_left(pair, 16)
        } else {
            let mask = e.u32s(0xffff_0000);
            e.b.ins().band(pair, mask)
        };
        return e.cast(F32X4, bits);
    }
    // Sign and magnitude of the half at the places of an f32's, with an exponent
    // that is 112 too small.
    let high = if index == 0 {
        e.shift_left(pair, 16)
    } else {
        pair
    };
    let spread = e.shift_right_signed(high, 3);
    halves.convert(e, spread)
}
