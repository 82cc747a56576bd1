//! Chooses the next token. The same logits, history, seed and position give
//! the same token everywhere: sorts are total, ties go to the lowest id, and
//! random numbers are a function of seed and position alone.

use omex_kernels::math::exp;
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

/// The most likely token, the lowest id among equals. Logits are finite.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
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
    for (candidate, id) in candidates.iter_mut().zip(0..) {
        *candidate = id;
    }
    let order = |a: &u32, b: &u32| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        // Zeros are equal: 0.0 and -0.0 differ in `total_cmp` only.
        let (x, y) = (x + 0.0, y + 0.0);
        y.total_cmp(&x).then(a.cmp(b))
    };
    let mut kept = count;
    if top_k > 0 && (top_k as usize) < count {
        kept = top_k as usize;
        candidates.select_nth_unstable_by(kept - 1, order);
    }
    candidates[..kept].sort_unstable_by(order);

    let top = logits[candidates[0] as usize];
    let weight = |id: u32| exp(logits[id as usize] - top) as f64;
    if top_p < 1.0 {
        let total: f64 = candidates[..kept].iter().map(|&id| weight(id)).sum();
        let wanted = top_p as f64 * total;
        let mut sum = 0.0;
        let reach = candidates[..kept].iter().position(|&id| {
            sum += weight(id);
            sum >= wanted
        });
        kept = reach.map_or(kept, |last| last + 1);
    }
    if min_p > 0.0 {
        // The first has weight 1 and always stays.
        let keep = candidates[..kept].partition_point(|&id| weight(id) >= min_p as f64);
        kept = keep.max(1);
    }
    let candidates = &candidates[..kept];
    let warm = |id: u32| exp((logits[id as usize] - top) / temperature) as f64;
    let total: f64 = candidates.iter().map(|&id| warm(id)).sum();
    let position = history.len() as u32;
    let mut rest = uniform(seed, position) * total;
    for &id in candidates {
        rest -= warm(id);
        if rest < 0.0 {
            return id;
        }
    }
    // Rounding may leave a rest of almost nothing.
    candidates[candidates.len() - 1]
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
