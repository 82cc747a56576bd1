//! The error of model import: which file, where in it, what is wrong.

use std::fmt;
use std::path::{Path, PathBuf};

/// What kind of fault an [`ImportError`] reports; the message has the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operating system failed a call, or the path is no regular file.
    Io,
    /// The disk has no room for the packed model.
    NoSpace,
    /// The file is not a GGUF file, or one of a version or byte order not read here.
    Format,
    /// The file ends before something it announces.
    Truncated,
    /// A count, length or size is impossible or beyond the limits.
    Size,
    /// A metadata key is duplicated, malformed, missing or of the wrong type or value.
    Metadata,
    /// A tensor's entry is malformed, duplicated, misaligned, overlapping or outside the file.
    Tensor,
    /// The file is sound, but the model in it needs something that is not supported.
    Unsupported,
    /// The metadata and tensors of the model contradict each other.
    Model,
    /// A weight is NaN or infinite.
    Weight,
    /// A packed model is damaged or of another version.
    Integrity,
}

/// An error of model import.
///
/// Text that comes from the file is shown escaped and shortened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportError {
    pub fault: Fault,
    pub file: Option<PathBuf>,
    /// Where in the file the fault is, in bytes from its start.
    pub offset_bytes: Option<u64>,
    pub message: String,
    pub help: Option<String>,
}

impl ImportError {
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self {
            fault,
            file: None,
            offset_bytes: None,
            message: message.into(),
            help: None,
        }
    }

    /// Wraps a failed system call: `what` says what was being done.
    pub fn io(what: &str, path: &Path, error: &std::io::Error) -> Self {
        let fault = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Fault::NoSpace,
            _ => Fault::Io,
        };
        Self::new(fault, format!("cannot {what}: {error}")).in_file(path)
    }

    #[must_use]
    pub fn at(mut self, offset_bytes: u64) -> Self {
        self.offset_bytes = Some(offset_bytes);
        self
    }

    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        self.file.get_or_insert_with(|| file.to_path_buf());
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", shown(&file.to_string_lossy()))?;
        }
        if let Some(offset) = self.offset_bytes {
            write!(f, "byte {offset}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, " (help: {help})")?;
        }
        Ok(())
    }
}

impl std::error::Error for ImportError {}

/// Text from a file as it may be shown on a terminal: control characters
/// escaped, at most 80 characters.
pub fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut out: String = text
        .chars()
        .take(CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_no_terminal_escapes() {
        let error = ImportError::new(
            Fault::Tensor,
            format!("tensor '{}'", shown("\x1b[31mred\n")),
        )
        .in_file(Path::new("/tmp/\x1b]0;x"))
        .at(7);
        let text = error.to_string();
        assert_eq!(text, "/tmp/\\u{1b}]0;x: byte 7: tensor '\\u{1b}[31mred\\n'");
        assert!(shown(&"x".repeat(1000)).chars().count() <= 81);
    }
}
