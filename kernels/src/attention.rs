//! Attention of several queries of one key-value head at once, bit for bit what
//! [`reference::attend`](crate::reference::attend) computes for each.
//!
//! Queries are computed in blocks, whose sums stay in registers. A block alone takes
//! elements as they lie in the ring; for several, they are converted once. Positions
//! that some query does not see get the weight zero for it: a sum that starts at +0
//! is never -0, so that adding a zero leaves it as it is.

#![allow(
    clippy::needless_range_loop,
    reason = "loops over queries and groups, which are unrolled"
)]

use core::array::from_fn;
use core::ops::Range;

use crate::lanes::{LANES, Lanes};
use crate::math::{exp, finite_f16_to_f32, max, softcap};
use crate::reference::{AttentionHead, KvHead, KvRing, NonFinite, sum_lanes};
use crate::spec::{ATTENTION_SPLIT, HEAD_DIM_MAX};

const SPLIT: usize = ATTENTION_SPLIT as usize;
const LINE_BYTES: usize = 64;
/// Elements that share a scale in an int8 ring.
const BLOCK: usize = 32;
/// Most queries at once: beside so many, converting keys and values costs little.
const QUERIES_MAX: usize = 32;
/// There are no more blocks than of four queries each.
const BLOCKS_MAX: usize = QUERIES_MAX / 4;
/// Elements of all queries: of eight with the largest heads.
const ELEMENTS: usize = 8 * HEAD_DIM_MAX as usize;
/// Vectors of converted elements: a block at every position of a split, or keys of up
/// to 256 elements at 16 positions.
const CONVERTED: usize = SPLIT * BLOCK / LANES;

/// Queries of one key-value head, what their attention is computed in, and its
/// results. To be kept: clearing it costs as much as a short attention.
///
/// Vectors do not cross lines of the cache: the arrays stand first and are multiples
/// of a line long.
#[repr(C, align(64))]
pub struct Queries {
    /// Block by block; of a block, element d of all its queries, then element d + 1.
    q: [f32; ELEMENTS],
    weights: [[f32; SPLIT]; QUERIES_MAX],
    converted: [[f32; LANES]; CONVERTED],
    /// Query by query.
    results: [f32; ELEMENTS],
    heads: [AttentionHead; QUERIES_MAX],
    count: usize,
    head_dim: usize,
    /// Queries of a block.
    block: usize,
}

impl Default for Queries {
    fn default() -> Queries {
        let head = AttentionHead {
            position: 0,
            first: 0,
            scale: 0.0,
            softcap: None,
        };
        Queries {
            head_dim: 0,
            heads: [head; QUERIES_MAX],
            count: 0,
            block: 1,
            q: [0.0; ELEMENTS],
            weights: [[0.0; SPLIT]; QUERIES_MAX],
            converted: [[0.0; LANES]; CONVERTED],
            results: [0.0; ELEMENTS],
        }
    }
}

/// What a split's weighted values and those before it are multiplied with before they
/// are added. One of the two factors is 1, which changes no bit.
#[derive(Clone, Copy)]
struct Merge {
    before: f32,
    split: f32,
}

impl Merge {
    /// Nothing before counts.
    const FIRST: Merge = Merge {
        before: 0.0,
        split: 1.0,
    };
}

/// Elements as a ring holds them.
trait Element: Copy {
    fn load<V: Lanes>(elements: &[Self; LANES]) -> V;
    fn to_f32(self) -> f32;
}

impl Element for u16 {
    #[inline(always)]
    fn load<V: Lanes>(halves: &[u16; LANES]) -> V {
        V::from_f16(halves)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        finite_f16_to_f32(self)
    }
}

impl Element for i8 {
    #[inline(always)]
    fn load<V: Lanes>(codes: &[i8; LANES]) -> V {
        V::from_i8(codes)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.into()
    }
}

/// Converted ones.
impl Element for f32 {
    #[inline(always)]
    fn load<V: Lanes>(elements: &[f32; LANES]) -> V {
        V::load(elements)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

/// Keys or values of a head. In f16 there are no scales.
#[derive(Clone, Copy)]
struct Ring<'a, E> {
    elements: &'a [E],
    scales: &'a [f32],
}

/// Keys of 16 positions: one vector per element and one per scale.
type Group<'a, E> = (&'a [[E; LANES]], &'a [[f32; LANES]]);

impl<'a, E: Element> Ring<'a, E> {
    /// Elements of `count` slots from `slot` on, or of those up to the ring's end.
    #[inline(always)]
    fn slots(&self, slot: usize, count: usize, head_dim: usize) -> &'a [E] {
        let elements = &self.elements[slot * head_dim..];
        &elements[..elements.len().min(count * head_dim)]
    }

    /// Keys of the 16 slots from `slot` on.
    #[inline(always)]
    fn group(&self, slot: usize, head_dim: usize) -> Group<'a, E> {
        let elements = &self.elements[slot * head_dim..][..LANES * head_dim];
        let per_slot = if self.scales.is_empty() {
            0
        } else {
            head_dim / BLOCK
        };
        let scales = &self.scales[slot * per_slot..][..LANES * per_slot];
        (elements.as_chunks().0, scales.as_chunks().0)
    }
}

/// Some positions of one split of a ring.
struct Part {
    ring: usize,
    split: u32,
    /// Relative to the split.
    positions: Range<usize>,
}

impl Part {
    fn slot(&self, position: usize) -> usize {
        (self.split as usize + position) % self.ring
    }

    /// The groups of 16 positions that meet the part.
    fn groups(&self) -> Range<usize> {
        let Range { start, end } = self.positions;
        if start < end {
            start / LANES..end.div_ceil(LANES)
        } else {
            0..0
        }
    }

    /// What lies in `slots`, `row` per slot, with its positions: runs that end where
    /// the ring wraps.
    #[inline(always)]
    fn runs<'a, E>(&self, slots: &'a [E], row: usize) -> [Run<'a, E>; 2] {
        let Range { start, end } = self.positions;
        let slot = self.slot(start);
        let wrap = end.min(start + self.ring - slot);
        [(slot, start..wrap), (0, wrap..end)]
            .map(|(slot, positions)| (&slots[slot * row..][..positions.len() * row], positions))
    }
}

/// Rows of consecutive positions.
type Run<'a, E> = (&'a [E], Range<usize>);

/// From the first position that one of `heads` sees to the last.
fn seen(heads: &[AttentionHead]) -> Range<u32> {
    let first = heads.iter().map(|head| head.first).min();
    let end = heads.iter().map(|head| head.position + 1).max();
    first.unwrap_or(0)..end.unwrap_or(0)
}

/// One split of a ring and what its queries see of it.
struct Split {
    /// What any query sees.
    all: Part,
    /// What any query of a block sees.
    of_block: [Part; BLOCKS_MAX],
    /// By query, of those that see some of it.
    merges: [Option<Merge>; QUERIES_MAX],
}

impl Queries {
    /// How many of `count` queries are computed at once.
    pub fn at_once<V: Lanes>(count: usize, head_dim: usize) -> usize {
        let of_blocks = ELEMENTS / head_dim / V::QUERIES * V::QUERIES;
        count.min(of_blocks).min(QUERIES_MAX)
    }

    /// Forgets all queries and prepares for `count`, as [`Queries::at_once`] says.
    pub fn begin<V: Lanes>(&mut self, count: usize, head_dim: usize) {
        assert_eq!(count, Queries::at_once::<V>(count, head_dim), "queries");
        self.head_dim = head_dim;
        self.count = 0;
        // As few blocks as can be, of about the same size.
        let blocks = count.div_ceil(V::QUERIES).max(1);
        self.block = count.div_ceil(blocks);
    }

    /// Adds a query, whose elements `write` writes.
    #[inline(always)]
    pub fn push(
        &mut self,
        head: AttentionHead,
        write: impl FnOnce(&mut [f32]) -> Result<(), NonFinite>,
    ) -> Result<(), NonFinite> {
        let (dim, block, index) = (self.head_dim, self.block, self.count);
        let query = &mut self.results[index * dim..][..dim];
        write(query)?;
        let of_block = &mut self.q[index / block * block * dim..][..block * dim];
        for (elements, &x) in of_block.chunks_exact_mut(block).zip(&*query) {
            elements[index % block] = x;
        }
        self.heads[index] = head;
        self.count += 1;
        Ok(())
    }

    /// The queries' results, after [`Queries::attend`].
    pub fn results(&self) -> impl Iterator<Item = &[f32]> {
        self.results.chunks_exact(self.head_dim).take(self.count)
    }

    /// Softmax attention of the queries.
    ///
    /// The positions that any of them sees lie in the ring. Errors: a score that is
    /// NaN or infinite; the results are then unspecified.
    #[inline(always)]
    pub fn attend<V: Lanes>(&mut self, kv: KvHead<'_>) -> Result<(), NonFinite> {
        match (kv.keys, kv.values) {
            (KvRing::F16(keys), KvRing::F16(values)) => {
                let scales = &[];
                let ring = |elements| Ring { elements, scales };
                self.attend_ring::<V, u16>(ring(keys), ring(values))
            }
            (
                KvRing::Q8 { codes, scales },
                KvRing::Q8 {
                    codes: values,
                    scales: of_values,
                },
            ) => {
                let ring = |elements, scales| Ring { elements, scales };
                self.attend_ring::<V, i8>(ring(codes, scales), ring(values, of_values))
            }
            (KvRing::F16(_), KvRing::Q8 { .. }) | (KvRing::Q8 { .. }, KvRing::F16(_)) => {
                unreachable!("a head has one format")
            }
        }
    }

    #[inline(always)]
    fn attend_ring<V: Lanes, E: Element>(
        &mut self,
        keys: Ring<'_, E>,
        values: Ring<'_, E>,
    ) -> Result<(), NonFinite> {
        // One or two queries need two groups of sums to hide the latency of additions.
        match self.block {
            1 => self.attend_blocks::<V, E, 1, 2>(keys, values),
            2 => self.attend_blocks::<V, E, 2, 2>(keys, values),
            3 => self.attend_blocks::<V, E, 3, 1>(keys, values),
            4 => self.attend_blocks::<V, E, 4, 1>(keys, values),
            5 if V::QUERIES == 8 => self.attend_blocks::<V, E, 5, 1>(keys, values),
            6 if V::QUERIES == 8 => self.attend_blocks::<V, E, 6, 1>(keys, values),
            7 if V::QUERIES == 8 => self.attend_blocks::<V, E, 7, 1>(keys, values),
            8 if V::QUERIES == 8 => self.attend_blocks::<V, E, 8, 1>(keys, values),
            block => unreachable!("blocks of {block} queries"),
        }
    }

    /// For blocks of `B` queries, `G` groups of 16 sums per query at once where
    /// elements are not converted.
    #[inline(always)]
    fn attend_blocks<V: Lanes, E: Element, const B: usize, const G: usize>(
        &mut self,
        keys: Ring<'_, E>,
        values: Ring<'_, E>,
    ) -> Result<(), NonFinite> {
        let (dim, count) = (self.head_dim, self.count);
        let blocks = count.div_ceil(B);
        // Queries that the last block lacks are computed, too.
        let (q, _) = self.q[..blocks * B * dim].as_chunks_mut::<B>();
        for elements in &mut q[(blocks - 1) * dim..] {
            elements[count - (blocks - 1) * B..].fill(0.0);
        }
        // Zero times what is left of other queries could be NaN.
        self.results[..count * dim].fill(0.0);
        // Several blocks have more than half of the most queries each.
        let is_converted = 2 * B > V::QUERIES && blocks > 1 && dim <= CONVERTED;
        let ring = values.elements.len() / dim;
        let mut totals = [None; QUERIES_MAX];
        let Range { mut start, end } = seen(&self.heads[..count]);
        while start < end {
            let split = start / ATTENTION_SPLIT * ATTENTION_SPLIT;
            let stop = end.min(split + ATTENTION_SPLIT);
            let part = |heads: &[AttentionHead]| {
                let seen = seen(heads);
                let from = seen.start.clamp(start, stop);
                let to = seen.end.clamp(from, stop);
                Part {
                    ring,
                    split,
                    positions: (from - split) as usize..(to - split) as usize,
                }
            };
            let heads = &self.heads[..count];
            let mut of_block = heads.chunks(B).map(part);
            let mut parts = Split {
                all: part(heads),
                of_block: from_fn(|_| of_block.next().unwrap_or_else(|| part(&[]))),
                merges: [None; QUERIES_MAX],
            };
            if is_converted {
                self.score_converted::<V, E, B>(&keys, &parts);
            } else {
                self.score::<V, E, B, G>(&keys, &values, &parts);
            }
            for i in 0..blocks * B {
                let weights = &mut self.weights[i];
                let seen = self.heads[..count]
                    .get(i)
                    .map(|head| part(&[*head]).positions);
                match seen.filter(|seen| !seen.is_empty()) {
                    None => weights.fill(0.0),
                    Some(seen) => {
                        let (m, l) = soften::<V>(&self.heads[i], &seen, weights)?;
                        let (merged, total) = merge(totals[i], m, l);
                        (parts.merges[i], totals[i]) = (Some(merged), Some(total));
                    }
                }
            }
            // Keys that come next are asked for beside these values.
            let next = match stop < end {
                true => keys.slots(stop as usize % ring, SPLIT.min((end - stop) as usize), dim),
                false => &[],
            };
            self.merge_values::<V, E, B, G>(&values, &parts, is_converted, next);
            start = stop;
        }
        for (out, total) in self.results.chunks_exact_mut(dim).zip(&totals[..count]) {
            let (_, l) = total.expect("a query sees its own position");
            let inverse = 1.0 / l;
            for o in out {
                *o *= inverse;
            }
        }
        Ok(())
    }

    /// Fills the groups of 16 positions that a block sees with unscaled scores. Values
    /// that will be weighed with them are asked for meanwhile: few queries compute so
    /// little with each line that waiting for one after the other would take longer.
    #[inline(always)]
    fn score<V: Lanes, E: Element, const B: usize, const G: usize>(
        &mut self,
        keys: &Ring<'_, E>,
        values: &Ring<'_, E>,
        split: &Split,
    ) {
        let dim = self.head_dim;
        let (q, _) = self.q.as_chunks::<B>();
        let (weights, _) = self.weights.as_chunks_mut::<B>();
        let blocks = q.chunks_exact(dim).zip(weights).zip(&split.of_block);
        for ((q, weights), part) in blocks.take(self.count.div_ceil(B)) {
            let groups = part.groups();
            for first in groups.clone().step_by(G) {
                let slot = part.slot(first * LANES);
                fetch::<V, E>(values.slots(slot, G * LANES, dim));
                // The last group may be computed more than once.
                let at: [usize; G] = from_fn(|g| (first + g).min(groups.end - 1));
                let keys = at.map(|group| keys.group(part.slot(group * LANES), dim));
                let scores = score_groups::<V, E, B, G>(q, &keys);
                for b in 0..B {
                    let (weights, _) = weights[b].as_chunks_mut::<LANES>();
                    for g in 0..G {
                        scores[b][g].store(&mut weights[at[g]]);
                    }
                }
            }
        }
    }

    /// The same for blocks that share converted keys.
    #[inline(always)]
    fn score_converted<V: Lanes, E: Element, const B: usize>(
        &mut self,
        keys: &Ring<'_, E>,
        split: &Split,
    ) {
        let dim = self.head_dim;
        for group in split.all.groups() {
            let (elements, scales) = keys.group(split.all.slot(group * LANES), dim);
            let converted = &mut self.converted[..dim];
            convert::<V, E>(elements, converted);
            let (q, _) = self.q.as_chunks::<B>();
            let (weights, _) = self.weights.as_chunks_mut::<B>();
            let blocks = q.chunks_exact(dim).zip(weights).zip(&split.of_block);
            for ((q, weights), part) in blocks.take(self.count.div_ceil(B)) {
                if part.groups().contains(&group) {
                    let scores = score_groups::<V, f32, B, 1>(q, &[(converted, scales)]);
                    for b in 0..B {
                        let (weights, _) = weights[b].as_chunks_mut::<LANES>();
                        scores[b][0].store(&mut weights[group]);
                    }
                }
            }
        }
    }

    /// Merges the weighted values of a split into the results, and asks for `next`
    /// meanwhile.
    #[inline(always)]
    fn merge_values<V: Lanes, E: Element, const B: usize, const G: usize>(
        &mut self,
        values: &Ring<'_, E>,
        split: &Split,
        is_converted: bool,
        next: &[E],
    ) {
        let dim = self.head_dim;
        let vectors = dim / LANES * LANES;
        let blocks = self.count.div_ceil(B);
        let parts = split.of_block[..blocks].iter();
        let (weights, _) = self.weights.as_chunks::<B>();
        let (merges, _) = split.merges.as_chunks::<B>();
        let converted = self.converted.as_flattened_mut();
        let mut scaled = [[0.0; SPLIT]; B];
        let mut next = next.chunks(SPLIT * BLOCK);
        for first in (0..vectors).step_by(BLOCK) {
            let end = vectors.min(first + BLOCK);
            let width = end - first;
            fetch::<V, E>(next.next().unwrap_or_default());
            if is_converted {
                for (rows, positions) in split.all.runs(values.elements, dim) {
                    let converted = converted[positions.start * width..].chunks_exact_mut(width);
                    for (row, converted) in rows.chunks_exact(dim).zip(converted) {
                        let (elements, _) = row[first..end].as_chunks();
                        let (converted, _) = converted.as_chunks_mut();
                        convert::<V, E>(elements, converted);
                    }
                }
            }
            for (block, part) in parts.clone().enumerate() {
                let mut weights = &weights[block];
                if !values.scales.is_empty() {
                    scale_weights::<V, B>(weights, values.scales, part, dim, first, &mut scaled);
                    weights = &scaled;
                }
                let merges = &merges[block];
                let out = &mut self.results[block * B * dim..][..B * dim];
                if is_converted {
                    let Range { start, end } = part.positions;
                    let rows = [(&converted[start * width..end * width], start..end)];
                    for at in (0..width).step_by(LANES) {
                        let sums = weigh::<V, f32, B, 1>(weights, &rows, width, at);
                        merge_sums(&sums, merges, out, dim, first + at);
                    }
                } else {
                    let rows = part.runs(values.elements, dim);
                    let mut at = first;
                    while at + G * LANES <= end {
                        let sums = weigh::<V, E, B, G>(weights, &rows, dim, at);
                        merge_sums(&sums, merges, out, dim, at);
                        at += G * LANES;
                    }
                    while at < end {
                        let sums = weigh::<V, E, B, 1>(weights, &rows, dim, at);
                        merge_sums(&sums, merges, out, dim, at);
                        at += LANES;
                    }
                }
            }
        }
        // The rest of a head that is no multiple of 16.
        for (block, part) in parts.enumerate() {
            let rows = part.runs(values.elements, dim);
            for (b, out) in self.results[block * B * dim..]
                .chunks_exact_mut(dim)
                .take(B)
                .enumerate()
            {
                for d in vectors..dim {
                    let mut sum = 0.0f32;
                    for (rows, positions) in &rows {
                        let weights = &weights[block][b][positions.clone()];
                        for (&weight, row) in weights.iter().zip(rows.chunks_exact(dim)) {
                            sum += weight * row[d].to_f32();
                        }
                    }
                    if let Some(merge) = merges[block][b] {
                        out[d] = out[d] * merge.before + sum * merge.split;
                    }
                }
            }
        }
    }
}

/// Asks for all lines of `elements`.
#[inline(always)]
fn fetch<V: Lanes, E: Element>(elements: &[E]) {
    for line in elements.chunks(LINE_BYTES / size_of::<E>()) {
        V::prefetch(&line[0]);
    }
}

#[inline(always)]
fn convert<V: Lanes, E: Element>(elements: &[[E; LANES]], converted: &mut [[f32; LANES]]) {
    for (elements, converted) in elements.iter().zip(converted) {
        E::load::<V>(elements).store(converted);
    }
}

/// Unscaled scores of `B` queries at `G` groups of 16 positions.
#[inline(always)]
fn score_groups<V: Lanes, E: Element, const B: usize, const G: usize>(
    q: &[[f32; B]],
    keys: &[Group<'_, E>; G],
) -> [[V; G]; B] {
    // One length for all, which spares the loop a check for each group.
    let elements = keys.map(|(elements, _)| &elements[..q.len()]);
    let zero = [[V::splat(0.0); G]; B];
    let mut scores = zero;
    if keys[0].1.is_empty() {
        for d in 0..q.len() {
            let rows = elements.map(|elements| E::load(&elements[d]));
            add_products(&mut scores, &q[d], &rows);
        }
        return scores;
    }
    for block in 0..q.len() / BLOCK {
        let mut of_block = zero;
        for d in block * BLOCK..(block + 1) * BLOCK {
            let rows = elements.map(|elements| E::load(&elements[d]));
            add_products(&mut of_block, &q[d], &rows);
        }
        let scales = keys.map(|(_, scales)| V::load(&scales[block]));
        for b in 0..B {
            for g in 0..G {
                scores[b][g] = scores[b][g].add(of_block[b][g].mul(scales[g]));
            }
        }
    }
    scores
}

/// `sums[b] += weights[b] * rows`.
#[inline(always)]
fn add_products<V: Lanes, const B: usize, const G: usize>(
    sums: &mut [[V; G]; B],
    weights: &[f32; B],
    rows: &[V; G],
) {
    for b in 0..B {
        let weight = V::splat(weights[b]);
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
    if sum_lanes(lanes).is_nan() {
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
    let m = max_lanes(lanes);
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

/// The largest lane, by halves: each step is one operation on vectors.
#[inline(always)]
fn max_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = max(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Joins a split's maximum and sum to those of the splits before.
#[inline(always)]
fn merge(total: Option<(f32, f32)>, m: f32, l: f32) -> (Merge, (f32, f32)) {
    let Some((m_all, l_all)) = total else {
        return (Merge::FIRST, (m, l));
    };
    // The splits with the smaller maximum are rescaled.
    let is_larger = m > m_all;
    let c = exp(if is_larger { m_all - m } else { m - m_all });
    let (top, before, split) = if is_larger {
        (m, c, 1.0)
    } else {
        (m_all, 1.0, c)
    };
    (Merge { before, split }, (top, l_all * before + l * split))
}

/// Weights times the scales of the values' block that begins with element `first`.
#[inline(always)]
fn scale_weights<V: Lanes, const B: usize>(
    weights: &[[f32; SPLIT]; B],
    scales: &[f32],
    part: &Part,
    head_dim: usize,
    first: usize,
    scaled: &mut [[f32; SPLIT]; B],
) {
    let per_slot = head_dim / BLOCK;
    let mut of_block = [0.0; SPLIT];
    for (scales, positions) in part.runs(scales, per_slot) {
        let scales = scales.chunks_exact(per_slot);
        for (to, scales) in of_block[positions].iter_mut().zip(scales) {
            *to = scales[first / BLOCK];
        }
    }
    let (of_block, _) = of_block.as_chunks::<LANES>();
    for b in 0..B {
        let (weights, _) = weights[b].as_chunks::<LANES>();
        let (scaled, _) = scaled[b].as_chunks_mut::<LANES>();
        for group in part.groups() {
            let weights = V::load(&weights[group]);
            weights
                .mul(V::load(&of_block[group]))
                .store(&mut scaled[group]);
        }
    }
}

/// `G * 16` elements from `at` on of each query's weighted sum of rows, which are
/// `row` elements long.
#[inline(always)]
fn weigh<V: Lanes, E: Element, const B: usize, const G: usize>(
    weights: &[[f32; SPLIT]; B],
    runs: &[Run<'_, E>],
    row: usize,
    at: usize,
) -> [[V; G]; B] {
    let mut sums = [[V::splat(0.0); G]; B];
    for (rows, positions) in runs {
        let weights: [&[f32]; B] = from_fn(|b| &weights[b][positions.clone()]);
        for (i, row) in rows.chunks_exact(row).enumerate() {
            let (groups, _) = row[at..at + G * LANES].as_chunks::<LANES>();
            let rows: [V; G] = from_fn(|g| E::load(&groups[g]));
            add_products(&mut sums, &weights.map(|weights| weights[i]), &rows);
        }
    }
    sums
}

/// Merges `G * 16` elements from `at` on of each query into its result.
#[inline(always)]
fn merge_sums<V: Lanes, const B: usize, const G: usize>(
    sums: &[[V; G]; B],
    merges: &[Option<Merge>; B],
    results: &mut [f32],
    head_dim: usize,
    at: usize,
) {
    for b in 0..B {
        let Some(merge) = merges[b] else { continue };
        let result = &mut results[b * head_dim + at..][..G * LANES];
        let (groups, _) = result.as_chunks_mut::<LANES>();
        for g in 0..G {
            let before = V::load(&groups[g]).mul(V::splat(merge.before));
            let split = sums[b][g].mul(V::splat(merge.split));
            before.add(split).store(&mut groups[g]);
        }
    }
}
