//! Texts that diagnostics point into, and spans of them.

use std::sync::OnceLock;

/// A half-open byte range of a [`Source`]. Sources are below 4 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub const fn new(start: u32, end: u32) -> Span {
        Span { start, end }
    }

    /// From offsets of a text that is known to be below 4 GiB.
    pub fn from_range(range: std::ops::Range<usize>) -> Span {
        let offset = |n: usize| u32::try_from(n).expect("sources are below 4 GiB");
        Span::new(offset(range.start), offset(range.end))
    }

    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A value and where it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    pub value: T,
    pub span: Span,
}

impl<T> Spanned<T> {
    pub fn new(value: T, span: Span) -> Spanned<T> {
        Spanned { value, span }
    }

    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned {
            value: f(self.value),
            span: self.span,
        }
    }

    pub fn as_ref(&self) -> Spanned<&T> {
        Spanned {
            value: &self.value,
            span: self.span,
        }
    }
}

/// A line and a column, both from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// A named text, with an index of its lines made on first use.
#[derive(Debug)]
pub struct Source {
    name: String,
    text: String,
    line_starts: OnceLock<Vec<u32>>,
}

impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        self.name == other.name && self.text == other.text
    }
}

impl Eq for Source {}

impl Source {
    /// `name` is shown before line and column: a path, or `<stdin>`. The text is cut at 4 GiB.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Source {
        let mut text = text.into();
        if u32::try_from(text.len()).is_err() {
            text.truncate(text.floor_char_boundary(u32::MAX as usize));
        }
        Source {
            name: name.into(),
            text,
            line_starts: OnceLock::new(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    fn line_starts(&self) -> &[u32] {
        self.line_starts.get_or_init(|| {
            let newlines = self
                .text
                .bytes()
                .zip(1u32..)
                .filter(|&(byte, _)| byte == b'\n')
                .map(|(_, next)| next);
            std::iter::once(0).chain(newlines).collect()
        })
    }

    /// The byte offset at which a line (from 0) starts, or the end of the text.
    pub(super) fn line_start(&self, line: usize) -> usize {
        self.line_starts()
            .get(line)
            .map_or(self.text.len(), |&start| start as usize)
    }

    /// The byte offset at which a line, counted from 1, starts.
    pub(crate) fn line_start_of(&self, line: usize) -> usize {
        self.line_start(line.saturating_sub(1))
    }

    /// The line (from 0) that holds a byte offset.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.line_starts()
            .partition_point(|&start| start as usize <= offset)
            - 1
    }

    pub fn position(&self, offset: u32) -> Position {
        let offset = self
            .text
            .floor_char_boundary((offset as usize).min(self.text.len()));
        let line = self.line_of(offset);
        let column = self.text[self.line_start(line)..offset].chars().count();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).saturating_add(1);
        Position {
            line: count(line),
            column: count(column),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_and_stay_in_range() {
        let source = Source::new("a", "é\nab\n");
        for (offset, line, column) in [
            (0, 1, 1),
            (1, 1, 1),
            (2, 1, 2),
            (3, 2, 1),
            (5, 2, 3),
            (6, 3, 1),
            (99, 3, 1),
        ] {
            assert_eq!(
                source.position(offset),
                Position { line, column },
                "offset {offset}"
            );
        }
    }
}
