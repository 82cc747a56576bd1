//! Where added tokens are in a text, and how the text between them splits into pieces.

use std::ops::Range;

use super::table::{BLOCK, cut, flag, option, transition};
use super::{SpecialText, TokenKind, Tokenizer};

/// An added token found in a text, with the white space that belongs to it.
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) span: Range<usize>,
}

/// The character at `at`: its code point and length. A byte that starts no valid
/// character counts as U+FFFD of length one.
pub(super) fn character(text: &[u8], at: usize) -> (u32, usize) {
    let first = text[at];
    let (len, low, high) = match first {
        0..0x80 => return (u32::from(first), 1),
        0xc2..=0xdf => (2, 0x80, 0xbf),
        0xe0 => (3, 0xa0, 0xbf),
        0xed => (3, 0x80, 0x9f),
        0xe1..=0xef => (3, 0x80, 0xbf),
        0xf0 => (4, 0x90, 0xbf),
        0xf1..=0xf3 => (4, 0x80, 0xbf),
        0xf4 => (4, 0x80, 0x8f),
        _ => return (0xfffd, 1),
    };
    let Some(rest) = text.get(at + 1..at + len) else {
        return (0xfffd, 1);
    };
    if !(low..=high).contains(&rest[0]) || rest[1..].iter().any(|b| b & 0xc0 != 0x80) {
        return (0xfffd, 1);
    }
    let lead = u32::from(first) & (0x7f >> len);
    let point = rest
        .iter()
        .fold(lead, |point, &b| (point << 6) | u32::from(b & 0x3f));
    (point, len)
}

/// Unicode's White_Space, which tokens that strip white space take with them.
fn is_white_space(point: u32) -> bool {
    char::from_u32(point).is_some_and(char::is_whitespace)
}

impl Tokenizer<'_> {
    /// The leftmost-longest added token at or after `start`.
    ///
    /// Control tokens take part even when they are literal text and are then passed over
    /// as a whole, as Hugging Face's matcher does: text inside them stays plain.
    pub(super) fn next_added(
        &self,
        text: &[u8],
        start: usize,
        special: SpecialText,
    ) -> Option<Added> {
        if special == SpecialText::Literal && !self.has_user_defined {
            return None;
        }
        let mut at = start;
        while at < text.len() {
            let (first, len) = self.spelled(text, at);
            let starts = self.added_starts[usize::from(first)];
            let Some((id, end)) = starts.then(|| self.added_at(text, at)).flatten() else {
                at += len;
                continue;
            };
            let flags = self.flags(id);
            let user = TokenKind::from_code(flags & flag::KIND) == TokenKind::UserDefined;
            if !user && special == SpecialText::Literal {
                at = end;
                continue;
            }
            let mut span = at..end;
            if flags & flag::STRIP_LEFT != 0 {
                while let Some(before) = previous_white_space(text, start, span.start) {
                    span.start = before;
                }
            }
            if flags & flag::STRIP_RIGHT != 0 {
                while span.end < text.len() {
                    let (point, len) = character(text, span.end);
                    if !is_white_space(point) {
                        break;
                    }
                    span.end += len;
                }
            }
            return Some(Added { id, span });
        }
        None
    }

    /// The longest added token that the text has at `at`, with its end. The sorted list
    /// narrows byte by byte to the tokens that start like the text.
    fn added_at(&self, text: &[u8], at: usize) -> Option<(u32, usize)> {
        let added = self.tables.added;
        let (mut low, mut high) = (0, added.len());
        let mut found = None;
        let mut end = at;
        for depth in 0.. {
            if end == text.len() {
                break;
            }
            let (byte, len) = self.spelled(text, end);
            end += len;
            let token = |index: usize| self.tables.token(added.at(index));
            // Tokens of exactly `depth` bytes sort first and have no byte there.
            let bound = |low: usize, high: usize, after: bool| {
                let (mut low, mut high) = (low, high);
                while low < high {
                    let middle = low + (high - low) / 2;
                    let less = match token(middle).get(depth) {
                        None => true,
                        Some(&b) => b < byte || (after && b == byte),
                    };
                    if less {
                        low = middle + 1;
                    } else {
                        high = middle;
                    }
                }
                low
            };
            low = bound(low, high, false);
            high = bound(low, high, true);
            if low == high {
                break;
            }
            if token(low).len() == depth + 1 {
                found = Some((added.at(low), end));
            }
        }
        found
    }

    /// The vocabulary's byte for what is at `at`, and the length of that in the text:
    /// where it spells characters, U+2581 is a space.
    pub(super) fn spelled(&self, text: &[u8], at: usize) -> (u8, usize) {
        if !self.is_byte_level() && text[at..].starts_with("\u{2581}".as_bytes()) {
            (b' ', 3)
        } else {
            (text[at], 1)
        }
    }

    /// Splits a part of a text with the pre-tokenizer's stages and gives the pieces.
    pub(super) fn split(
        &self,
        text: &[u8],
        range: Range<usize>,
        sink: &mut dyn FnMut(Range<usize>),
    ) {
        self.split_stage(0, &text[..range.end], range.start, sink);
    }

    /// Each stage sees only the piece that the stage before it made: `text` ends where
    /// that piece ends. What lies between two pieces of a stage is a piece too.
    fn split_stage(
        &self,
        stage: usize,
        text: &[u8],
        start: usize,
        sink: &mut dyn FnMut(Range<usize>),
    ) {
        if stage == self.tables.field(super::Field::Stages) as usize {
            if self.tables.field(super::Field::Options) & option::SPLIT_NUMBER_BYTES == 0 {
                if start < text.len() {
                    sink(start..text.len());
                }
            } else {
                split_number_bytes(text, start, sink);
            }
            return;
        }
        let (mut gap, mut at) = (start, start);
        while at < text.len() {
            let (kind, end) = self.piece_at(stage, text, at);
            if kind == transition::PIECE {
                match self.tables.stages[stage].cut {
                    cut::BEFORE_THREES => {
                        for place in threes(text, at..end) {
                            self.split_stage(stage + 1, &text[..place], gap, sink);
                            gap = place;
                        }
                    }
                    how => {
                        self.split_stage(stage + 1, &text[..at], gap, sink);
                        gap = at;
                        if how == cut::THREES {
                            for place in threes(text, at..end) {
                                self.split_stage(stage + 1, &text[..place], gap, sink);
                                gap = place;
                            }
                        }
                        self.split_stage(stage + 1, &text[..end], gap, sink);
                        gap = end;
                    }
                }
            }
            at = end;
        }
        self.split_stage(stage + 1, text, gap, sink);
    }

    /// What starts at `at`: a piece, or text in which no piece starts; and its end.
    /// The automaton reports an end one character late, which gives it its lookahead.
    fn piece_at(&self, stage: usize, text: &[u8], at: usize) -> (u16, usize) {
        let automaton = &self.tables.stages[stage];
        let classes = self.tables.field(super::Field::Classes) as usize;
        let mut state = automaton.start;
        let mut found = None;
        let mut next = at;
        let mut first_len = 0;
        loop {
            let (class, len) = if next < text.len() {
                self.class(text, next)
            } else {
                (classes, 0)
            };
            if next == at {
                first_len = len;
            }
            let entry = automaton.next(classes + 1, state, class);
            state = entry & transition::STATE;
            let kind = entry & (transition::PIECE | transition::SKIP);
            if kind != 0 && next > at {
                found = Some((kind, next));
            }
            // State 0 is dead; the end of text leads nowhere.
            if state == 0 || len == 0 {
                return found.unwrap_or((transition::SKIP, at + first_len));
            }
            next += len;
        }
    }

    fn class(&self, text: &[u8], at: usize) -> (usize, usize) {
        let (point, len) = character(text, at);
        let block = usize::from(u16::from_le_bytes(
            self.tables.class_blocks[point as usize / BLOCK],
        ));
        let class = self.tables.class_leaves[block * BLOCK + point as usize % BLOCK];
        (usize::from(class), len)
    }
}

/// The places of `range` with three, six, nine, ... characters of it to its end, ascending.
fn threes(text: &[u8], range: Range<usize>) -> impl Iterator<Item = usize> {
    let characters = |range: Range<usize>| {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let this = at;
            (this < range.end).then(|| {
                at += character(text, this).1;
                this
            })
        })
    };
    let count = characters(range.clone()).count();
    characters(range)
        .enumerate()
        .filter(move |(i, _)| (count - i).is_multiple_of(3))
        .map(|(_, place)| place)
}

/// Falcon's last stages look at the characters of GPT-2's alphabet that spell the bytes:
/// those of ten digits and six other bytes are numbers. Runs of numbers are apart from
/// what is around them, and three digits in such a run are a piece.
fn split_number_bytes(text: &[u8], start: usize, sink: &mut dyn FnMut(Range<usize>)) {
    let is_number =
        |byte: u8| byte.is_ascii_digit() || matches!(byte, 0xb2 | 0xb3 | 0xb9 | 0xbc | 0xbd | 0xbe);
    let mut give = |range: Range<usize>| {
        if !range.is_empty() {
            sink(range);
        }
    };
    let mut at = start;
    while at < text.len() {
        let numbers = is_number(text[at]);
        let run = text[at..].iter().take_while(|&&b| is_number(b) == numbers);
        let end = at + run.count();
        let mut gap = at;
        while numbers && at + 3 <= end {
            if text[at..at + 3].iter().all(u8::is_ascii_digit) {
                give(gap..at);
                give(at..at + 3);
                (gap, at) = (at + 3, at + 3);
            } else {
                at += 1;
            }
        }
        give(gap..end);
        at = end;
    }
}

/// Start of the white space character that ends at `end`, not before `start`.
fn previous_white_space(text: &[u8], start: usize, end: usize) -> Option<usize> {
    let first = (start..end).rev().find(|&i| text[i] & 0xc0 != 0x80)?;
    let (point, len) = character(text, first);
    (first + len == end && is_white_space(point)).then_some(first)
}
