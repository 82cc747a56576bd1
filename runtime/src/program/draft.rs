//! Drafts of what comes next, looked up in what is there already.

/// Longest and shortest run of tokens that is looked up.
const NGRAMS: std::ops::RangeInclusive<usize> = 2..=4;

/// Most tokens of a draft.
pub(super) const DRAFT_MAX: usize = 31;

/// Writes the tokens that followed the latest earlier occurrence of the last
/// few of `tokens` to `draft`, and returns how many. Longer matches come first.
///
/// Source: prompt lookup decoding (A. Saxena, 2023).
pub(super) fn look_up(tokens: &[u32], draft: &mut [u32]) -> usize {
    for n in NGRAMS.rev() {
        let Some(start) = tokens.len().checked_sub(n) else {
            continue;
        };
        let tail = &tokens[start..];
        let found = (0..start).rev().find(|&i| tokens[i..i + n] == *tail);
        if let Some(i) = found {
            let following = &tokens[i + n..];
            let count = following.len().min(draft.len());
            draft[..count].copy_from_slice(&following[..count]);
            return count;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafted(tokens: &[u32], max: usize) -> Vec<u32> {
        let mut draft = [0; 8];
        let count = look_up(tokens, &mut draft[..max]);
        draft[..count].to_vec()
    }

    #[test]
    fn the_longest_and_latest_match_is_continued() {
        assert_eq!(drafted(&[1, 2, 3, 4, 1, 2], 3), [3, 4, 1]);
        assert_eq!(drafted(&[1, 2, 3, 9, 1, 2, 4, 9, 1, 2], 1), [4]);
        // Three tokens match earlier than two do.
        assert_eq!(drafted(&[5, 1, 2, 3, 8, 1, 2, 4, 5, 1, 2], 1), [3]);
        assert_eq!(drafted(&[7, 7, 7], 4), [7]);
        assert!(drafted(&[1, 2, 3, 4], 4).is_empty());
        assert!(drafted(&[1], 4).is_empty());
        assert!(drafted(&[], 4).is_empty());
        assert!(drafted(&[1, 2, 1, 2], 0).is_empty());
    }
}
