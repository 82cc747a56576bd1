//! Attention of several queries equals that of each, bit for bit.

mod common;

use common::Random;
use omex_kernels::attention::Queries;
use omex_kernels::lanes::{LANES, Lanes};
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

/// Lanes that have room for the sums of eight queries.
#[derive(Clone, Copy)]
struct Wide([f32; LANES]);

impl Lanes for Wide {
    const QUERIES: usize = 8;

    fn splat(x: f32) -> Self {
        Wide(Lanes::splat(x))
    }

    fn load(x: &[f32; LANES]) -> Self {
        Wide(Lanes::load(x))
    }

    fn store(self, to: &mut [f32; LANES]) {
        self.0.store(to)
    }

    fn from_f16(halves: &[u16; LANES]) -> Self {
        Wide(Lanes::from_f16(halves))
    }

    fn to_f16(self, halves: &mut [u16; LANES]) {
        self.0.to_f16(halves)
    }

    fn from_i8(codes: &[i8; LANES]) -> Self {
        Wide(Lanes::from_i8(codes))
    }

    fn to_i8(self, codes: &mut [i8; LANES]) -> i32 {
        self.0.to_i8(codes)
    }

    fn magnitude_bits_max(self, other: Self) -> u32 {
        self.0.magnitude_bits_max(other.0)
    }

    fn add(self, other: Self) -> Self {
        Wide(self.0.add(other.0))
    }

    fn sub(self, other: Self) -> Self {
        Wide(self.0.sub(other.0))
    }

    fn mul(self, other: Self) -> Self {
        Wide(self.0.mul(other.0))
    }

    fn div(self, other: Self) -> Self {
        Wide(self.0.div(other.0))
    }

    fn max(self, other: Self) -> Self {
        Wide(self.0.max(other.0))
    }

    fn exp(self) -> Self {
        Wide(self.0.exp())
    }
}

fn check<V: Lanes>(queries: &mut Queries, count: usize, format: KvFormat, dim: usize) {
    let mut r = Random(7 + dim as u32 + count as u32);
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
            let heads: Vec<AttentionHead> = (0..count)
                .map(|i| {
                    let position = total - 1 - (r.next() % 20).min(total - 1) * (i > 0) as u32;
                    AttentionHead {
                        position,
                        first: match window {
                            0 => 0,
                            window => (position + 1).saturating_sub(window),
                        },
                        scale: 0.3,
                        softcap,
                    }
                })
                .collect();
            let q: Vec<Vec<f32>> = (0..count).map(|_| row(&mut r, dim)).collect();
            queries.begin::<V>(count, dim);
            for (&head, row) in heads.iter().zip(&q) {
                let write = |x: &mut [f32]| {
                    x.copy_from_slice(row);
                    Ok(())
                };
                queries.push(head, write).unwrap();
            }
            queries.attend::<V>(made.head()).unwrap();
            assert_eq!(queries.results().count(), count);
            for (i, result) in queries.results().enumerate() {
                let mut expected = vec![f32::NAN; dim];
                attend(heads[i], &q[i], made.head(), &mut expected).unwrap();
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    bits(result),
                    bits(&expected),
                    "{format:?}, head of {dim}, {total} positions in {ring}, {:?}, {i} of {count}",
                    heads[i]
                );
            }
        }
    }
}

#[test]
fn many_queries_equal_single_ones() {
    // Kept, as threads keep theirs: what was computed before must not matter.
    let mut queries = Queries::default();
    for (format, dims) in [
        (KvFormat::F16, &[2usize, 18, 32, 64, 80, 256, 512][..]),
        (KvFormat::Q8, &[32, 64, 96, 256]),
    ] {
        for &dim in dims {
            for wished in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 17, 24, 27, 31, 40] {
                let count = Queries::at_once::<[f32; LANES]>(wished, dim);
                check::<[f32; LANES]>(&mut queries, count, format, dim);
                let count = Queries::at_once::<Wide>(wished, dim);
                check::<Wide>(&mut queries, count, format, dim);
            }
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
    let mut queries = Queries::default();
    let mut run = |of_queries: &[f32]| {
        queries.begin::<[f32; LANES]>(of_queries.len(), 32);
        for &x in of_queries {
            let write = |q: &mut [f32]| {
                q.fill(x);
                Ok(())
            };
            queries.push(head, write).unwrap();
        }
        queries.attend::<[f32; LANES]>(ring.head())
    };
    assert!(run(&[1.0; 2]).is_ok());
    assert!(run(&[1.0, f32::INFINITY]).is_err());
    assert!(run(&[1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0]).is_err());
    assert!(run(&[1.0; 6]).is_ok());
}
