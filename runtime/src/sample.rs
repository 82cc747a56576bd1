//! Chooses the next token. The same logits, history, seed and position give
//! the same token everywhere: sorts are total, ties go to the lowest id, and
//! random numbers are a function of seed and position alone.

use std::array::from_fn;
use std::cmp::Ordering;

use omex_kernels::lanes::{LANES, Lanes};
use omex_kernels::math::{exp, max};
use omex_plan::session::sampler_words;
use omex_plan::task::Sampling;

/// A number in [0, 1) with 53 bits, from a counter: BLAKE3 of seed and position.
pub fn uniform(seed: u64, position: u32) -> f64 {
    let mut message = [0; 12];
    message[..8].copy_from_slice(&seed.to_le_bytes());
    message[8..].copy_from_slice(&position.to_le_bytes());
    let digest = blake3::hash(&message);
    let bytes = digest.as_bytes()[..8].try_into().expect("eight bytes");
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

/// Logits that are looked at together for the most likely one.
const ARGMAX_CHUNK: usize = 1024;

/// The most likely token, the lowest id among equals. Logits are finite.
pub fn argmax(logits: &[f32]) -> u32 {
    let (mut top, mut first) = (f32::NEG_INFINITY, 0);
    for (index, chunk) in logits.chunks(ARGMAX_CHUNK).enumerate() {
        let (groups, rest) = chunk.as_chunks::<LANES>();
        let none = [f32::NEG_INFINITY; LANES];
        let lanes = groups.iter().fold(none, |lanes, &x| Lanes::max(lanes, x));
        let of_chunk = lanes.iter().chain(rest).fold(top, |a, &b| max(a, b));
        if of_chunk > top {
            (top, first) = (of_chunk, index * ARGMAX_CHUNK);
        }
    }
    let within = logits[first..].iter().position(|&logit| logit == top);
    (first + within.expect("logits are finite")) as u32
}

/// Whether `a` is ranked before `b`: the larger logit, then the lower id.
fn order(logits: &[f32], a: u32, b: u32) -> Ordering {
    let (x, y) = (logits[a as usize], logits[b as usize]);
    // Zeros are equal: 0.0 and -0.0 differ in `total_cmp` only.
    let (x, y) = (x + 0.0, y + 0.0);
    y.total_cmp(&x).then(a.cmp(&b))
}

/// Tokens in the order of their logits, found as far as they are asked for: few of
/// a vocabulary have any weight.
struct Ranking<'a> {
    logits: &'a [f32],
    /// The first `ranked` are in order.
    ids: &'a mut [u32],
    ranked: usize,
    /// How many will be asked for at most.
    count: usize,
}

impl Ranking<'_> {
    /// Tokens that are ranked first, and how many times as many next.
    const FIRST: usize = 256;
    const GROWTH: usize = 16;

    fn get(&mut self, rank: usize) -> u32 {
        while rank >= self.ranked {
            let wanted = (self.ranked * Self::GROWTH).max(Self::FIRST);
            self.rank(wanted.min(self.count));
        }
        self.ids[rank]
    }

    fn logit(&mut self, rank: usize) -> f32 {
        self.logits[self.get(rank) as usize]
    }

    /// Ranks the first `wanted`, in one reading of the logits: what is above the
    /// least of those found so far is collected, and cut to `wanted` when there is
    /// no more room.
    fn rank(&mut self, wanted: usize) {
        let &mut Ranking { logits, .. } = self;
        let room = (2 * wanted).max(Self::FIRST).min(logits.len());
        let ids = &mut self.ids[..room];
        let mut found = 0;
        // Of those that were cut to. Ids ascend, so what is equal ranks behind it.
        let mut least = None;
        for (group, first) in logits.chunks(LANES).zip((0..).step_by(LANES)) {
            if least.is_some_and(|least| group.iter().fold(true, |none, &x| none & (x <= least))) {
                continue;
            }
            for (&logit, id) in group.iter().zip(first..) {
                if found == room {
                    ids.select_nth_unstable_by(wanted - 1, |&a, &b| order(logits, a, b));
                    found = wanted;
                    least = Some(logits[ids[wanted - 1] as usize]);
                }
                if least.is_none_or(|least| logit > least) {
                    ids[found] = id;
                    found += 1;
                }
            }
        }
        let ids = &mut ids[..found];
        if wanted < found {
            ids.select_nth_unstable_by(wanted - 1, |&a, &b| order(logits, a, b));
        }
        ids[..wanted].sort_unstable_by(|&a, &b| order(logits, a, b));
        self.ranked = wanted;
    }

    /// The sum of the weights of the first `count`: in their order, or, of all
    /// tokens, in 16 lanes by id, which needs no ranking.
    fn sum(&mut self, count: usize, weight: impl Fn(f32) -> f32) -> f64 {
        if count < self.logits.len() {
            let weight = |rank| weight(self.logit(rank)) as f64;
            return (0..count).map(weight).sum();
        }
        let (groups, rest) = self.logits.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        for group in groups {
            let weights = group.map(&weight);
            lanes = from_fn(|i| lanes[i] + weights[i] as f64);
        }
        for (lane, &logit) in lanes.iter_mut().zip(rest) {
            *lane += weight(logit) as f64;
        }
        lanes.iter().sum()
    }
}

/// The token for the position behind `history` (prompt and generated tokens).
/// `logits` are finite, one per token; the penalty changes them. `memory` has
/// [`sampler_words`] of the vocabulary; what is in it does not matter.
pub fn sample(sampling: &Sampling, logits: &mut [f32], memory: &mut [u32], history: &[u32]) -> u32 {
    let (count, bits) = sampler_words(logits.len() as u32);
    let (candidates, rest) = memory.split_at_mut(count);
    penalize(sampling, logits, &mut rest[..bits], history);
    if sampling.temperature == 0.0 {
        return argmax(logits);
    }
    let &Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        seed,
        repeat_penalty: _,
        repeat_last: _,
    } = sampling;
    let mut kept = match top_k as usize {
        0 => count,
        top_k => top_k.min(count),
    };
    let mut ranking = Ranking {
        logits,
        ids: candidates,
        ranked: 0,
        count: kept,
    };
    let top = ranking.logit(0);
    let weight = |logit: f32| exp(logit - top);
    if top_p < 1.0 {
        let wanted = top_p as f64 * ranking.sum(kept, weight);
        let mut sum = 0.0;
        let reach = (0..kept).position(|rank| {
            sum += weight(ranking.logit(rank)) as f64;
            sum >= wanted
        });
        kept = reach.map_or(kept, |last| last + 1);
    }
    if min_p > 0.0 {
        let few = (0..kept).position(|rank| weight(ranking.logit(rank)) < min_p);
        // The first has weight 1 and always stays.
        kept = few.map_or(kept, |few| few.max(1));
    }
    let warm = |logit: f32| exp((logit - top) / temperature);
    let total = ranking.sum(kept, warm);
    let position = history.len() as u32;
    let mut rest = uniform(seed, position) * total;
    for rank in 0..kept {
        rest -= warm(ranking.logit(rank)) as f64;
        if rest < 0.0 {
            return ranking.get(rank);
        }
    }
    // Rounding may leave a rest of almost nothing.
    ranking.get(kept - 1)
}

/// Makes recent tokens less likely (Keskar et al., arXiv 1909.05858): positive
/// logits are divided by the penalty, others multiplied. `bits` say which
/// tokens had it.
fn penalize(sampling: &Sampling, logits: &mut [f32], bits: &mut [u32], history: &[u32]) {
    let penalty = sampling.repeat_penalty;
    if penalty == 1.0 {
        return;
    }
    bits.fill(0);
    let recent = history.len().min(sampling.repeat_last as usize);
    for &token in &history[history.len() - recent..] {
        let (word, bit) = (token as usize / 32, 1 << (token % 32));
        if bits[word] & bit == 0 {
            bits[word] |= bit;
            let logit = &mut logits[token as usize];
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(change: impl FnOnce(&mut Sampling)) -> Sampling {
        let mut sampling = Sampling {
            temperature: 1.0,
            ..Sampling::GREEDY
        };
        change(&mut sampling);
        sampling
    }

    /// Samples in memory that something else has used.
    fn sample_dirty(sampling: &Sampling, logits: &mut [f32], history: &[u32]) -> u32 {
        sample(sampling, logits, &mut [u32::MAX; 6], history)
    }

    /// Share of each of five tokens in 20,000 draws at different positions.
    fn shares(change: impl FnOnce(&mut Sampling), logits: [f32; 5]) -> [f64; 5] {
        let sampling = sampling(change);
        let mut counts = [0.0; 5];
        let draws = 20_000;
        let history = vec![4; draws];
        for position in 0..draws {
            let token = sample_dirty(&sampling, &mut logits.clone(), &history[..position]);
            counts[token as usize] += 1.0 / draws as f64;
        }
        counts
    }

    fn close(got: [f64; 5], want: [f64; 5]) {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 0.015, "{got} is not {want}");
            assert!(want > 0.0 || *got == 0.0, "{got} is not 0");
        }
    }

    // Logarithms of 0.1, 0.2, 0.3, 0.4 and of almost nothing.
    const LOGITS: [f32; 5] = [
        -std::f32::consts::LN_10,
        -1.609438,
        -1.2039728,
        -0.9162907,
        -30.0,
    ];

    #[test]
    fn draws_follow_the_probabilities_of_what_is_kept() {
        close(shares(|_| {}, LOGITS), [0.1, 0.2, 0.3, 0.4, 0.0]);
        let two = [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0, 0.0];
        close(shares(|s| s.top_k = 2, LOGITS), two);
        close(shares(|s| s.top_p = 0.69, LOGITS), two);
        close(shares(|s| s.min_p = 0.6, LOGITS), two);
        let sharp = [1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0, 0.0];
        close(shares(|s| s.temperature = 0.5, LOGITS), sharp);
        close(
            shares(|s| s.temperature = 1e-6, LOGITS),
            [0.0, 0.0, 0.0, 1.0, 0.0],
        );
        close(shares(|s| s.top_p = 0.0, LOGITS), [0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn ties_go_to_the_lowest_id() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, -0.0]), 1);
        assert_eq!(argmax(&[-0.0, 0.0]), 0);
        let sampling = sampling(|s| s.top_k = 1);
        for position in 0..50 {
            let history = vec![0; position];
            assert_eq!(sample_dirty(&sampling, &mut [-0.0, 0.0, 0.0], &history), 0);
        }
    }

    /// Numbers with ties, zeros of both signs and, at times, a long rise.
    fn mixed(count: u32, levels: u64, seed: u64) -> Vec<f32> {
        let level = |id| (uniform(seed, id) * levels as f64).floor() as f32;
        let rise = |id: u32| match seed % 3 {
            0 => id as f32,
            _ => 0.0,
        };
        let logit = |id| match level(id) - (levels / 2) as f32 + rise(id) {
            0.0 if id % 2 == 0 => -0.0,
            logit => logit,
        };
        (0..count).map(logit).collect()
    }

    fn by_rank(logits: &[f32]) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| order(logits, a, b));
        ids
    }

    #[test]
    fn ranks_are_those_of_a_sort() {
        for (count, levels, seed) in [
            (1, 3, 0),
            (15, 3, 1),
            (300, 2, 2),
            (5_000, 40, 3),
            (5_001, 1 << 20, 4),
            (70_000, 1 << 20, 5),
            (70_000, 9, 6),
        ] {
            let mut logits = mixed(count, levels, seed);
            logits[count as usize / 2] = f32::NEG_INFINITY;
            let sorted = by_rank(&logits);
            assert_eq!(argmax(&logits), sorted[0]);
            for most in [1, 40, 300, count as usize].map(|n| n.min(count as usize)) {
                let mut ids = vec![u32::MAX; count as usize];
                let mut ranking = Ranking {
                    logits: &logits,
                    ids: &mut ids,
                    ranked: 0,
                    count: most,
                };
                let ranked: Vec<u32> = (0..most).map(|rank| ranking.get(rank)).collect();
                assert_eq!(ranked, sorted[..most], "{most} of {count}, seed {seed}");
            }
        }
    }

    #[test]
    fn sums_of_all_and_of_the_first_are_equal_but_for_rounding() {
        let logits = mixed(1_003, 30, 4);
        let sum = |count| {
            let mut ids = vec![0; logits.len()];
            let mut ranking = Ranking {
                logits: &logits,
                ids: &mut ids,
                ranked: 0,
                count: logits.len(),
            };
            ranking.sum(count, |logit| exp(logit - 15.0))
        };
        let (all, but_one) = (sum(1_003), sum(1_002));
        let least = logits[by_rank(&logits)[1_002] as usize];
        let want = all - exp(least - 15.0) as f64;
        assert!((but_one / want - 1.0).abs() < 1e-12, "{but_one}, {want}");
    }

    #[test]
    fn the_penalty_counts_each_recent_token_once() {
        let penalized = |last: u32, history: &[u32]| {
            let mut logits = [2.0f32, -2.0, 1.0];
            let sampling = Sampling {
                repeat_penalty: 2.0,
                repeat_last: last,
                ..Sampling::GREEDY
            };
            sample_dirty(&sampling, &mut logits, history);
            logits
        };
        assert_eq!(penalized(64, &[0, 1, 0]), [1.0, -4.0, 1.0]);
        assert_eq!(penalized(1, &[0, 1, 0]), [1.0, -2.0, 1.0]);
        assert_eq!(penalized(0, &[0, 1, 0]), [2.0, -2.0, 1.0]);
    }

    #[test]
    fn numbers_depend_on_seed_and_position_only() {
        assert_eq!(uniform(1, 2), uniform(1, 2));
        assert_ne!(uniform(1, 2), uniform(2, 1));
        let mean = (0..10_000).map(|p| uniform(9, p)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
