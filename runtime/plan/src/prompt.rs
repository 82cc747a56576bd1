//! A prompt with one open place, as the compiler leaves it and the runtime fills it.

use crate::wire::{Decode, Encode};

/// A rendered chat template, cut at the place of the input.
///
/// The prompt for an input is `prefix_tokens`, then the tokens of `prefix_text`, the
/// trimmed input and `suffix_text` as *one* text in which special tokens are literal
/// (merges cross the borders), then `suffix_tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct PromptTemplate {
    /// Everything up to the last special token before the input.
    pub prefix_tokens: Vec<u32>,
    pub prefix_text: String,
    /// What the template takes off the input's ends.
    pub trim: Trim,
    pub suffix_text: String,
    /// Everything from the first special token after the input.
    pub suffix_tokens: Vec<u32>,
    /// The whole prompt for an input that is empty once trimmed, where the template makes
    /// something else of it than of other inputs.
    pub empty_tokens: Option<Vec<u32>>,
}

/// Ends of the input that lose their white space, as Python's `str.strip` defines it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Trim {
    #[default]
    None,
    Left,
    Right,
    Both,
}

impl Trim {
    /// What is left of `text`.
    #[must_use]
    pub fn apply_str(self, text: &str) -> &str {
        std::str::from_utf8(self.apply(text.as_bytes())).expect("whole characters are taken off")
    }

    /// What is left of `text`. Bytes that are not UTF-8 are not white space.
    #[must_use]
    pub fn apply(self, mut text: &[u8]) -> &[u8] {
        let (left, right) = match self {
            Self::None => (false, false),
            Self::Left => (true, false),
            Self::Right => (false, true),
            Self::Both => (true, true),
        };
        while left && let Some((_, rest)) = first_character(text).filter(|(c, _)| is_space(*c)) {
            text = rest;
        }
        while right && let Some((_, rest)) = last_character(text).filter(|(c, _)| is_space(*c)) {
            text = rest;
        }
        text
    }
}

/// Python's `str.isspace` for one character: Unicode's White_Space and the four
/// information separators.
#[must_use]
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn first_character(text: &[u8]) -> Option<(char, &[u8])> {
    let len = (1..=text.len().min(4)).find(|&len| std::str::from_utf8(&text[..len]).is_ok())?;
    character(&text[..len]).map(|c| (c, &text[len..]))
}

fn last_character(text: &[u8]) -> Option<(char, &[u8])> {
    let rest = (1..=text.len().min(4))
        .map(|len| text.len() - len)
        .find(|&rest| std::str::from_utf8(&text[rest..]).is_ok())?;
    character(&text[rest..]).map(|c| (c, &text[..rest]))
}

fn character(bytes: &[u8]) -> Option<char> {
    std::str::from_utf8(bytes).ok()?.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_like_python() {
        let all: String = (0..0x110000)
            .filter_map(char::from_u32)
            .filter(|&c| is_space(c))
            .collect();
        assert_eq!(all.chars().count(), 29, "str.isspace has 29 characters");
        let text = format!("{all}a b{all}");
        let end = text.len() - all.len();
        assert_eq!(Trim::Both.apply(text.as_bytes()), b"a b");
        assert_eq!(
            Trim::Left.apply(text.as_bytes()),
            &text.as_bytes()[all.len()..]
        );
        assert_eq!(Trim::Right.apply(text.as_bytes()), &text.as_bytes()[..end]);
        assert_eq!(Trim::None.apply(text.as_bytes()), text.as_bytes());
        assert_eq!(Trim::Both.apply(all.as_bytes()), b"");
    }

    #[test]
    fn bytes_outside_utf8_stay() {
        for text in [&b"\xff a \xff"[..], b"\x85", b"\xa0", b"\xc2", b"\x80\x83"] {
            assert_eq!(Trim::Both.apply(text), text);
        }
    }
}
