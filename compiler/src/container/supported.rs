//! What a valid container may ask for and this version does not build: refused by name.

use super::task::{Task, Unsupported};
use crate::diagnostic::{Code, Diagnostic, Severity, Sink, quoted};
use crate::target;

impl Task {
    /// Everything that the task asks for and the compiler cannot give. Errors are what would
    /// change the result or break a promise; warnings are hints that have no effect yet. Several
    /// models are refused where references are resolved, as two names may be one file.
    pub fn require_supported(&self) -> Vec<Diagnostic> {
        let mut sink = Sink::new();
        for found in &self.unsupported {
            sink.push(self.refusal(found));
        }
        let mut hint = |what: &str, span| {
            sink.push(self.refusal(&Unsupported {
                what: what.to_owned(),
                span,
                needed: false,
            }));
        };
        if let Some(fetch) = self.storage.allow_remote_fetch.filter(|fetch| fetch.value) {
            hint("fetching models", fetch.span);
        }
        if let Some(retry) = self.completion.retry_on_fail.filter(|retry| retry.value) {
            hint("`retry_on_fail`", retry.span);
        }
        if let Some(retries) = self.completion.max_retries {
            hint("`max_retries`", retries.span);
        }
        // Reads of pages always start when a plan is loaded, before anything is tokenized.
        if let Some(prefetch) = self.storage.model_prefetch.filter(|fetch| !fetch.value) {
            hint("switching off `model_prefetch`", prefetch.span);
        }
        if let Some(deadline) = self.completion.max_runtime_ms {
            let what = "`max_runtime_minutes`".to_owned();
            sink.push(self.refusal(&Unsupported {
                what,
                span: deadline.span,
                needed: true,
            }));
        }
        sink.into_vec()
    }

    /// The finding that no profile has the name of `device_profile`, which is an error where
    /// nothing else names a target.
    pub fn unknown_device(&self, severity: Severity) -> Option<Diagnostic> {
        let name = self.device_profile.as_ref()?;
        let text = name.value.as_str();
        if text == target::HOST || text.ends_with(".toml") || target::find(text).is_some() {
            return None;
        }
        let message = format!("there is no target {}", quoted(text));
        let finding = match severity {
            Severity::Error => Diagnostic::error(Code::InvalidValue, message),
            Severity::Warning | Severity::Note => Diagnostic::warning(Code::InvalidValue, message),
        };
        let finding = finding.at(&self.source, name.span, "");
        Some(finding.help(target::near_or_list(text)))
    }

    fn refusal(&self, found: &Unsupported) -> Diagnostic {
        if found.needed {
            let message = format!("{} is not supported yet", found.what);
            Diagnostic::error(Code::NotSupported, message).at(&self.source, found.span, "")
        } else {
            let message = format!("{} has no effect yet", found.what);
            Diagnostic::warning(Code::NotSupported, message)
                .at(&self.source, found.span, "")
                .note("the result is the same without it")
        }
    }
}
