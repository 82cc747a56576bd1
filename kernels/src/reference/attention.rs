use core::ops::Range;

use super::NonFinite;
use super::elementwise::{quantize_codes, rms_norm, rotate_head, sum_lanes};
use crate::math::{exp, f32_to_f16, finite_f16_to_f32, max, softcap};
use crate::spec::{ATTENTION_SPLIT, HEAD_DIM_MAX, KV_GROUP, Rope};

const LANES: usize = KV_GROUP as usize;
const SPLIT: usize = ATTENTION_SPLIT as usize;
/// Elements that share a scale in an int8 ring.
const BLOCK: usize = 32;

/// Keys or values of one head, as a ring or a part of it that begins at a
/// multiple of 16 slots. Position p lies at slot p % ring.
///
/// Keys are interleaved by 16 slots, so that scores of 16 positions need no
/// reduction across lanes: element (slot, d) lies at
/// `(slot / 16 * head_dim + d) * 16 + slot % 16`, the scale of (slot, block) at
/// `(slot / 16 * blocks + block) * 16 + slot % 16`. Values and their scales lie
/// slot by slot.
#[derive(Clone, Copy, Debug)]
pub enum KvRing<'a> {
    F16(&'a [u16]),
    /// Codes in [-127, 127] and one scale per 32 elements of a slot.
    Q8 {
        codes: &'a [i8],
        scales: &'a [f32],
    },
}

/// As [`KvRing`], to be written.
#[derive(Debug)]
pub enum KvRingMut<'a> {
    F16(&'a mut [u16]),
    Q8 {
        codes: &'a mut [i8],
        scales: &'a mut [f32],
    },
}

impl<'a> KvRing<'a> {
    /// Number of elements.
    pub(crate) fn len(self) -> usize {
        match self {
            KvRing::F16(halves) => halves.len(),
            KvRing::Q8 { codes, .. } => codes.len(),
        }
    }

    /// `count` slots from `slot` on, both multiples of 16 for keys.
    #[inline(always)]
    pub(crate) fn slots(self, slot: usize, count: usize, head_dim: usize) -> KvRing<'a> {
        let part = |row: usize| slot * row..(slot + count) * row;
        match self {
            KvRing::F16(halves) => KvRing::F16(&halves[part(head_dim)]),
            KvRing::Q8 { codes, scales } => KvRing::Q8 {
                codes: &codes[part(head_dim)],
                scales: &scales[part(head_dim / BLOCK)],
            },
        }
    }
}

impl KvRingMut<'_> {
    /// Stores one slot's elements: element d at `base + d * stride`, block b's
    /// scale at `scale_base + b * stride`.
    #[inline(always)]
    fn put(
        &mut self,
        x: &[f32],
        base: usize,
        scale_base: usize,
        stride: usize,
    ) -> Result<(), NonFinite> {
        let mut finite = true;
        match self {
            KvRingMut::F16(halves) => {
                for (d, &x) in x.iter().enumerate() {
                    let half = f32_to_f16(x);
                    finite &= half & 0x7c00 != 0x7c00;
                    halves[base + d * stride] = half;
                }
            }
            KvRingMut::Q8 { codes, scales } => {
                for (b, block) in x.chunks_exact(BLOCK).enumerate() {
                    let mut rounded = [0i32; BLOCK];
                    let quantized = quantize_codes(block, &mut rounded);
                    finite &= quantized.is_ok();
                    scales[scale_base + b * stride] = quantized.unwrap_or(0.0);
                    for (d, &code) in rounded.iter().enumerate() {
                        codes[base + (b * BLOCK + d) * stride] = code as i8;
                    }
                }
            }
        }
        if finite { Ok(()) } else { Err(NonFinite) }
    }
}

/// The keys and values of one key-value head.
#[derive(Clone, Copy, Debug)]
pub struct KvHead<'a> {
    pub keys: KvRing<'a>,
    pub values: KvRing<'a>,
}

/// What is done to a query or key head before it is used.
#[derive(Clone, Copy, Debug)]
pub struct HeadTransform<'a> {
    /// Weight and eps of an RMSNorm over the head.
    pub norm: Option<(&'a [f32], f32)>,
    /// RoPE and the table of the head's column.
    pub rope: Option<(Rope, &'a [f32])>,
}

impl HeadTransform<'_> {
    /// Errors: a NaN or infinity in a head that is normalized.
    #[inline(always)]
    pub fn apply(self, x: &[f32], out: &mut [f32]) -> Result<(), NonFinite> {
        match self.norm {
            Some((weight, eps)) => rms_norm(x, weight, eps, out)?,
            None => out.copy_from_slice(x),
        }
        if let Some((rope, table)) = self.rope {
            rotate_head(rope, table, out);
        }
        Ok(())
    }
}

/// Writes the key and value of one head at one position. `keys` and `values`
/// are the group of 16 slots that the position lies in.
///
/// Errors: a key or value that is not finite or outside the format's range.
#[inline(always)]
pub fn kv_store(
    k: &[f32],
    v: &[f32],
    transform: HeadTransform<'_>,
    position: u32,
    keys: &mut KvRingMut<'_>,
    values: &mut KvRingMut<'_>,
) -> Result<(), NonFinite> {
    let head_dim = k.len();
    let slot = position as usize % LANES;
    let mut key = [0.0f32; HEAD_DIM_MAX as usize];
    let key = &mut key[..head_dim];
    let transformed = transform.apply(k, key);
    transformed
        .and(keys.put(key, slot, slot, LANES))
        .and(values.put(v, slot * head_dim, slot * (head_dim / BLOCK), 1))
}

/// One query head at one position.
#[derive(Clone, Copy, Debug)]
pub struct AttentionHead {
    /// Position of the query.
    pub position: u32,
    /// First position it sees.
    pub first: u32,
    pub scale: f32,
    /// With c, a scaled score s becomes `c * tanh(s / c)`.
    pub softcap: Option<f32>,
}

/// Softmax attention of one (transformed) query head over its ring.
///
/// Positions are cut at absolute multiples of 128 into splits. Per split:
/// scores (sequential over the head dimension, in an int8 ring over each block
/// and then over the blocks) times `scale` and capped, their maximum m, `p = exp(score - m)`, the sum l of p in 16 lanes by position modulo 16,
/// and o, the p-weighted values in ascending position. Splits merge in
/// ascending order, the one with the smaller maximum being rescaled by
/// `exp(difference)`. Positions that the query does not see are skipped.
///
/// Errors: a score that is NaN or infinite.
#[inline(always)]
pub fn attend(
    head: AttentionHead,
    q: &[f32],
    kv: KvHead<'_>,
    out: &mut [f32],
) -> Result<(), NonFinite> {
    let head_dim = q.len();
    let ring = (kv.values.len() / head_dim) as u32;
    let mut o_split = [0.0f32; HEAD_DIM_MAX as usize];
    let o_split = &mut o_split[..head_dim];
    let (mut m_all, mut l_all) = (0.0f32, 0.0f32);
    let end = head.position + 1;
    let mut begin = head.first;
    let mut any = false;
    while begin < end {
        let boundary = (begin / ATTENTION_SPLIT + 1) * ATTENTION_SPLIT;
        let stop = if boundary < end { boundary } else { end };
        let (m, l) = attend_split(head, begin..stop, ring, q, kv, o_split)?;
        if !any {
            out.copy_from_slice(o_split);
            (m_all, l_all) = (m, l);
            any = true;
        } else if m > m_all {
            let c = exp(m_all - m);
            for (o, &s) in out.iter_mut().zip(o_split.iter()) {
                *o = *o * c + s;
            }
            l_all = l_all * c + l;
            m_all = m;
        } else {
            let c = exp(m - m_all);
            for (o, &s) in out.iter_mut().zip(o_split.iter()) {
                *o += s * c;
            }
            l_all += l * c;
        }
        begin = stop;
    }
    let inverse = 1.0 / l_all;
    for o in out {
        *o *= inverse;
    }
    Ok(())
}

/// Scores, maximum, weights and weighted values of `positions`, which lie in
/// one split. Returns (m, l) and fills `o`.
#[inline(always)]
fn attend_split(
    query: AttentionHead,
    positions: Range<u32>,
    ring: u32,
    q: &[f32],
    kv: KvHead<'_>,
    o: &mut [f32],
) -> Result<(f32, f32), NonFinite> {
    let head_dim = q.len();
    let Range { start: begin, end } = positions;
    let split = begin / ATTENTION_SPLIT * ATTENTION_SPLIT;
    let (from, to) = ((begin - split) as usize, (end - split) as usize);
    let mut scores = [0.0f32; SPLIT];
    // Rings and splits are multiples of 16, so a group of 16 positions is
    // contiguous; lanes outside begin..end compute values nobody reads. Two
    // groups at a time hide the latency of the additions.
    let groups = from / LANES..to.div_ceil(LANES);
    let keys_of = |group: usize| {
        let slot = ((split + (group * LANES) as u32) % ring) as usize;
        kv.keys.slots(slot, LANES, head_dim)
    };
    let mut group = groups.start;
    while group < groups.end {
        let next = if group + 1 < groups.end {
            group + 1
        } else {
            group
        };
        let (a, b) = score_groups(q, keys_of(group), keys_of(next));
        scores[group * LANES..][..LANES].copy_from_slice(&a);
        scores[next * LANES..][..LANES].copy_from_slice(if next == group { &a } else { &b });
        group += 2;
    }
    let seen = &mut scores[from..to];
    let mut finite = true;
    for s in seen.iter_mut() {
        *s *= query.scale;
        finite &= s.is_finite();
    }
    // A cap would hide an infinity or NaN.
    if !finite {
        return Err(NonFinite);
    }
    if let Some(cap) = query.softcap {
        for s in seen.iter_mut() {
            *s = softcap(*s, cap);
        }
    }
    let mut m = seen[0];
    for &s in seen.iter() {
        m = max(s, m);
    }
    for s in seen.iter_mut() {
        *s = exp(*s - m);
    }
    // Weights outside begin..end become zero, and adding zero to a lane, which
    // is never negative, is the same as skipping it.
    scores[..from].fill(0.0);
    scores[to..].fill(0.0);
    let mut lanes = [0.0f32; LANES];
    for group in scores.chunks_exact(LANES) {
        for (lane, p) in lanes.iter_mut().zip(group) {
            *lane += p;
        }
    }
    let seen = &scores[from..to];
    // Elements of the head are independent: blocks of 32 stay in registers over
    // all positions. A run of slots ends where the ring wraps.
    let first_slot = (begin % ring) as usize;
    let until_wrap = if seen.len() < ring as usize - first_slot {
        seen.len()
    } else {
        ring as usize - first_slot
    };
    let (head, tail) = seen.split_at(until_wrap);
    let runs = [
        (head, kv.values.slots(first_slot, head.len(), head_dim)),
        (tail, kv.values.slots(0, tail.len(), head_dim)),
    ];
    let mut d = 0;
    while d < head_dim {
        let width = if head_dim - d < BLOCK {
            head_dim - d
        } else {
            BLOCK
        };
        let mut acc = [0.0f32; BLOCK];
        for (weights, values) in runs {
            add_values(&mut acc[..width], weights, values, d, head_dim);
        }
        o[d..d + width].copy_from_slice(&acc[..width]);
        d += width;
    }
    Ok((m, sum_lanes(lanes)))
}

/// Unscaled scores of two groups of 16 positions, sequential over the head.
#[inline(always)]
fn score_groups(q: &[f32], a: KvRing<'_>, b: KvRing<'_>) -> ([f32; LANES], [f32; LANES]) {
    let (mut sum_a, mut sum_b) = ([0.0f32; LANES], [0.0f32; LANES]);
    match (a, b) {
        (KvRing::F16(a), KvRing::F16(b)) => {
            let keys = a.chunks_exact(LANES).zip(b.chunks_exact(LANES));
            for (&q, (a, b)) in q.iter().zip(keys) {
                add_halves(&mut sum_a, q, a);
                add_halves(&mut sum_b, q, b);
            }
        }
        (
            KvRing::Q8 { codes, scales },
            KvRing::Q8 {
                codes: codes_b,
                scales: scales_b,
            },
        ) => {
            add_blocks(&mut sum_a, q, codes, scales);
            add_blocks(&mut sum_b, q, codes_b, scales_b);
        }
        (KvRing::F16(_), KvRing::Q8 { .. }) | (KvRing::Q8 { .. }, KvRing::F16(_)) => {
            unreachable!("a ring has one format")
        }
    }
    (sum_a, sum_b)
}

/// `acc[i] += weight * halves[i]`.
#[inline(always)]
fn add_halves(acc: &mut [f32], weight: f32, halves: &[u16]) {
    for (acc, &half) in acc.iter_mut().zip(halves) {
        *acc += weight * finite_f16_to_f32(half);
    }
}

/// `acc[i] += weight * codes[i]`.
#[inline(always)]
fn add_codes(acc: &mut [f32], weight: f32, codes: &[i8]) {
    for (acc, &code) in acc.iter_mut().zip(codes) {
        *acc += weight * code as f32;
    }
}

/// Adds the scores of an int8 group, each block's sum times its scale.
#[inline(always)]
fn add_blocks(sum: &mut [f32; LANES], q: &[f32], codes: &[i8], scales: &[f32]) {
    let blocks = q
        .chunks_exact(BLOCK)
        .zip(codes.chunks_exact(BLOCK * LANES))
        .zip(scales.chunks_exact(LANES));
    for ((q, codes), scales) in blocks {
        let mut block = [0.0f32; LANES];
        for (&q, codes) in q.iter().zip(codes.chunks_exact(LANES)) {
            add_codes(&mut block, q, codes);
        }
        for ((sum, block), &scale) in sum.iter_mut().zip(block).zip(scales) {
            *sum += block * scale;
        }
    }
}

/// Adds elements `d..d + acc.len()` of each slot's value times its weight.
#[inline(always)]
fn add_values(acc: &mut [f32], weights: &[f32], values: KvRing<'_>, d: usize, head_dim: usize) {
    let width = acc.len();
    match values {
        KvRing::F16(halves) => {
            let rows = weights.iter().zip(halves.chunks_exact(head_dim));
            // A width known beforehand keeps the accumulators in registers.
            match <&mut [f32; BLOCK]>::try_from(&mut *acc) {
                Ok(acc) => {
                    for (&p, row) in rows {
                        add_halves(acc, p, &row[d..d + BLOCK]);
                    }
                }
                Err(_) => {
                    for (&p, row) in rows {
                        add_halves(acc, p, &row[d..d + width]);
                    }
                }
            }
        }
        KvRing::Q8 { codes, scales } => {
            let rows = codes
                .chunks_exact(head_dim)
                .zip(scales.chunks_exact(head_dim / BLOCK));
            let acc: &mut [f32; BLOCK] = acc.try_into().expect("int8 heads are whole blocks");
            for (&p, (row, scales)) in weights.iter().zip(rows) {
                add_codes(acc, p * scales[d / BLOCK], &row[d..d + BLOCK]);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::math::f16_to_f32;
    use crate::spec::KvFormat;
    use std::vec;
    use std::vec::Vec;

    /// Attention in f64 over the same stored values.
    fn oracle(q: &[f32], k: &[Vec<f32>], v: &[Vec<f32>], scale: f32, cap: Option<f64>) -> Vec<f64> {
        let dot = |k: &Vec<f32>| -> f64 {
            let products = q.iter().zip(k).map(|(&a, &b)| a as f64 * b as f64);
            let score = products.sum::<f64>() * scale as f64;
            cap.map_or(score, |c| c * (score / c).tanh())
        };
        let scores: Vec<f64> = k.iter().map(dot).collect();
        let m = scores.iter().cloned().fold(f64::MIN, f64::max);
        let p: Vec<f64> = scores.iter().map(|s| (s - m).exp()).collect();
        let l: f64 = p.iter().sum();
        (0..q.len())
            .map(|d| p.iter().zip(v).map(|(p, v)| p * v[d] as f64).sum::<f64>() / l)
            .collect()
    }

    /// Empty rings of one head.
    struct Rings {
        format: KvFormat,
        halves: [Vec<u16>; 2],
        codes: [Vec<i8>; 2],
        scales: [Vec<f32>; 2],
        head_dim: usize,
        ring: usize,
    }

    impl Rings {
        fn new(format: KvFormat, ring: usize, head_dim: usize) -> Rings {
            let elements = ring * head_dim;
            Rings {
                format,
                halves: [vec![0; elements], vec![0; elements]],
                codes: [vec![0; elements], vec![0; elements]],
                scales: [vec![0.0; elements / 32], vec![0.0; elements / 32]],
                head_dim,
                ring,
            }
        }

        fn store(&mut self, k: &[f32], v: &[f32], position: u32) -> Result<(), NonFinite> {
            let group = position as usize % self.ring / LANES * LANES;
            let at = group * self.head_dim..(group + LANES) * self.head_dim;
            let scales_at = at.start / 32..at.end / 32;
            let mut rings = self
                .halves
                .iter_mut()
                .zip(self.codes.iter_mut().zip(&mut self.scales))
                .map(|(halves, (codes, scales))| match self.format {
                    KvFormat::F16 => KvRingMut::F16(&mut halves[at.clone()]),
                    KvFormat::Q8 => KvRingMut::Q8 {
                        codes: &mut codes[at.clone()],
                        scales: &mut scales[scales_at.clone()],
                    },
                });
            let (mut keys, mut values) = (rings.next().unwrap(), rings.next().unwrap());
            kv_store(k, v, PLAIN, position, &mut keys, &mut values)
        }

        fn head(&self) -> KvHead<'_> {
            let ring = |i: usize| match self.format {
                KvFormat::F16 => KvRing::F16(&self.halves[i]),
                KvFormat::Q8 => KvRing::Q8 {
                    codes: &self.codes[i],
                    scales: &self.scales[i],
                },
            };
            KvHead {
                keys: ring(0),
                values: ring(1),
            }
        }

        /// What an int8 or f16 block keeps of `x`.
        fn kept(&self, x: &[f32]) -> Vec<f32> {
            let mut rings = Rings::new(self.format, LANES, self.head_dim);
            rings.store(x, x, 0).unwrap();
            let value = |(d, half): (usize, &u16)| match self.format {
                KvFormat::F16 => f16_to_f32(*half),
                KvFormat::Q8 => rings.codes[1][d] as f32 * rings.scales[1][d / 32],
            };
            let halves = &rings.halves[1][..self.head_dim];
            halves.iter().enumerate().map(value).collect()
        }
    }

    const PLAIN: HeadTransform<'static> = HeadTransform {
        norm: None,
        rope: None,
    };

    #[test]
    fn attention_matches_f64_with_and_without_a_sliding_ring() {
        let (head_dim, total) = (64usize, 700u32);
        let mut state = 3u32;
        let mut random = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / 8388608.0 - 1.0
        };
        let mut row = || (0..head_dim).map(|_| random()).collect::<Vec<f32>>();
        let k: Vec<_> = (0..total).map(|_| row()).collect();
        let v: Vec<_> = (0..total).map(|_| row()).collect();
        let q = row().iter().map(|x| x * 4.0).collect::<Vec<_>>();
        for (format, ring, window, softcap) in [
            (KvFormat::F16, 704u32, 0u32, None),
            (KvFormat::F16, 208, 200, None),
            (KvFormat::F16, 16, 9, Some(1.5)),
            (KvFormat::F16, 512, 512, None),
            (KvFormat::Q8, 704, 0, None),
            (KvFormat::Q8, 208, 200, Some(1.5)),
        ] {
            let mut rings = Rings::new(format, ring as usize, head_dim);
            let kept = |x: &Vec<Vec<f32>>| x.iter().map(|x| rings.kept(x)).collect::<Vec<_>>();
            let (kept_k, kept_v) = (kept(&k), kept(&v));
            for p in 0..total {
                let now = p as usize;
                rings.store(&k[now], &v[now], p).unwrap();
                let first = if window == 0 {
                    0
                } else {
                    (p + 1).saturating_sub(window)
                };
                let head = AttentionHead {
                    position: p,
                    first,
                    scale: 0.3,
                    softcap,
                };
                let mut out = vec![0.0; head_dim];
                attend(head, &q, rings.head(), &mut out).unwrap();
                let seen = first as usize..now + 1;
                let cap = softcap.map(f64::from);
                let want = oracle(&q, &kept_k[seen.clone()], &kept_v[seen], 0.3, cap);
                for (got, want) in out.iter().zip(want) {
                    assert!(
                        (*got as f64 - want).abs() < 3e-6,
                        "{format:?}, ring {ring} at {p}: {got}, not {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn heads_are_normalized_and_then_rotated() {
        let rope = Rope {
            pairs: 1,
            pairing: crate::spec::RopePairing::Halves,
        };
        let transform = HeadTransform {
            norm: Some((&[2.0, 1.0], 0.0)),
            // A quarter turn: (a, b) becomes (-b, a).
            rope: Some((rope, &[0.0, 1.0])),
        };
        let mut out = [0.0; 2];
        transform.apply(&[3.0, -3.0], &mut out).unwrap();
        assert_eq!(out, [1.0, 2.0]);
    }

    #[test]
    fn values_beyond_the_format_are_errors() {
        let big = [70000.0f32; 32];
        let ok = [1.0f32; 32];
        let mut halves = Rings::new(KvFormat::F16, 16, 32);
        assert_eq!(halves.store(&big, &ok, 0), Err(NonFinite));
        assert_eq!(halves.store(&ok, &big, 0), Err(NonFinite));
        assert_eq!(halves.store(&ok, &ok, 0), Ok(()));
        let mut codes = Rings::new(KvFormat::Q8, 16, 32);
        let infinite = [f32::INFINITY; 32];
        assert_eq!(codes.store(&big, &ok, 0), Ok(()));
        assert_eq!(codes.store(&infinite, &ok, 0), Err(NonFinite));
        assert_eq!(codes.store(&ok, &infinite, 0), Err(NonFinite));
    }
}
