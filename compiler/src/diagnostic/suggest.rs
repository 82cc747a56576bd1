//! "Did you mean": the nearest known name.

/// Names longer than this are not compared: nobody mistypes them, and the distance is quadratic.
const NAME_CHARS_MAX: usize = 64;
/// More candidates than this are not searched, so that a hostile container costs linear time.
const CANDIDATES_MAX: usize = 4096;

/// Edits to turn `a` into `b`: insertions, deletions, substitutions and swaps of neighbours (optimal string
/// alignment). None above `max`.
fn distance(a: &[char], b: &[char], max: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > max {
        return None;
    }
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    let mut row = vec![0; b.len() + 1];
    for (i, &ca) in a.iter().enumerate() {
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(ca != cb))
                .min(above[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && ca == b[j - 1] && a[i - 1] == cb {
                best = best.min(before[j - 1] + 1);
            }
            row[j + 1] = best;
        }
        (before, above, row) = (above, row, before);
    }
    Some(above[b.len()]).filter(|&d| d <= max)
}

/// The candidate nearest to `name`, if it is near enough to be a typing mistake. Case counts for nothing; of equally
/// near ones the first wins.
pub fn did_you_mean<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = |s: &str| -> Vec<char> {
        s.chars()
            .take(NAME_CHARS_MAX + 1)
            .flat_map(char::to_lowercase)
            .collect()
    };
    let name = lower(name);
    if name.is_empty() || name.len() > NAME_CHARS_MAX {
        return None;
    }
    let mut max = (name.len() / 3).max(1);
    let mut best = None;
    for candidate in candidates.into_iter().take(CANDIDATES_MAX) {
        let chars = lower(candidate);
        if let Some(d) = distance(&name, &chars, max)
            && d < chars.len()
        {
            if d == 0 {
                return Some(candidate);
            }
            best = Some(candidate);
            max = d - 1;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_name_wins() {
        let names = ["max_tokens", "model_path", "task_type", "id"];
        for (typed, expected) in [
            ("max_token", Some("max_tokens")),
            ("mxa_tokens", Some("max_tokens")),
            ("MODEL_PATH", Some("model_path")),
            ("taks_tpye", Some("task_type")),
            ("window", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(typed, names), expected, "{typed}");
        }
    }
}
