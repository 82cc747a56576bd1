//! Attention of several queries of one key-value head at once, bit for bit what
//! [`reference::attend`](crate::reference::attend) computes for each.
//!
//! Keys and values are read and converted once for all queries. Positions that
//! some query does not see get the weight zero for it: a sum that starts at +0 is
//! never -0, so that adding a zero leaves it as it is.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over queries and groups, which are unrolled"
)]

use crate::lanes::{LANES, Lanes};
use crate::math::{exp, finite_f16_to_f32, max, softcap};
use crate::reference::{AttentionHead, KvHead, KvRing, NonFinite, sum_lanes};
use crate::spec::ATTENTION_SPLIT;
use core::ops::Range;

const SPLIT: usize = ATTENTION_SPLIT as usize;
/// Elements that share a scale in an int8 ring.
const BLOCK: usize = 32;

/// What joins a split's weighted values to those before it.
#[derive(Clone, Copy)]
enum Merge {
    /// The query sees no position of the split.
    Skip,
    Set,
    /// The values before are multiplied.
    Rescale(f32),
    /// The split's values are multiplied.
    Scale(f32),
}

/// Some positions of one split of a ring.
struct Part<'p> {
    ring: usize,
    split: u32,
    /// Relative to the split.
    positions: &'p Range<usize>,
}

impl Part<'_> {
    fn slot(&self, position: usize) -> usize {
        (self.split as usize + position) % self.ring
    }
}

/// Softmax attention of `B` (transformed) queries of one key-value head, whose
/// results are written to `out`. `G` groups of 16 sums per query are computed at
/// once: enough to hide the latency of additions, few enough for the registers.
///
/// The positions that any of them sees lie in the ring. Errors: a score that is
/// NaN or infinite; the results are then unspecified.
#[inline(always)]
pub fn attend_many<V: Lanes, const B: usize, const G: usize>(
    heads: &[AttentionHead; B],
    q: &[&[f32]; B],
    kv: KvHead<'_>,
    out: &mut [&mut [f32]; B],
) -> Result<(), NonFinite> {
    let head_dim = q[0].len();
    assert!(q.iter().all(|q| q.len() == head_dim));
    assert!(out.iter().all(|o| o.len() == head_dim));
    let ring = kv.values.len() / head_dim;
    let (mut begin, mut end) = (u32::MAX, 0);
    for head in heads {
        begin = begin.min(head.first);
        end = end.max(head.position + 1);
    }
    let mut totals: [Option<(f32, f32)>; B] = [None; B];
    let mut weights = [[0.0f32; SPLIT]; B];
    while begin < end {
        let split = begin / ATTENTION_SPLIT * ATTENTION_SPLIT;
        let stop = end.min(split + ATTENTION_SPLIT);
        let part = Part {
            ring,
            split,
            positions: &((begin - split) as usize..(stop - split) as usize),
        };
        scores::<V, B, G>(q, kv.keys, &part, &mut weights);
        let mut merges = [Merge::Skip; B];
        for b in 0..B {
            let from = heads[b].first.max(begin) - split;
            let to = (heads[b].position + 1).min(stop).saturating_sub(split);
            if from >= to {
                weights[b].fill(0.0);
                continue;
            }
            let seen = from as usize..to as usize;
            let (m, l) = soften::<V>(&heads[b], &seen, &mut weights[b])?;
            (merges[b], totals[b]) = merge(totals[b], m, l);
        }
        let mut d = 0;
        while d + G * LANES <= head_dim {
            values::<V, B, G>(&weights, kv.values, &part, d, &merges, out);
            d += G * LANES;
        }
        while d + LANES <= head_dim {
            values::<V, B, 1>(&weights, kv.values, &part, d, &merges, out);
            d += LANES;
        }
        for d in d..head_dim {
            last_values(&weights, kv.values, &part, d, &merges, out);
        }
        begin = stop;
    }
    for (out, total) in out.iter_mut().zip(totals) {
        let (_, l) = total.expect("a query sees its own position");
        let inverse = 1.0 / l;
        for o in out.iter_mut() {
            *o *= inverse;
        }
    }
    Ok(())
}

/// Fills the groups of 16 positions that meet the part with unscaled scores.
#[inline(always)]
fn scores<V: Lanes, const B: usize, const G: usize>(
    q: &[&[f32]; B],
    keys: KvRing<'_>,
    part: &Part,
    scores: &mut [[f32; SPLIT]; B],
) {
    let head_dim = q[0].len();
    let groups = part.positions.start / LANES..part.positions.end.div_ceil(LANES);
    let mut group = groups.start;
    while group < groups.end {
        // The last group may be computed more than once.
        let mut at = [0; G];
        let mut sums = [[V::splat(0.0); G]; B];
        let mut of_group = [keys; G];
        for g in 0..G {
            at[g] = (group + g).min(groups.end - 1);
            of_group[g] = keys.slots(part.slot(at[g] * LANES), LANES, head_dim);
        }
        score_groups(q, &of_group, &mut sums);
        for b in 0..B {
            let (scores, _) = scores[b].as_chunks_mut::<LANES>();
            for g in 0..G {
                sums[b][g].store(&mut scores[at[g]]);
            }
        }
        group += G;
    }
}

#[inline(always)]
fn score_groups<V: Lanes, const B: usize, const G: usize>(
    q: &[&[f32]; B],
    keys: &[KvRing<'_>; G],
    sums: &mut [[V; G]; B],
) {
    let head_dim = q[0].len();
    // One length for all, which spares the loops a check for each query.
    let q = &q.map(|q| &q[..head_dim]);
    match keys[0] {
        KvRing::F16(_) => {
            let mut halves: [&[[u16; LANES]]; G] = [&[]; G];
            for g in 0..G {
                halves[g] = match keys[g] {
                    KvRing::F16(halves) => &halves.as_chunks().0[..head_dim],
                    KvRing::Q8 { .. } => unreachable!("a ring has one format"),
                };
            }
            for d in 0..head_dim {
                let mut rows = [V::splat(0.0); G];
                for g in 0..G {
                    rows[g] = V::from_f16(&halves[g][d]);
                }
                add_products(sums, q, d, &rows);
            }
        }
        KvRing::Q8 { .. } => {
            let mut codes: [&[[i8; LANES]]; G] = [&[]; G];
            let mut scales: [&[[f32; LANES]]; G] = [&[]; G];
            for g in 0..G {
                match keys[g] {
                    KvRing::Q8 {
                        codes: c,
                        scales: s,
                    } => {
                        codes[g] = &c.as_chunks().0[..head_dim];
                        scales[g] = s.as_chunks().0;
                    }
                    KvRing::F16(_) => unreachable!("a ring has one format"),
                }
            }
            for block in 0..head_dim / BLOCK {
                let mut of_block = [[V::splat(0.0); G]; B];
                for d in block * BLOCK..(block + 1) * BLOCK {
                    let mut rows = [V::splat(0.0); G];
                    for g in 0..G {
                        rows[g] = V::from_i8(&codes[g][d]);
                    }
                    add_products(&mut of_block, q, d, &rows);
                }
                for b in 0..B {
                    for g in 0..G {
                        let scale = V::load(&scales[g][block]);
                        sums[b][g] = sums[b][g].add(of_block[b][g].mul(scale));
                    }
                }
            }
        }
    }
}

/// `sums[b] += weights[b][i] * rows`.
#[inline(always)]
fn add_products<V: Lanes, const B: usize, const G: usize>(
    sums: &mut [[V; G]; B],
    weights: &[&[f32]; B],
    i: usize,
    rows: &[V; G],
) {
    for b in 0..B {
        let weight = V::splat(weights[b][i]);
        for g in 0..G {
            sums[b][g] = sums[b][g].add(weight.mul(rows[g]));
        }
    }
}

/// Turns scores at `seen` into weights, all others into zero. Returns the maximum
/// and the sum of the weights.
#[inline(always)]
fn soften<V: Lanes>(
    head: &AttentionHead,
    seen: &Range<usize>,
    scores: &mut [f32; SPLIT],
) -> Result<(f32, f32), NonFinite> {
    // Lanes beside `seen` repeat a score, which changes no maximum.
    let groups = seen.start / LANES..seen.end.div_ceil(LANES);
    let some = scores[seen.start];
    scores[groups.start * LANES..seen.start].fill(some);
    scores[seen.end..groups.end * LANES].fill(some);
    let of_groups = &mut scores.as_chunks_mut::<LANES>().0[groups.clone()];
    let scale = V::splat(head.scale);
    // Zero times a number is zero, times NaN or infinity NaN.
    let (zero, mut wrong) = (V::splat(0.0), V::splat(0.0));
    for group in of_groups.iter_mut() {
        let scaled = V::load(group).mul(scale);
        wrong = wrong.add(scaled.mul(zero));
        scaled.store(group);
    }
    let mut lanes = [0.0; LANES];
    wrong.store(&mut lanes);
    if lanes.iter().any(|x| x.is_nan()) {
        return Err(NonFinite);
    }
    if let Some(cap) = head.softcap {
        for s in of_groups.as_flattened_mut() {
            *s = softcap(*s, cap);
        }
    }
    // The order of maxima only matters for the sign of a zero, and
    // exp(+0) = exp(-0).
    let mut top = V::load(&of_groups[0]);
    for group in of_groups.iter() {
        top = V::load(group).max(top);
    }
    top.store(&mut lanes);
    let m = lanes.into_iter().fold(lanes[0], |m, s| max(s, m));
    let top = V::splat(m);
    for group in of_groups {
        V::load(group).sub(top).exp().store(group);
    }
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    let mut sum = V::splat(0.0);
    for group in &scores.as_chunks::<LANES>().0[groups] {
        sum = sum.add(V::load(group));
    }
    sum.store(&mut lanes);
    Ok((m, sum_lanes(lanes)))
}

/// Joins a split's maximum and sum to those of the splits before.
#[inline(always)]
fn merge(total: Option<(f32, f32)>, m: f32, l: f32) -> (Merge, Option<(f32, f32)>) {
    match total {
        None => (Merge::Set, Some((m, l))),
        Some((m_all, l_all)) if m > m_all => {
            let c = exp(m_all - m);
            (Merge::Rescale(c), Some((m, l_all * c + l)))
        }
        Some((m_all, l_all)) => {
            let c = exp(m - m_all);
            (Merge::Scale(c), Some((m_all, l_all + l * c)))
        }
    }
}

/// Merges the weighted values of the part into `G * 16` elements from `d` on.
#[inline(always)]
fn values<V: Lanes, const B: usize, const G: usize>(
    weights: &[[f32; SPLIT]; B],
    values: KvRing<'_>,
    part: &Part,
    d: usize,
    merges: &[Merge; B],
    out: &mut [&mut [f32]; B],
) {
    let head_dim = out[0].len();
    let mut sums = [[V::splat(0.0); G]; B];
    for (slot, positions) in runs(part) {
        let count = positions.len();
        let mut of_run: [&[f32]; B] = [&[]; B];
        for b in 0..B {
            of_run[b] = &weights[b][positions.clone()];
        }
        match values.slots(slot, count, head_dim) {
            KvRing::F16(halves) => {
                for (i, row) in halves.chunks_exact(head_dim).enumerate() {
                    let (groups, _) = row[d..d + G * LANES].as_chunks::<LANES>();
                    let mut rows = [V::splat(0.0); G];
                    for g in 0..G {
                        rows[g] = V::from_f16(&groups[g]);
                    }
                    add_products(&mut sums, &of_run, i, &rows);
                }
            }
            KvRing::Q8 { codes, scales } => {
                let scales = scales.chunks_exact(head_dim / BLOCK);
                let rows = codes.chunks_exact(head_dim).zip(scales);
                for (i, (row, scales)) in rows.enumerate() {
                    let (groups, _) = row[d..d + G * LANES].as_chunks::<LANES>();
                    for g in 0..G {
                        let codes = V::from_i8(&groups[g]);
                        let scale = scales[(d + g * LANES) / BLOCK];
                        for b in 0..B {
                            let weight = V::splat(of_run[b][i] * scale);
                            sums[b][g] = sums[b][g].add(weight.mul(codes));
                        }
                    }
                }
            }
        }
    }
    for b in 0..B {
        let (groups, _) = out[b][d..d + G * LANES].as_chunks_mut::<LANES>();
        for g in 0..G {
            let (before, sum) = (V::load(&groups[g]), sums[b][g]);
            let merged = match merges[b] {
                Merge::Skip => before,
                Merge::Set => sum,
                Merge::Rescale(c) => before.mul(V::splat(c)).add(sum),
                Merge::Scale(c) => before.add(sum.mul(V::splat(c))),
            };
            merged.store(&mut groups[g]);
        }
    }
}

/// The same for one element of an f16 head whose length is no multiple of 16.
fn last_values<const B: usize>(
    weights: &[[f32; SPLIT]; B],
    values: KvRing<'_>,
    part: &Part,
    d: usize,
    merges: &[Merge; B],
    out: &mut [&mut [f32]; B],
) {
    let head_dim = out[0].len();
    for b in 0..B {
        let mut sum = 0.0f32;
        for (slot, positions) in runs(part) {
            let KvRing::F16(halves) = values.slots(slot, positions.len(), head_dim) else {
                unreachable!("int8 heads are whole blocks")
            };
            let rows = halves.chunks_exact(head_dim);
            for (&p, row) in weights[b][positions].iter().zip(rows) {
                sum += p * finite_f16_to_f32(row[d]);
            }
        }
        let o = &mut out[b][d];
        match merges[b] {
            Merge::Skip => {}
            Merge::Set => *o = sum,
            Merge::Rescale(c) => *o = *o * c + sum,
            Merge::Scale(c) => *o += sum * c,
        }
    }
}

/// The part's slots: runs that end where the ring wraps, by their first slot.
#[inline(always)]
fn runs(part: &Part) -> [(usize, Range<usize>); 2] {
    let Range { start, end } = *part.positions;
    let slot = part.slot(start);
    let wrap = end.min(start + part.ring - slot);
    [(slot, start..wrap), (0, wrap..end)]
}
