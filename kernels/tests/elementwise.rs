//! Elementwise kernels on lanes equal the reference, bit for bit, for lengths with
//! and without a rest, on ordinary and extreme values.

mod common;

use common::Random;
use omex_kernels::elementwise;
use omex_kernels::reference::{
    self, HeadTransform, KvRingMut, NonFinite, Q8BlocksMut, SumOfSquares,
};
use omex_kernels::spec::{GateFunction, Rope, RopePairing};

type V = [f32; 16];

const LENGTHS: [usize; 9] = [1, 15, 16, 17, 32, 48, 100, 256, 577];

/// Magnitudes from denormals to far above what activations are.
fn row(r: &mut Random, len: usize) -> Vec<f32> {
    let element = |_| {
        let x = r.uniform();
        match r.next() % 16 {
            0 => 0.0,
            1 => -0.0,
            2 => x * 1e-39,
            3 => x * 1e-6,
            4 => x * 300.0,
            5 => x * 1e12,
            _ => x * 4.0,
        }
    };
    (0..len).map(element).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[derive(Debug, PartialEq)]
struct Q8 {
    codes: Vec<i8>,
    scales: Vec<u32>,
    scaled_sums: Vec<u32>,
    sums: Vec<i16>,
}

fn quantized(
    x: &[f32],
    quantize: impl Fn(&[f32], Q8BlocksMut<'_>) -> Result<(), NonFinite>,
) -> Result<Q8, NonFinite> {
    let blocks = x.len() / 32;
    let (mut codes, mut sums) = (vec![0; x.len()], vec![0; 2 * blocks]);
    let (mut scales, mut scaled_sums) = (vec![0.0; blocks], vec![0.0; blocks]);
    quantize(
        x,
        Q8BlocksMut {
            codes: &mut codes,
            scales: &mut scales,
            scaled_sums: &mut scaled_sums,
            sums: &mut sums,
        },
    )?;
    Ok(Q8 {
        codes,
        scales: bits(&scales),
        scaled_sums: bits(&scaled_sums),
        sums,
    })
}

#[test]
fn quantized_blocks_are_the_reference_s() {
    let mut r = Random(1);
    for _ in 0..200 {
        for blocks in 1..6 {
            let mut x = row(&mut r, 32 * blocks);
            let [a, b] = [
                quantized(&x, elementwise::quantize::<V>),
                quantized(&x, reference::quantize),
            ];
            assert_eq!(a, b);
            assert!(a.is_ok());
            let at = r.next() as usize % x.len();
            for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                x[at] = wrong;
                assert_eq!(quantized(&x, elementwise::quantize::<V>), Err(NonFinite));
            }
        }
    }
}

#[test]
fn norms_and_sums_are_the_reference_s() {
    let mut r = Random(2);
    for len in LENGTHS {
        for _ in 0..50 {
            let (x, weight) = (row(&mut r, len), row(&mut r, len));
            let x: Vec<f32> = x.iter().map(|x| x * 1e-3).collect();
            let of_lanes = elementwise::rms_reciprocal::<V>(&x, 1e-5).unwrap();
            let of_reference = reference::rms_reciprocal(&x, 1e-5).unwrap();
            assert_eq!(of_lanes.to_bits(), of_reference.to_bits());
            let [mut a, mut b] = [vec![0.0; len], vec![0.0; len]];
            elementwise::rms_scale::<V>(&x, of_lanes, &weight, &mut a);
            reference::rms_scale(&x, of_lanes, &weight, &mut b);
            assert_eq!(bits(&a), bits(&b));
            elementwise::add::<V>(&x, &mut a);
            reference::add(&x, &mut b);
            assert_eq!(bits(&a), bits(&b));
            elementwise::rms_scale_in_place::<V>(&mut a, of_lanes, &weight);
            reference::rms_scale_in_place(&mut b, of_lanes, &weight);
            assert_eq!(bits(&a), bits(&b));
            // In parts, of which only the last has a rest.
            let mut squares = SumOfSquares::default();
            for part in x.chunks(32) {
                elementwise::add_squares::<V>(&mut squares, part);
            }
            let of_parts = squares.reciprocal(len, 1e-5).unwrap();
            assert_eq!(of_parts.to_bits(), of_reference.to_bits());
        }
        let mut x = row(&mut r, len);
        x[len / 2] = f32::NAN;
        assert_eq!(elementwise::rms_reciprocal::<V>(&x, 1e-5), Err(NonFinite));
    }
}

#[test]
fn gates_and_caps_are_the_reference_s() {
    let mut r = Random(3);
    for len in LENGTHS {
        for _ in 0..50 {
            let (gate, up) = (row(&mut r, len), row(&mut r, len));
            let [mut a, mut b] = [vec![0.0; len], vec![0.0; len]];
            for function in [GateFunction::Silu, GateFunction::GeluTanh] {
                elementwise::gate::<V>(function, &gate, &up, &mut a);
                reference::gate(function, &gate, &up, &mut b);
                let equal = a.iter().zip(&b).all(|(a, b)| {
                    // Infinity times zero; the sign of a NaN is unspecified.
                    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
                });
                assert!(equal, "{function:?} of {gate:?} and {up:?}");
            }
            assert_eq!(elementwise::softcap_all::<V>(&gate, 30.0, &mut a), Ok(()));
            assert_eq!(reference::softcap_all(&gate, 30.0, &mut b), Ok(()));
            assert_eq!(bits(&a), bits(&b));
        }
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, len / 2, len - 1] {
                let mut x = row(&mut r, len);
                x[at] = wrong;
                let capped = elementwise::softcap_all::<V>(&x, 30.0, &mut vec![0.0; len]);
                assert_eq!(capped, Err(NonFinite));
            }
        }
    }
}

#[test]
fn stored_keys_and_values_are_the_reference_s() {
    let mut r = Random(4);
    for dim in [32, 40, 64, 96, 128] {
        for position in 0..32 {
            let small =
                |x: Vec<f32>| -> Vec<f32> { x.iter().map(|x| x.clamp(-9e3, 9e3)).collect() };
            let (k, v, table) = (
                small(row(&mut r, dim)),
                small(row(&mut r, dim)),
                small(row(&mut r, dim)),
            );
            let (weight, rope) = (small(row(&mut r, dim)), rope(dim as u32 / 2));
            let table: Vec<f32> = table.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
            let transforms = [
                HeadTransform {
                    norm: None,
                    rope: Some((rope, &table)),
                },
                HeadTransform {
                    norm: Some((&weight, 1e-6)),
                    rope: None,
                },
            ];
            for transform in transforms {
                let stored = |of_lanes: bool| -> Result<_, NonFinite> {
                    let store = if of_lanes {
                        elementwise::kv_store::<V>
                    } else {
                        reference::kv_store
                    };
                    let [mut keys, mut values] = [vec![0u16; 16 * dim], vec![0u16; 16 * dim]];
                    store(
                        &k,
                        &v,
                        transform,
                        position,
                        &mut KvRingMut::F16(&mut keys),
                        &mut KvRingMut::F16(&mut values),
                    )?;
                    Ok((keys, values))
                };
                assert_eq!(stored(true), stored(false));
                if dim % 32 > 0 {
                    continue;
                }
                let quantized = |of_lanes: bool| -> Result<_, NonFinite> {
                    let store = if of_lanes {
                        elementwise::kv_store::<V>
                    } else {
                        reference::kv_store
                    };
                    let [mut keys, mut values] = [vec![0i8; 16 * dim], vec![0i8; 16 * dim]];
                    let [mut of_keys, mut of_values] = [vec![0.0; dim / 2], vec![0.0; dim / 2]];
                    store(
                        &k,
                        &v,
                        transform,
                        position,
                        &mut KvRingMut::Q8 {
                            codes: &mut keys,
                            scales: &mut of_keys,
                        },
                        &mut KvRingMut::Q8 {
                            codes: &mut values,
                            scales: &mut of_values,
                        },
                    )?;
                    Ok((keys, values, bits(&of_keys), bits(&of_values)))
                };
                assert_eq!(quantized(true), quantized(false));
            }
            for wrong in [f32::NAN, f32::INFINITY, 65520.0, -1e30] {
                let mut v = v.clone();
                let at = r.next() as usize % dim;
                v[at] = wrong;
                let [mut keys, mut values] = [vec![0u16; 16 * dim], vec![0u16; 16 * dim]];
                let stored = elementwise::kv_store::<V>(
                    &k,
                    &v,
                    transforms[0],
                    position,
                    &mut KvRingMut::F16(&mut keys),
                    &mut KvRingMut::F16(&mut values),
                );
                assert_eq!(stored, Err::<(), _>(NonFinite), "{wrong} at {at}");
            }
        }
    }
}

fn rope(pairs: u32) -> Rope {
    Rope {
        pairs,
        pairing: RopePairing::Halves,
    }
}
