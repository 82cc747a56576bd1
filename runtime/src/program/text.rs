//! Reads a text of any length through a fixed buffer and cuts it into windows.
//!
//! A window starts at a byte and ends before the token that would be one too
//! many, at a character's border; what the buffer cannot hold ends it sooner.
//! Both depend on the text and the window alone, so windows are the same
//! however the text arrives.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use omex_plan::session::{WHOLE, text_bytes};
use omex_plan::task::Window;

use super::inputs::Source;
use crate::error::RunError;
use crate::os::file::open_regular;
use crate::tokenizer::{Scratch, SpecialText, Tokenizer};

enum Stream<'a> {
    File(File),
    StandardInput(io::Stdin),
    /// What is left of it.
    Bytes(&'a [u8]),
}

impl Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::File(file) => file.read(buffer),
            Stream::StandardInput(stdin) => stdin.lock().read(buffer),
            Stream::Bytes(text) => text.read(buffer),
        }
    }
}

/// A text that is being read.
pub(super) struct Text<'a> {
    stream: Stream<'a>,
    path: PathBuf,
    window: Window,
    /// Offset of the buffer's first byte in the text.
    start: u64,
    /// As long as the window's texts may be.
    buffer: &'a mut [u8],
    /// Bytes of the buffer that are read.
    len: usize,
    /// Those of them that are known to be text.
    valid: usize,
    at_end: bool,
    finished: bool,
    hasher: blake3::Hasher,
}

/// Where a window ends, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) bytes: usize,
    /// Where the next window starts.
    next: usize,
    pub(super) tokens: u32,
    /// It reaches the end of the text.
    pub(super) is_last: bool,
    /// It is the whole text.
    pub(super) is_whole: bool,
}

impl<'a> Text<'a> {
    /// Opens a text. `buffer` is reused from text to text, and has
    /// [`text_bytes`] of the window.
    ///
    /// `None`: what a folder led to, and is no file, empty, or not text.
    pub(super) fn open(
        source: Source<'a>,
        window: Window,
        context: u32,
        buffer: &'a mut [u8],
    ) -> Result<Option<Text<'a>>, RunError> {
        let (stream, path) = match source {
            Source::File(path) | Source::Found(path) => {
                let (file, bytes) = open_regular(path).map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidInput => RunError::Input {
                        path: path.to_owned(),
                        byte: None,
                        what: error.to_string(),
                    },
                    _ => RunError::io("open the input", path)(error),
                })?;
                // Whatever is wrong with a file is said before anything is
                // generated from its start.
                match (check_file(&file, path), source) {
                    (Ok(()), Source::Found(_)) if bytes == 0 => return Ok(None),
                    (Ok(()), _) => {}
                    (Err(RunError::Input { .. }), Source::Found(_)) => return Ok(None),
                    (Err(e), _) => return Err(e),
                }
                (Stream::File(file), path.to_owned())
            }
            Source::Other(_) => return Ok(None),
            Source::StandardInput => {
                let stream = Stream::StandardInput(io::stdin());
                (stream, PathBuf::from("standard input"))
            }
            Source::Text(text) => {
                let stream = Stream::Bytes(text.as_bytes());
                (stream, PathBuf::from("the prompt"))
            }
        };
        let buffer = &mut buffer[..text_bytes(window, context) as usize];
        Ok(Some(Text {
            stream,
            path,
            window,
            start: 0,
            buffer,
            len: 0,
            valid: 0,
            at_end: false,
            finished: false,
            hasher: blake3::Hasher::new(),
        }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The task wants the text in one window.
    pub(super) fn is_whole_wanted(&self) -> bool {
        self.window.size == WHOLE
    }

    /// Digest of what was read.
    pub(super) fn digest(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }

    /// Reads until the buffer is full or the text ends; false when no window
    /// is left. An empty text has one window.
    pub(super) fn fill(&mut self) -> Result<bool, RunError> {
        if self.finished {
            return Ok(false);
        }
        while !self.at_end && self.len < self.buffer.len() {
            match self.stream.read(&mut self.buffer[self.len..]) {
                Ok(0) => self.at_end = true,
                Ok(size) => {
                    self.hasher.update(&self.buffer[self.len..][..size]);
                    self.len += size;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                    if let Some(exit_code) = crate::os::signal::stop_requested() {
                        return Err(RunError::Stopped { exit_code });
                    }
                }
                Err(e) => return Err(RunError::io("read the input", &self.path)(e)),
            }
        }
        let offset = self.start + self.valid as u64;
        let fresh = &self.buffer[self.valid..self.len];
        self.valid += check_text(fresh, self.at_end, offset, &self.path)?;
        Ok(true)
    }

    /// The bytes from the window's start on, as far as they are read.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.valid]
    }

    /// Cuts a window of at most `tokens_max` tokens, and no more than the
    /// task's windows have.
    pub(super) fn cut(
        &self,
        tokenizer: &Tokenizer<'_>,
        mut scratch: Scratch<'_>,
        tokens_max: u32,
    ) -> Cut {
        let bytes = self.bytes();
        let size = self.window.size.min(tokens_max).max(1);
        let stride = self.window.stride.min(size);
        let (mut tokens, mut end, mut next, mut last) = (0u32, None, None, 0);
        tokenizer.encode_spans(bytes, SpecialText::Literal, &mut scratch, &mut |_, span| {
            if tokens == stride {
                next = Some(span.start);
            }
            if tokens == size {
                end = Some(span.start);
            }
            tokens = tokens.saturating_add(1);
            last = span.start;
        });
        let all = bytes.len();
        let complete = self.at_end && end.is_none();
        // Tokens at the buffer's edge may continue behind it.
        let end = match (end, complete) {
            (Some(end), _) => border(bytes, end),
            (None, true) => all,
            (None, false) => border(bytes, last),
        };
        let is_last = self.at_end && end == all;
        Cut {
            bytes: end,
            next: match next {
                Some(next) if !is_last => border(bytes, next).min(end),
                Some(_) | None => end,
            },
            tokens: tokens.min(size),
            is_last,
            is_whole: is_last && self.start == 0,
        }
    }

    /// Goes on to the next window.
    pub(super) fn advance(&mut self, cut: Cut) {
        if cut.is_last {
            self.finished = true;
            return;
        }
        self.buffer.copy_within(cut.next..self.len, 0);
        self.len -= cut.next;
        self.valid -= cut.next;
        self.start += cut.next as u64;
    }
}

/// The last character border at or before `at` that is behind the first
/// character, so that every window makes progress.
fn border(bytes: &[u8], at: usize) -> usize {
    let starts = |&at: &usize| at == bytes.len() || bytes[at] & 0xc0 != 0x80;
    let before = (1..=at).rev().find(starts);
    before
        .or_else(|| (at + 1..=bytes.len()).find(starts))
        .unwrap_or(bytes.len())
}

/// Length of the checked part of `bytes`: all but an incomplete character at
/// the end.
fn check_text(bytes: &[u8], at_end: bool, offset: u64, path: &Path) -> Result<usize, RunError> {
    let not_text = |at: usize, what: &str| RunError::Input {
        path: path.to_owned(),
        byte: Some(offset + at as u64),
        what: format!("not text: {what}"),
    };
    let valid = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(e) if e.error_len().is_none() && !at_end => e.valid_up_to(),
        Err(e) => return Err(not_text(e.valid_up_to(), "the bytes are not UTF-8")),
    };
    match bytes[..valid].iter().position(|&byte| byte == 0) {
        Some(at) => Err(not_text(at, "a zero byte")),
        None => Ok(valid),
    }
}

/// Checks a whole file and goes back to its start.
fn check_file(mut file: &File, path: &Path) -> Result<(), RunError> {
    use std::io::Seek;
    let failed = || RunError::io("read the input", path);
    let mut buffer = [0; 16 << 10];
    let (mut held, mut offset) = (0, 0);
    loop {
        let size = match file.read(&mut buffer[held..]) {
            Ok(size) => size,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed()(e)),
        };
        let len = held + size;
        let valid = check_text(&buffer[..len], size == 0, offset, path)?;
        if size == 0 {
            break;
        }
        buffer.copy_within(valid..len, 0);
        held = len - valid;
        offset += valid as u64;
    }
    file.rewind().map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_are_between_characters_and_make_progress() {
        let bytes = "aé漢".as_bytes();
        let borders: Vec<_> = (0..=bytes.len()).map(|at| border(bytes, at)).collect();
        assert_eq!(borders, [1, 1, 1, 3, 3, 3, 6]);
        assert_eq!(border("漢漢".as_bytes(), 2), 3);
        assert_eq!(border(b"", 0), 0);
    }

    #[test]
    fn incomplete_characters_wait_and_wrong_ones_are_errors() {
        let path = Path::new("x");
        let check = |bytes: &[u8], at_end| check_text(bytes, at_end, 100, path).ok();
        assert_eq!(check("aé".as_bytes(), true), Some(3));
        assert_eq!(check(b"a\xc3", false), Some(1));
        assert_eq!(check(b"a\xc3", true), None);
        assert_eq!(check(b"a\xff", false), None);
        assert_eq!(check(b"a\0", false), None);
        let error = check_text(b"ab\xff", false, 100, path).unwrap_err();
        assert_eq!(
            error.to_string(),
            "x: byte 102: not text: the bytes are not UTF-8"
        );
        assert_eq!(error.exit_code(), 3);
    }
}
