//! Patterns of paths: `*`, `?` and `[a-z]` within a name, `**` for any number
//! of folders.

/// Parts of a pattern that the names of a path may go on with, as a bit each;
/// one bit more says that the path matches.
pub(super) type States = u64;

/// Parts that fit [`States`].
pub(super) const PARTS_MAX: usize = States::BITS as usize - 1;

/// A pattern of relative paths, part by part.
#[derive(Debug)]
pub(super) struct Pattern(Vec<Box<[u8]>>);

impl Pattern {
    /// At most [`PARTS_MAX`] parts; empty ones and `.` mean nothing.
    pub(super) fn new(parts: &[&str]) -> Pattern {
        let parts = parts.iter().filter(|part| !matches!(**part, "" | "."));
        let parts: Vec<Box<[u8]>> = parts.map(|part| part.as_bytes().into()).collect();
        assert!(parts.len() <= PARTS_MAX, "a pattern of too many parts");
        Pattern(parts)
    }

    /// Every file at any depth.
    pub(super) fn all() -> Pattern {
        Pattern::new(&["**"])
    }

    /// Before the first name of a path.
    pub(super) fn start(&self) -> States {
        self.closed(1)
    }

    /// Adds what follows `**`, which may stand for no folder; at the end it
    /// stands for a file.
    fn closed(&self, mut states: States) -> States {
        for part in 0..self.0.len().saturating_sub(1) {
            if *self.0[part] == *b"**" && states >> part & 1 == 1 {
                states |= 1 << (part + 1);
            }
        }
        states
    }

    /// Behind one more name. Hidden names are matched by parts that start with
    /// a dot alone; `**` takes no links, so that walks end.
    pub(super) fn step(&self, states: States, name: &[u8], is_link: bool) -> States {
        let is_hidden = name.starts_with(b".");
        let mut next = 0;
        for (part, text) in self.0.iter().enumerate() {
            if states >> part & 1 == 0 {
                continue;
            }
            if **text == *b"**" {
                if !is_hidden && !is_link {
                    let is_last = part + 1 == self.0.len();
                    next |= if is_last { 0b11 << part } else { 1 << part };
                }
            } else if (!is_hidden || text.starts_with(b".")) && matches_name(text, name) {
                next |= 1 << (part + 1);
            }
        }
        self.closed(next)
    }

    /// The path matches.
    pub(super) fn accepts(&self, states: States) -> bool {
        states >> self.0.len() & 1 == 1
    }

    /// Paths below it may match.
    pub(super) fn goes_on(&self, states: States) -> bool {
        states & ((1 << self.0.len()) - 1) != 0
    }
}

/// Whether one name matches a pattern without separators.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    // Where to try again when a character does not match: behind the last
    // star, one character of the name further on.
    let mut retry: Option<(usize, usize)> = None;
    let (mut p, mut n) = (0, 0);
    while n < name.len() {
        let matched = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => match class(&pattern[p + 1..], name[n]) {
                Some((true, len)) => Some(p + 1 + len),
                Some((false, _)) => None,
                None => (name[n] == b'[').then_some(p + 1),
            },
            Some(&c) => (c == name[n]).then_some(p + 1),
            None => None,
        };
        match (matched, retry) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((star, at))) => {
                (p, n) = (star, at + 1);
                retry = Some((star, at + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Whether a class such as `a-z]` or `!0-9]` contains `c`, and its length;
/// `None` when it never ends.
fn class(pattern: &[u8], c: u8) -> Option<(bool, usize)> {
    let (negated, start) = match pattern.first() {
        Some(b'!' | b'^') => (true, 1),
        _ => (false, 0),
    };
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|&c| c == b']')?;
    let mut contains = false;
    let mut at = start;
    while at < end {
        if at + 2 < end && pattern[at + 1] == b'-' {
            contains |= (pattern[at]..=pattern[at + 2]).contains(&c);
            at += 3;
        } else {
            contains |= pattern[at] == c;
            at += 1;
        }
    }
    Some((contains != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_patterns() {
        let yes = [
            ("*.rs", "a.rs"),
            ("*", ""),
            ("a*b*c", "axxbxbc"),
            ("?[a-c]x", "zbx"),
            ("[!a-c]", "d"),
            ("[]]", "]"),
            ("[", "["),
        ];
        let no = [
            ("*.rs", "a.rss"),
            ("?", ""),
            ("[a-c]", "d"),
            ("[!a-c]", "a"),
            ("a*b", "ac"),
        ];
        for (pattern, name) in yes {
            assert!(
                matches_name(pattern.as_bytes(), name.as_bytes()),
                "{pattern} {name}"
            );
        }
        for (pattern, name) in no {
            assert!(
                !matches_name(pattern.as_bytes(), name.as_bytes()),
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn paths_match_patterns() {
        let matches = |pattern: &str, path: &str| {
            let pattern = Pattern::new(&pattern.split('/').collect::<Vec<_>>());
            let names = path.split('/').map(str::as_bytes);
            let end = names.fold(pattern.start(), |states, name| {
                pattern.step(states, name, false)
            });
            pattern.accepts(end)
        };
        let yes = [
            ("**", "a"),
            ("**", "a/b/c"),
            ("a/**", "a/b"),
            ("**/*.rs", "b.rs"),
            ("**/*.rs", "a/c/b.rs"),
            ("a/**/b/*", "a/b/x"),
            ("a/**/b/*", "a/b/c/b/x"),
            ("./a//*", "a/x"),
            (".*/x", ".a/x"),
        ];
        let no = [
            ("a/**", "a"),
            ("*", "a/b"),
            ("**/*.rs", "a.rs/b"),
            ("**", ".a"),
            ("**", "a/.b/c"),
            ("a/**/b/*", "a/x"),
        ];
        for (pattern, path) in yes {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in no {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }
}
