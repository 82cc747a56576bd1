//! The one error type of the small grammars.

use std::fmt;
use std::ops::Range;

use pest::RuleType;
use pest::error::{Error, ErrorVariant, InputLocation};

/// What is wrong with a text, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Bytes of the text that was parsed; empty at the place where something is missing.
    pub span: Range<usize>,
    pub message: String,
}

impl SyntaxError {
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>) -> SyntaxError {
        SyntaxError {
            span,
            message: message.into(),
        }
    }

    /// From what pest says, with `name` giving what a rule is called in messages. Rules without a
    /// name are left out.
    pub(crate) fn from_pest<R: RuleType>(
        error: Error<R>,
        name: impl Fn(&R) -> Option<&'static str>,
    ) -> SyntaxError {
        let span = match error.location {
            InputLocation::Pos(at) => at..at,
            InputLocation::Span((start, end)) => start..end,
        };
        let message = match error.variant {
            ErrorVariant::CustomError { message } => message,
            ErrorVariant::ParsingError { positives, .. } => {
                let mut names: Vec<&str> = positives.iter().filter_map(name).collect();
                names.sort_unstable();
                names.dedup();
                match names.split_last() {
                    None => "this was not expected here".to_owned(),
                    Some((last, [])) => format!("expected {last}"),
                    Some((last, rest)) => format!("expected {} or {last}", rest.join(", ")),
                }
            }
        };
        SyntaxError { span, message }
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SyntaxError {}
