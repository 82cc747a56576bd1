//! What the user did wrong, where, and what to do about it.
//!
//! A [`Diagnostic`] is the user's fault; a bug of ours panics with its context instead. Every diagnostic carries a
//! [`Code`] whose story `omexc explain` tells, and at most one primary place: a span of a text (a container, a
//! profile, a registry) or a byte offset of a binary file (a model).
//!
//! ```
//! use std::sync::Arc;
//! use omex_compiler::diagnostic::{Code, Diagnostic, RenderOptions, Source, Span};
//!
//! let source = Arc::new(Source::new("task.omex.json", "{\"max_tokens\": -1}"));
//! let error = Diagnostic::error(Code::InvalidValue, "`max_tokens` must be at least 1")
//!     .at(&source, Span::new(15, 17), "this is negative")
//!     .help("leave it out to generate up to 256 tokens");
//! println!("{}", error.render(&RenderOptions::default()));
//!
//! let error = Diagnostic::error(Code::ModelInvalid, "the magic is not `GGUF`").in_file("a.gguf", Some(0));
//! ```

mod codes;
mod quote;
mod render;
mod sink;
mod source;
mod suggest;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use codes::{Code, ExitStatus, explain};
pub use quote::{clean, quoted};
pub use render::{RenderOptions, render_json};
pub use sink::Sink;
pub use source::{Position, Source, Span, Spanned};
pub use suggest::did_you_mean;

/// How bad a diagnostic is. Only an error stops the build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Note,
    Warning,
    Error,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// A span of a source with a few words about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub source: Arc<Source>,
    pub span: Span,
    /// May be empty: then only the caret shows.
    pub text: String,
}

/// Where the fault is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Place {
    /// Nowhere in particular: a flag, or the task as a whole.
    #[default]
    Nowhere,
    Text(Label),
    /// A binary file, or a text that is not at hand.
    File {
        path: String,
        offset_bytes: Option<u64>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    code: Code,
    severity: Severity,
    message: String,
    place: Place,
    labels: Vec<Label>,
    notes: Vec<String>,
    helps: Vec<String>,
}

/// One finding about the user's input. One word wide, so that `Result<T, Diagnostic>` stays cheap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic(Box<Parts>);

impl Diagnostic {
    fn new(severity: Severity, code: Code, message: impl Into<String>) -> Diagnostic {
        Diagnostic(Box::new(Parts {
            code,
            severity,
            message: message.into(),
            place: Place::Nowhere,
            labels: Vec::new(),
            notes: Vec::new(),
            helps: Vec::new(),
        }))
    }

    /// Messages are one lower-case sentence without a full stop; quote user text with [`quoted`].
    pub fn error(code: Code, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Error, code, message)
    }

    pub fn warning(code: Code, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Warning, code, message)
    }

    pub fn note_only(code: Code, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Note, code, message)
    }

    /// Sets the primary span. `label` may be empty.
    #[must_use]
    pub fn at(mut self, source: &Arc<Source>, span: Span, label: impl Into<String>) -> Diagnostic {
        self.0.place = Place::Text(Label {
            source: source.clone(),
            span,
            text: label.into(),
        });
        self
    }

    /// Sets the primary place to a file, and to a byte of it when that is known.
    #[must_use]
    pub fn in_file(mut self, path: impl Into<String>, offset_bytes: Option<u64>) -> Diagnostic {
        self.0.place = Place::File {
            path: path.into(),
            offset_bytes,
        };
        self
    }

    /// Adds a secondary span, of the same source or of another.
    #[must_use]
    pub fn label(
        mut self,
        source: &Arc<Source>,
        span: Span,
        text: impl Into<String>,
    ) -> Diagnostic {
        self.0.labels.push(Label {
            source: source.clone(),
            span,
            text: text.into(),
        });
        self
    }

    /// Adds a fact that helps to understand the message.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Diagnostic {
        self.0.notes.push(text.into());
        self
    }

    /// Adds something that the user can do.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Diagnostic {
        self.0.helps.push(text.into());
        self
    }

    /// As [`help`](Self::help), when there is something to say.
    #[must_use]
    pub fn help_if(self, text: Option<impl Into<String>>) -> Diagnostic {
        match text {
            Some(text) => self.help(text),
            None => self,
        }
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    pub fn severity(&self) -> Severity {
        self.0.severity
    }

    pub fn is_error(&self) -> bool {
        self.0.severity == Severity::Error
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn place(&self) -> &Place {
        &self.0.place
    }

    pub fn labels(&self) -> &[Label] {
        &self.0.labels
    }

    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    pub fn helps(&self) -> &[String] {
        &self.0.helps
    }

    /// The exit status of a command that fails because of this.
    pub fn exit_status(&self) -> ExitStatus {
        self.0.code.exit_status()
    }

    /// The text for a terminal, with a caret into the source. Ends without a newline.
    pub fn render(&self, options: &RenderOptions) -> String {
        render::render(self, options)
    }
}

/// The one-line form: `error[OMX0012]: message`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}[{}]: {}",
            self.severity().as_str(),
            self.code(),
            clean(self.message())
        )
    }
}

impl std::error::Error for Diagnostic {}

/// The exit status of a command that ends with these: that of the first error, or success.
pub fn exit_status(diagnostics: &[Diagnostic]) -> ExitStatus {
    diagnostics
        .iter()
        .find(|d| d.is_error())
        .map_or(ExitStatus::Success, Diagnostic::exit_status)
}
