//! The RAM budget: the smallest of all limits.

use super::task::{Limits, RamLimit, RamOrigin, Task};
use crate::diagnostic::{Code, Diagnostic, Severity};

impl RamOrigin {
    /// How the user wrote it.
    pub fn name(self) -> &'static str {
        match self {
            RamOrigin::ContextMemoryLimit(_) => "`context.memory_limit_mb`",
            RamOrigin::MemoryProfile(_) => "`memory_profile.max_ram_mb`",
            RamOrigin::Flag => "--ram",
            RamOrigin::Target => "the target",
        }
    }

    fn span(self) -> Option<crate::diagnostic::Span> {
        match self {
            RamOrigin::ContextMemoryLimit(span) | RamOrigin::MemoryProfile(span) => Some(span),
            RamOrigin::Flag | RamOrigin::Target => None,
        }
    }
}

/// The smallest limit; of equal ones the first.
fn smallest(limits: &[RamLimit]) -> Option<RamLimit> {
    limits.iter().copied().min_by_key(|limit| limit.bytes)
}

fn megabytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

impl Limits {
    /// The smallest limit that the container states.
    pub fn of_container(&self) -> Option<RamLimit> {
        smallest(&self.ram)
    }
}

impl Task {
    /// The RAM budget of the whole process: the minimum of the container's limits, of `--ram` and
    /// of what the target gives. None: nothing limits it. A finding names the winner when the
    /// limits that people stated differ: a warning, or a note when only the target's is smaller.
    pub fn ram_budget(
        &self,
        flag_bytes: Option<u64>,
        target_bytes: Option<u64>,
    ) -> (Option<RamLimit>, Option<Diagnostic>) {
        let mut limits = self.limits.ram.clone();
        limits.extend(flag_bytes.map(|bytes| RamLimit {
            bytes,
            origin: RamOrigin::Flag,
        }));
        limits.extend(target_bytes.map(|bytes| RamLimit {
            bytes,
            origin: RamOrigin::Target,
        }));
        let winner = smallest(&limits);
        (
            winner,
            winner.and_then(|winner| self.differing_limits(&limits, winner)),
        )
    }

    /// As [`ram_budget`](Self::ram_budget), for the container alone.
    pub(super) fn container_limits_warning(&self) -> Option<Diagnostic> {
        self.differing_limits(&self.limits.ram, smallest(&self.limits.ram)?)
    }

    fn differing_limits(&self, limits: &[RamLimit], winner: RamLimit) -> Option<Diagnostic> {
        let beaten: Vec<&RamLimit> = limits
            .iter()
            .filter(|limit| limit.bytes != winner.bytes)
            // A target that gives more than was asked for contradicts nobody.
            .filter(|limit| limit.origin != RamOrigin::Target)
            .collect();
        if beaten.is_empty() {
            return None;
        }
        let message = format!(
            "the RAM limits differ: {} wins with {}",
            winner.origin.name(),
            megabytes(winner.bytes)
        );
        let severity = if winner.origin == RamOrigin::Target {
            Severity::Note
        } else {
            Severity::Warning
        };
        let mut diagnostic = match severity {
            Severity::Note => Diagnostic::note_only(Code::LimitsDiffer, message),
            Severity::Warning | Severity::Error => Diagnostic::warning(Code::LimitsDiffer, message),
        };
        if let Some(span) = winner.origin.span() {
            diagnostic = diagnostic.at(&self.source, span, "the smallest wins");
        }
        for limit in beaten {
            let text = format!("{} says {}", limit.origin.name(), megabytes(limit.bytes));
            diagnostic = match limit.origin.span() {
                Some(span) => diagnostic.label(&self.source, span, text),
                None => diagnostic.note(text),
            };
        }
        Some(diagnostic)
    }
}
