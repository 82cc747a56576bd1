//! The error of model import: which file, where in it, what is wrong.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::diagnostic::{Code, Diagnostic, clean};

/// A fault of a model file, or a failure to read one or to write its packed
/// form. Parsers over bytes know no file name; whoever opened the file adds it.
///
/// Text that comes from the file is quoted, which escapes and shortens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportError {
    pub code: Code,
    pub file: Option<PathBuf>,
    /// Where in the file the fault is, in bytes from its start.
    pub offset_bytes: Option<u64>,
    pub message: String,
    pub help: Option<String>,
}

impl ImportError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            file: None,
            offset_bytes: None,
            message: message.into(),
            help: None,
        }
    }

    /// A failed system call; `what` says what was being done. A full disk has
    /// a code of its own, everything else has `code`.
    pub fn io(code: Code, what: &str, path: &Path, error: &std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::NoSpace,
            std::io::ErrorKind::OutOfMemory => Code::OutOfMemory,
            _ => code,
        };
        Self::new(code, format!("cannot {what}: {error}")).in_file(path)
    }

    #[must_use]
    pub fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    #[must_use]
    pub fn at(mut self, offset_bytes: u64) -> Self {
        self.offset_bytes = Some(offset_bytes);
        self
    }

    /// Names the file, unless an inner caller already has.
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
            write!(f, "{}: ", clean(&file.to_string_lossy()))?;
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

impl From<ImportError> for Diagnostic {
    fn from(error: ImportError) -> Diagnostic {
        let diagnostic = Diagnostic::error(error.code, error.message).help_if(error.help);
        match error.file {
            Some(file) => diagnostic.in_file(file.to_string_lossy(), error.offset_bytes),
            None => diagnostic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_diagnostics() {
        let error = ImportError::new(Code::ModelTensor, "tensor `t` is wrong")
            .at(7)
            .in_file(Path::new("a.gguf"))
            .in_file(Path::new("outer"))
            .help("fix it");
        assert_eq!(
            error.to_string(),
            "a.gguf: byte 7: tensor `t` is wrong (help: fix it)"
        );
        let diagnostic = Diagnostic::from(error);
        assert_eq!(diagnostic.code(), Code::ModelTensor);
        assert_eq!(
            diagnostic.to_string(),
            "error[OMX0104]: tensor `t` is wrong"
        );
        assert_eq!(diagnostic.helps(), ["fix it"]);
    }
}
