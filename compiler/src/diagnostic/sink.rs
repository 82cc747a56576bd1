//! Collects findings, and a bounded number of them.

use super::{Diagnostic, Severity};

/// What a hostile input may print. The rest is counted.
const DIAGNOSTICS_MAX: usize = 50;

/// The findings of one check, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Sink {
    kept: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
}

impl Sink {
    pub fn new() -> Sink {
        Sink::default()
    }

    /// Keeps the finding while there are few: errors even when warnings have filled the list.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        let seen = match diagnostic.severity() {
            Severity::Error => &mut self.errors,
            Severity::Warning | Severity::Note => &mut self.warnings,
        };
        *seen += 1;
        if *seen <= DIAGNOSTICS_MAX {
            self.kept.push(diagnostic);
        }
    }

    /// As [`push`](Self::push), without making a finding that would not be kept.
    pub fn push_with(&mut self, severity: Severity, diagnostic: impl FnOnce() -> Diagnostic) {
        let seen = match severity {
            Severity::Error => &mut self.errors,
            Severity::Warning | Severity::Note => &mut self.warnings,
        };
        if *seen < DIAGNOSTICS_MAX {
            self.push(diagnostic());
        } else {
            *seen += 1;
        }
    }

    /// How many errors there were, kept or not.
    pub fn errors(&self) -> usize {
        self.errors
    }

    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// The findings kept; the last says how many were not.
    pub fn into_vec(mut self) -> Vec<Diagnostic> {
        let left_out = self.errors + self.warnings - self.kept.len();
        if left_out > 0
            && let Some(last) = self.kept.pop()
        {
            self.kept
                .push(last.note(format!("and {left_out} more like these")));
        }
        self.kept
    }
}
