//! Attention of several queries equals that of each, bit for bit.

mod common;

use common::Random;
use omex_kernels::attention::attend_many;
use omex_kernels::reference::{
    AttentionHead, HeadTransform, KvHead, KvRing, KvRingMut, attend, kv_store,
};
use omex_kernels::spec::KvFormat;

fn row(r: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| r.uniform()).collect()
}

/// One head's ring after `total` positions.
struct Ring {
    format: KvFormat,
    halves: [Vec<u16>; 2],
    codes: [Vec<i8>; 2],
    scales: [Vec<f32>; 2],
}

impl Ring {
    fn new(r: &mut Random, format: KvFormat, ring: usize, dim: usize, total: u32) -> Ring {
        let elements = ring * dim;
        let mut made = Ring {
            format,
            halves: [vec![0; elements], vec![0; elements]],
            codes: [vec![0; elements], vec![0; elements]],
            scales: [vec![0.0; elements / 32], vec![0.0; elements / 32]],
        };
        let plain = HeadTransform {
            norm: None,
            rope: None,
        };
        for position in 0..total {
            let group = position as usize % ring / 16 * 16;
            let at = group * dim..(group + 16) * dim;
            let scales_at = at.start / 32..at.end / 32;
            let parts = made.halves.iter_mut().zip(&mut made.codes);
            let mut parts =
                parts
                    .zip(&mut made.scales)
                    .map(|((halves, codes), scales)| match format {
                        KvFormat::F16 => KvRingMut::F16(&mut halves[at.clone()]),
                        KvFormat::Q8 => KvRingMut::Q8 {
                            codes: &mut codes[at.clone()],
                            scales: &mut scales[scales_at.clone()],
                        },
                    });
            let (mut keys, mut values) = (parts.next().unwrap(), parts.next().unwrap());
            let (k, v) = (row(r, dim), row(r, dim));
            kv_store(&k, &v, plain, position, &mut keys, &mut values).unwrap();
        }
        made
    }

    fn head(&self) -> KvHead<'_> {
        let part = |i: usize| match self.format {
            KvFormat::F16 => KvRing::F16(&self.halves[i]),
            KvFormat::Q8 => KvRing::Q8 {
                codes: &self.codes[i],
                scales: &self.scales[i],
            },
        };
        KvHead {
            keys: part(0),
            values: part(1),
        }
    }
}

fn check<const B: usize, const G: usize>(format: KvFormat, dim: usize) {
    let mut r = Random(7 + dim as u32 + B as u32);
    for (total, ring, window) in [
        (1u32, 16usize, 0u32),
        (100, 112, 0),
        (129, 144, 0),
        (300, 304, 0),
        (300, 304, 130),
        (500, 144, 100),
        (513, 48, 9),
    ] {
        let made = Ring::new(&mut r, format, ring, dim, total);
        for softcap in [None, Some(0.7)] {
            // The last query is at the newest position, the others close behind.
            let heads: [AttentionHead; B] = std::array::from_fn(|b| {
                let position = total - 1 - (r.next() % 20).min(total - 1) * (b > 0) as u32;
                AttentionHead {
                    position,
                    first: match window {
                        0 => 0,
                        window => (position + 1).saturating_sub(window),
                    },
                    scale: 0.3,
                    softcap,
                }
            });
            let queries: [Vec<f32>; B] = std::array::from_fn(|_| row(&mut r, dim));
            let q = queries.each_ref().map(Vec::as_slice);
            let mut results: [Vec<f32>; B] = std::array::from_fn(|_| vec![f32::NAN; dim]);
            let mut out = results.each_mut().map(Vec::as_mut_slice);
            attend_many::<[f32; 16], B, G>(&heads, &q, made.head(), &mut out).unwrap();
            for (b, head) in heads.iter().enumerate() {
                let mut expected = vec![f32::NAN; dim];
                attend(*head, q[b], made.head(), &mut expected).unwrap();
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    bits(&results[b]),
                    bits(&expected),
                    "{format:?}, head of {dim}, {total} positions in {ring}, {head:?}, {b} of {B}"
                );
            }
        }
    }
}

#[test]
fn many_queries_equal_single_ones() {
    for (format, dims) in [
        (KvFormat::F16, &[2usize, 18, 32, 64, 80, 256][..]),
        (KvFormat::Q8, &[32, 64, 96]),
    ] {
        for &dim in dims {
            check::<1, 4>(format, dim);
            check::<2, 2>(format, dim);
            check::<3, 1>(format, dim);
            check::<4, 1>(format, dim);
        }
    }
}

#[test]
fn scores_that_are_not_finite_are_errors() {
    let mut r = Random(3);
    let ring = Ring::new(&mut r, KvFormat::F16, 16, 32, 16);
    let head = AttentionHead {
        position: 15,
        first: 0,
        scale: 1.0,
        softcap: None,
    };
    let (good, bad) = (vec![1.0f32; 32], vec![f32::INFINITY; 32]);
    let mut out = [vec![0.0; 32], vec![0.0; 32]];
    let mut run = |q: [&[f32]; 2]| {
        let mut out = out.each_mut().map(Vec::as_mut_slice);
        attend_many::<[f32; 16], 2, 1>(&[head; 2], &q, ring.head(), &mut out)
    };
    assert!(run([&good, &good]).is_ok());
    assert!(run([&good, &bad]).is_err());
}
