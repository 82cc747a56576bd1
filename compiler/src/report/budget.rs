//! The refusal of a plan that does not fit its budget.

use omex_plan::memory::MemoryKind;
use omex_plan::{Plan, WeightSource};

use super::mib;
use crate::choices::span;
use crate::container::{RamLimit, Task};
use crate::diagnostic::{Code, Diagnostic};

/// A plan at its smallest, and the limit that it exceeds.
#[derive(Clone, Copy, Debug)]
pub struct Overrun<'a> {
    pub task: &'a Task,
    pub plan: &'a Plan,
    pub limit: RamLimit,
}

pub fn over_budget(overrun: &Overrun<'_>) -> Diagnostic {
    let memory = &overrun.plan.memory;
    let limit = &overrun.limit;
    let needed = memory.rss_peak_bytes().max(memory.charge_peak_bytes());
    let mut diagnostic = Diagnostic::error(
        Code::BudgetExceeded,
        format!(
            "the task needs {} and {} allows {}",
            mib(needed),
            limit.origin.name(),
            mib(limit.bytes)
        ),
    );
    if let Some(span) = span(limit) {
        diagnostic = diagnostic.at(&overrun.task.source, span, "");
    }
    for item in &memory.items {
        diagnostic = diagnostic.note(format!("{:>12}  {}", mib(item.bytes), item.kind.name()));
    }
    diagnostic = diagnostic.help_if(context_that_fits(overrun, needed));
    if let WeightSource::Read { .. } = overrun.plan.weights.source {
        diagnostic = diagnostic.help(format!(
            "the weights take {}: a model of coarser quantization takes less",
            mib(overrun.plan.weights.pages.iter().map(|p| p.bytes).sum())
        ));
    }
    diagnostic.help(format!(
        "allow {} or more: --ram {}",
        mib(needed),
        mib(needed).replace(' ', "")
    ))
}

/// The longest context with which the rest would fit: the KV rings grow with
/// it, everything else stays.
fn context_that_fits(overrun: &Overrun<'_>, needed: u64) -> Option<String> {
    let items = &overrun.plan.memory.items;
    let kv = items.iter().find(|i| i.kind == MemoryKind::KvCache)?.bytes;
    let ring = u64::from(overrun.plan.model.context.next_multiple_of(16));
    let rest = needed - kv;
    let fits = overrun.limit.bytes.checked_sub(rest)? / (kv / ring).max(1);
    let fits = fits / 16 * 16;
    (fits >= 16).then(|| format!("a context of {fits} tokens would fit: -c {fits}"))
}
