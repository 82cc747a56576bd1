use super::NonFinite;
use super::elementwise::{rotate_head, sum_lanes};
use crate::math::{exp, f32_to_f16, finite_f16_to_f32, max};
use crate::spec::{ATTENTION_SPLIT, HEAD_DIM_MAX, Rope};

const LANES: usize = 16;
const SPLIT: usize = ATTENTION_SPLIT as usize;

/// The f16 rings of one key-value head. Position p lies at slot p % ring.
///
/// Keys are interleaved by 16 positions, element (slot, d) at
/// `(slot / 16 * head_dim + d) * 16 + slot % 16`, so that scores of 16
/// positions need no reduction across lanes; values lie slot by slot.
#[derive(Clone, Copy, Debug)]
pub struct KvHead<'a> {
    pub keys: &'a [u16],
    pub values: &'a [u16],
}

/// Writes one head's keys and values of `columns` consecutive positions from
/// `position` on. `k` and `v` start at the head's elements of the first column;
/// `stride` floats separate columns; `table` is the RoPE table of the first
/// column and its stride.
///
/// Errors: a key or value outside f16's range.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
pub fn kv_store(
    k: &[f32],
    v: &[f32],
    stride: usize,
    head_dim: usize,
    columns: u32,
    position: u32,
    rope: Option<(Rope, &[f32], usize)>,
    keys: &mut [u16],
    values: &mut [u16],
) -> Result<(), NonFinite> {
    let ring = (values.len() / head_dim) as u32;
    let mut finite = true;
    let mut rotated = [0.0f32; HEAD_DIM_MAX as usize];
    for c in 0..columns {
        let column = c as usize;
        let head = &mut rotated[..head_dim];
        head.copy_from_slice(&k[column * stride..][..head_dim]);
        if let Some((rope, table, table_stride)) = rope {
            rotate_head(rope, &table[column * table_stride..], head);
        }
        let slot = ((position + c) % ring) as usize;
        let base = slot / 16 * head_dim * 16 + slot % 16;
        for (d, &x) in head.iter().enumerate() {
            let half = f32_to_f16(x);
            finite &= half & 0x7c00 != 0x7c00;
            keys[base + d * 16] = half;
        }
        let row = &mut values[slot * head_dim..][..head_dim];
        for (o, &x) in row.iter_mut().zip(&v[column * stride..]) {
            *o = f32_to_f16(x);
            finite &= *o & 0x7c00 != 0x7c00;
        }
    }
    if finite { Ok(()) } else { Err(NonFinite) }
}

/// One query head at one position.
#[derive(Clone, Copy, Debug)]
pub struct AttentionHead {
    /// Position of the query.
    pub position: u32,
    /// First position it sees.
    pub first: u32,
    pub scale: f32,
}

/// Softmax attention of one (rotated) query head over its ring.
///
/// Positions are cut at absolute multiples of 128 into splits. Per split:
/// scores (sequential over the head dimension) times `scale`, their maximum
/// m, `p = exp(score - m)`, the sum l of p in 16 lanes by position modulo 16,
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
        let (m, l) = attend_split(begin, stop, ring, head.scale, q, kv, o_split)?;
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

/// Scores, maximum, weights and weighted values of positions `begin..end`
/// within one split. Returns (m, l) and fills `o`.
#[inline(always)]
fn attend_split(
    begin: u32,
    end: u32,
    ring: u32,
    scale: f32,
    q: &[f32],
    kv: KvHead<'_>,
    o: &mut [f32],
) -> Result<(f32, f32), NonFinite> {
    let head_dim = q.len();
    let split = begin / ATTENTION_SPLIT * ATTENTION_SPLIT;
    let (from, to) = ((begin - split) as usize, (end - split) as usize);
    let mut scores = [0.0f32; SPLIT];
    // Rings and splits are multiples of 16, so a group of 16 positions is
    // contiguous; lanes outside begin..end compute values nobody reads. Two
    // groups at a time hide the latency of the additions.
    let groups = from / LANES..to.div_ceil(LANES);
    let keys_of = |group: usize| {
        let slot = ((split + (group * LANES) as u32) % ring) as usize;
        &kv.keys[slot * head_dim..(slot + LANES) * head_dim]
    };
    let mut group = groups.start;
    while group < groups.end {
        let next = if group + 1 < groups.end {
            group + 1
        } else {
            group
        };
        let (a, b) = score_groups(q, keys_of(group), keys_of(next), scale);
        scores[group * LANES..][..LANES].copy_from_slice(&a);
        scores[next * LANES..][..LANES].copy_from_slice(if next == group { &a } else { &b });
        group += 2;
    }
    let seen = &mut scores[from..to];
    let mut m = seen[0];
    let mut finite = true;
    for &s in seen.iter() {
        m = max(s, m);
        finite &= s.is_finite();
    }
    if !finite {
        return Err(NonFinite);
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
        (head, &kv.values[first_slot * head_dim..]),
        (tail, kv.values),
    ];
    let mut d = 0;
    while d < head_dim {
        let width = if head_dim - d < 2 * LANES {
            head_dim - d
        } else {
            2 * LANES
        };
        let mut acc = [0.0f32; 2 * LANES];
        for (weights, values) in runs {
            for (&p, row) in weights.iter().zip(values.chunks_exact(head_dim)) {
                if width == 2 * LANES {
                    add_weighted(&mut acc, p, &row[d..d + 2 * LANES]);
                } else {
                    add_weighted(&mut acc[..width], p, &row[d..d + width]);
                }
            }
        }
        o[d..d + width].copy_from_slice(&acc[..width]);
        d += width;
    }
    Ok((m, sum_lanes(lanes)))
}

/// Scaled scores of two groups of 16 positions, sequential over the head.
#[inline(always)]
fn score_groups(q: &[f32], a: &[u16], b: &[u16], scale: f32) -> ([f32; LANES], [f32; LANES]) {
    let (mut sum_a, mut sum_b) = ([0.0f32; LANES], [0.0f32; LANES]);
    let keys = a.chunks_exact(LANES).zip(b.chunks_exact(LANES));
    for (&q, (a, b)) in q.iter().zip(keys) {
        add_weighted(&mut sum_a, q, a);
        add_weighted(&mut sum_b, q, b);
    }
    (sum_a.map(|s| s * scale), sum_b.map(|s| s * scale))
}

/// `acc[i] += weight * halves[i]`.
#[inline(always)]
fn add_weighted(acc: &mut [f32], weight: f32, halves: &[u16]) {
    for (acc, &half) in acc.iter_mut().zip(halves) {
        *acc += weight * finite_f16_to_f32(half);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;
    use crate::math::f16_to_f32;
    use std::vec;
    use std::vec::Vec;

    /// Attention in f64 over the same f16 values.
    fn oracle(q: &[f32], k: &[Vec<f32>], v: &[Vec<f32>], scale: f32) -> Vec<f64> {
        let dot = |k: &Vec<f32>| -> f64 {
            q.iter()
                .zip(k)
                .map(|(&a, &b)| a as f64 * b as f64)
                .sum::<f64>()
                * scale as f64
        };
        let scores: Vec<f64> = k.iter().map(dot).collect();
        let m = scores.iter().cloned().fold(f64::MIN, f64::max);
        let p: Vec<f64> = scores.iter().map(|s| (s - m).exp()).collect();
        let l: f64 = p.iter().sum();
        (0..q.len())
            .map(|d| p.iter().zip(v).map(|(p, v)| p * v[d] as f64).sum::<f64>() / l)
            .collect()
    }

    #[test]
    fn attention_matches_f64_with_and_without_a_sliding_ring() {
        let (head_dim, total) = (32usize, 700u32);
        let mut state = 3u32;
        let mut random = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            f16_to_f32(f32_to_f16((state >> 8) as f32 / 8388608.0 - 1.0))
        };
        let mut row = || (0..head_dim).map(|_| random()).collect::<Vec<f32>>();
        let k: Vec<_> = (0..total).map(|_| row()).collect();
        let v: Vec<_> = (0..total).map(|_| row()).collect();
        let q = row().iter().map(|x| x * 4.0).collect::<Vec<_>>();
        for (ring, window) in [(704u32, 0u32), (208, 200), (16, 9), (512, 512)] {
            let mut keys = vec![0; ring as usize * head_dim];
            let mut values = vec![0; ring as usize * head_dim];
            for p in 0..total {
                let now = p as usize;
                let (new_k, new_v) = (&k[now], &v[now]);
                kv_store(
                    new_k,
                    new_v,
                    head_dim,
                    head_dim,
                    1,
                    p,
                    None,
                    &mut keys,
                    &mut values,
                )
                .unwrap();
                let first = if window == 0 {
                    0
                } else {
                    (p + 1).saturating_sub(window)
                };
                let head = AttentionHead {
                    position: p,
                    first,
                    scale: 0.3,
                };
                let kv = KvHead {
                    keys: &keys,
                    values: &values,
                };
                let mut out = vec![0.0; head_dim];
                attend(head, &q, kv, &mut out).unwrap();
                let seen = first as usize..now + 1;
                let want = oracle(&q, &k[seen.clone()], &v[seen], 0.3);
                for (got, want) in out.iter().zip(want) {
                    assert!((*got as f64 - want).abs() < 2e-6, "ring {ring} at {p}");
                }
            }
        }
    }

    #[test]
    fn values_beyond_f16_are_errors() {
        let (mut keys, mut values) = (vec![0; 512], vec![0; 512]);
        let big = [70000.0f32; 32];
        let ok = [1.0f32; 32];
        let mut store = |k, v| kv_store(k, v, 32, 32, 1, 0, None, &mut keys, &mut values);
        assert_eq!(store(&big, &ok), Err(NonFinite));
        assert_eq!(store(&ok, &big), Err(NonFinite));
        assert_eq!(store(&ok, &ok), Ok(()));
    }
}
