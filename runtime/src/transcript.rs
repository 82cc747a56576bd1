//! A run's text and tokens, kept in unnamed files until the run has succeeded:
//! memory does not grow with them, and a failed run prints nothing of them.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use crate::events::{Event, Sink};
use crate::json::write_escaped;
use crate::os::file::unnamed;

const BUFFER_BYTES: usize = 16 << 10;
/// What a transcript takes of memory.
pub const TRANSCRIPT_BYTES: usize = 2 * BUFFER_BYTES;

/// A sink that keeps text and tokens as they stand in JSON.
#[derive(Debug)]
pub struct Transcript {
    text: BufWriter<File>,
    token_ids: BufWriter<File>,
    is_empty: bool,
}

impl Transcript {
    /// Errors: `folder` takes no files.
    pub fn new(folder: &Path) -> io::Result<Transcript> {
        let buffered = || unnamed(folder).map(|file| BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Transcript {
            text: buffered()?,
            token_ids: buffered()?,
            is_empty: true,
        })
    }

    /// Writes one JSON object: the fields before the text, text and tokens,
    /// and the fields behind them, which are those of an object.
    pub(crate) fn write(self, before: &str, behind: &str, out: &mut dyn Write) -> io::Result<()> {
        let copy = |file: BufWriter<File>, out: &mut dyn Write| {
            let mut file = file.into_inner().map_err(|e| e.into_error())?;
            file.rewind()?;
            io::copy(&mut file, out)
        };
        write!(out, "{{{before},\"text\":\"")?;
        copy(self.text, out)?;
        write!(out, "\",\"token_ids\":[")?;
        copy(self.token_ids, out)?;
        writeln!(out, "],{}", &behind[1..])
    }
}

/// Text for a file, with the error that its format has no place for.
struct Formatted<'a> {
    out: &'a mut BufWriter<File>,
    error: io::Result<()>,
}

impl fmt::Write for Formatted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.out.write_all(text.as_bytes()).map_err(|e| {
            self.error = Err(e);
            fmt::Error
        })
    }
}

impl Sink for Transcript {
    fn text(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = Formatted {
            out: &mut self.text,
            error: Ok(()),
        };
        for chunk in bytes.utf8_chunks() {
            let lost = if chunk.invalid().is_empty() {
                ""
            } else {
                "\u{fffd}"
            };
            let written = write_escaped(&mut out, chunk.valid());
            if written
                .and_then(|()| write_escaped(&mut out, lost))
                .is_err()
            {
                return out.error;
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let Event::Token { id } = event else {
            return Ok(());
        };
        let comma = if std::mem::replace(&mut self.is_empty, false) {
            ""
        } else {
            ","
        };
        write!(self.token_ids, "{comma}{id}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_tokens_become_one_object() {
        let mut transcript = Transcript::new(&std::env::temp_dir()).unwrap();
        transcript.text("a\"é".as_bytes()).unwrap();
        transcript.text(b"\xff\n").unwrap();
        for id in [7, 0, 12] {
            transcript.event(&Event::Token { id }).unwrap();
        }
        let mut out = Vec::new();
        transcript.write("\"v\":1", "{\"b\":2}", &mut out).unwrap();
        let expected = "{\"v\":1,\"text\":\"a\\\"é\u{fffd}\\n\",\"token_ids\":[7,0,12],\"b\":2}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
