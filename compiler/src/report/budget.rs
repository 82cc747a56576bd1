//! The refusal of a plan that does not fit its budget: what it needs, which
//! buffers alone are too much, and what would fit.

use omex_kernels::spec::{KvFormat, ring_bytes};
use omex_kernels::{KernelSpec, WeightFormat};
use omex_plan::memory::MemoryKind;
use omex_plan::packed::{PackedLayout, Tensor};
use omex_plan::session::SessionBytes;
use omex_plan::{BufferKind, Plan, WeightSource};

use super::{kind_name, mib, moment_name};
use crate::choices::{self, span};
use crate::container::{RamLimit, Task};
use crate::diagnostic::{Code, Diagnostic};
use crate::pipeline::{Options, WeightsFrom};

/// A plan at its smallest, and the limit that it exceeds.
#[derive(Clone, Copy)]
pub struct Overrun<'a> {
    pub task: &'a Task,
    pub plan: &'a Plan,
    pub limit: RamLimit,
    pub options: &'a Options,
    /// The plan that these options make, where it fits.
    pub planned: &'a dyn Fn(&Options) -> Option<Plan>,
}

/// Changes that are proposed at most, beside a larger budget.
const CHANGES_MAX: usize = 3;

/// Bits per weight of the formats that models come in, descending.
const QUANTIZATIONS: [(&str, WeightFormat); 8] = [
    ("Q8_0", WeightFormat::Q8_0),
    ("Q6_K", WeightFormat::Q6K),
    ("Q5_K", WeightFormat::Q5K),
    ("Q5_0", WeightFormat::Q5_0),
    ("Q4_K", WeightFormat::Q4K),
    ("Q4_0", WeightFormat::Q4_0),
    ("Q3_K", WeightFormat::Q3K),
    ("Q2_K", WeightFormat::Q2K),
];

/// Plans that are made at most to find a context that fits.
const CONTEXTS_TRIED_MAX: u32 = 8;
/// Contexts are proposed in multiples of this.
const CONTEXT_MULTIPLE: u64 = 16;

/// Something that people can change, and what the task takes then.
struct Change {
    what: String,
    takes: String,
}

impl Change {
    /// What a plan takes that was made.
    fn to(plan: &Plan, what: String) -> Change {
        Change {
            what,
            takes: mib(plan.memory.needed_bytes()),
        }
    }
}

pub fn over_budget(overrun: &Overrun<'_>) -> Diagnostic {
    let Overrun {
        task, plan, limit, ..
    } = *overrun;
    let needed = plan.memory.needed_bytes();
    let mut diagnostic = Diagnostic::error(
        Code::BudgetExceeded,
        format!(
            "the task needs {} and {} allows {}",
            mib(needed),
            limit.origin.name(),
            mib(limit.bytes)
        ),
    );
    if let Some(span) = span(&limit) {
        diagnostic = diagnostic.at(&task.source, span, "");
    }
    for item in &plan.memory.items {
        diagnostic = diagnostic.note(format!("{:>12}  {}", mib(item.bytes), item.kind.name()));
    }
    diagnostic = diagnostic.note(too_much(plan, limit.bytes));
    for change in changes(overrun) {
        diagnostic = diagnostic.help(format!("{} would take {}", change.what, change.takes));
    }
    diagnostic.help(format!(
        "or allow {} or more: --ram {}",
        mib(needed),
        mib(needed).replace(' ', "")
    ))
}

/// Changes with which the task fits, those first that change the least: how it
/// is computed, then how much text it sees, then its numbers. Two together
/// where none suffices alone.
fn changes(overrun: &Overrun<'_>) -> Vec<Change> {
    let Overrun {
        plan,
        options,
        planned,
        ..
    } = *overrun;
    let mut changes = Vec::new();
    if options.columns_max.is_some() {
        let shorter = Options {
            columns_max: None,
            ..options.clone()
        };
        changes.extend(planned(&shorter).map(|plan| {
            let chunk = plan.columns_max;
            Change::to(
                &plan,
                format!("a prefill chunk of {chunk} tokens (no --ubatch-size)"),
            )
        }));
    }
    if options.sequences_max.is_some_and(|sequences| sequences > 1) {
        let fewer = Options {
            sequences_max: None,
            ..options.clone()
        };
        changes.extend(planned(&fewer).map(|plan| {
            let windows = plan.sequences_max;
            Change::to(
                &plan,
                format!("{windows} windows at a time (no --parallel)"),
            )
        }));
    }
    if options.weights != Some(WeightsFrom::Paged) {
        let paged = Options {
            weights: Some(WeightsFrom::Paged),
            ..options.clone()
        };
        let what = "paging the weights (--weights paged)".to_owned();
        changes.extend(planned(&paged).map(|plan| Change::to(&plan, what)));
    }
    changes.extend(shorter_context(overrun, options, ""));
    let int8 = (options.kv != KvFormat::Q8).then(|| Options {
        kv: KvFormat::Q8,
        ..options.clone()
    });
    const INT8: &str = "int8 keys and values, which changes results (--kv q8)";
    if let Some(int8) = &int8 {
        changes.extend(planned(int8).map(|plan| Change::to(&plan, INT8.to_owned())));
    }
    // Weights that are paged are in nobody's way.
    let is_read = matches!(plan.weights.source, WeightSource::Read { .. });
    if is_read {
        changes.extend(coarser_weights(overrun));
    }
    if let (true, Some(int8)) = (changes.is_empty(), &int8) {
        changes.extend(shorter_context(overrun, int8, &format!("{INT8}, with ")));
    }
    if changes.is_empty() && is_read {
        changes.extend(coarser_and_shorter(overrun));
    }
    changes.truncate(CHANGES_MAX);
    changes
}

/// The smallest set of buffers and items that exceeds the limit together.
fn too_much(plan: &Plan, limit_bytes: u64) -> String {
    let fixed_bytes = plan.memory.needed_bytes() - plan.arena_bytes;
    let Some(room) = limit_bytes.checked_sub(fixed_bytes) else {
        return outside(plan, limit_bytes);
    };
    // The largest buffers of one phase exceed the room with the fewest.
    let of_phase = |phase: u32| {
        let alive = (plan.buffers.iter()).filter(|b| (b.first_phase..b.end_phase).contains(&phase));
        let mut alive: Vec<_> = alive.collect();
        alive.sort_by_key(|b| (std::cmp::Reverse(b.bytes), b.offset));
        let mut bytes = 0;
        let enough = alive.iter().position(|b| {
            bytes += b.bytes;
            bytes > room
        })?;
        alive.truncate(enough + 1);
        Some((phase, alive))
    };
    let phases = (0..plan.moments()).filter_map(of_phase);
    let Some((phase, least)) = phases.min_by_key(|(phase, set)| (set.len(), *phase)) else {
        return format!(
            "no phase alone exceeds the {} that are left for the arena; their places together do",
            mib(room)
        );
    };
    let mut kinds: Vec<BufferKind> = least.iter().map(|b| b.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let parts = kinds.into_iter().map(|kind| {
        let of_kind = least.iter().filter(|b| b.kind == kind);
        let (count, bytes) = of_kind.fold((0, 0), |(n, sum), b| (n + 1, sum + b.bytes));
        format!("{count} x {} ({})", kind_name(kind), mib(bytes))
    });
    format!(
        "{} of {} buffers, alive at once ({}), are more than the {} left for them: {}",
        least.len(),
        plan.buffers.len(),
        moment_name(plan, phase),
        mib(room),
        parts.collect::<Vec<_>>().join(", ")
    )
}

/// The fewest items outside the arena that exceed the limit together.
fn outside(plan: &Plan, limit_bytes: u64) -> String {
    let arena = |kind: MemoryKind| match kind {
        MemoryKind::Activations
        | MemoryKind::KvCache
        | MemoryKind::ResidentPages
        | MemoryKind::PageSlots => true,
        MemoryKind::MappedPages
        | MemoryKind::Tokenizer
        | MemoryKind::Code
        | MemoryKind::Session
        | MemoryKind::PlanMetadata
        | MemoryKind::Stacks
        | MemoryKind::Runtime
        | MemoryKind::Generator
        | MemoryKind::EncoderTables
        | MemoryKind::Kernel => false,
    };
    let mut items: Vec<_> = (plan.memory.items.iter())
        .filter(|item| !arena(item.kind))
        .collect();
    items.sort_by_key(|item| (std::cmp::Reverse(item.bytes), item.kind));
    let mut bytes = 0;
    let enough = items.iter().position(|item| {
        bytes += item.bytes;
        bytes > limit_bytes
    });
    items.truncate(enough.map_or(items.len(), |last| last + 1));
    let names = items.iter().map(|item| item.kind.name());
    format!(
        "what lies outside the arena is more than {} alone: {} take {}",
        mib(limit_bytes),
        names.collect::<Vec<_>>().join(", "),
        mib(bytes)
    )
}

/// Bytes that grow with the context, per position: the KV rings of its length,
/// and the text's buffers.
fn position_bytes(plan: &Plan, format: KvFormat) -> u64 {
    let whole = choices::ring(plan.model.context, None, plan.columns_max);
    let of_step = |step: &omex_plan::Step| match *plan.kernels[step.kernel.index()].spec() {
        KernelSpec::KvStore {
            kv_heads,
            head_dim,
            ring,
            ..
        } if ring == whole => 2 * ring_bytes(format, kv_heads, head_dim, ring),
        _ => 0,
    };
    let kv: u64 = plan.steps.iter().map(of_step).sum();
    let session = SessionBytes::of(plan);
    let kv = kv * u64::from(plan.sequences_max);
    (kv + session.text + session.history).div_ceil(u64::from(whole))
}

/// The longest context that fits with these options, as far as a few plans
/// tell: what it takes is nearly linear.
fn shorter_context(overrun: &Overrun<'_>, options: &Options, with: &str) -> Option<Change> {
    let plan = overrun.plan;
    let context = u64::from(plan.model.context);
    let now = context * position_bytes(plan, overrun.options.kv);
    let rest = plan.memory.needed_bytes().checked_sub(now)?;
    let room = overrun.limit.bytes.checked_sub(rest)?;
    let least = choices::context_min(&plan.program).max(CONTEXT_MULTIPLE);
    let mut fits = (room / position_bytes(plan, options.kv)).min(context - 1);
    for tried in 0..CONTEXTS_TRIED_MAX {
        fits = fits / CONTEXT_MULTIPLE * CONTEXT_MULTIPLE;
        if fits < least {
            return None;
        }
        let shorter = Options {
            context: Some(fits as u32),
            ..options.clone()
        };
        if let Some(plan) = (overrun.planned)(&shorter) {
            let what = format!("{with}a context of {fits} tokens (-c {fits})");
            return Some(Change::to(&plan, what));
        }
        fits = fits.checked_sub(CONTEXT_MULTIPLE << tried)?;
    }
    None
}

/// What the task needs with the matrices in another format, at most theirs.
fn with_weights_in(plan: &Plan, format: WeightFormat) -> u64 {
    let bytes_of = |tensor: &Tensor| match (tensor.layout, tensor.bytes()) {
        (PackedLayout::Rows | PackedLayout::Panels, Some(bytes)) => {
            // Per 256 weights, so that every format's blocks are whole.
            let weights = u64::from(tensor.rows.next_multiple_of(16)) * u64::from(tensor.k);
            bytes.min((weights * format.row_bytes(256)).div_ceil(256))
        }
        (PackedLayout::Vector, Some(bytes)) => bytes,
        (_, None) => 0,
    };
    let tensors = || plan.weights.tensors.iter();
    let now: u64 = tensors().filter_map(Tensor::bytes).sum();
    let then: u64 = tensors().map(bytes_of).sum();
    plan.memory.needed_bytes() - (now - then)
}

/// The finest quantization with which the task would fit.
fn coarser_weights(overrun: &Overrun<'_>) -> Option<Change> {
    let fitting = QUANTIZATIONS.iter().find_map(|(name, format)| {
        let needed = with_weights_in(overrun.plan, *format);
        (needed <= overrun.limit.bytes).then_some((name, needed))
    });
    fitting.map(|(name, needed_bytes)| Change {
        what: format!("the model in {name}"),
        takes: format!("about {}", mib(needed_bytes)),
    })
}

/// The finest quantization that fits with a shorter context, where neither
/// fits alone.
fn coarser_and_shorter(overrun: &Overrun<'_>) -> Option<Change> {
    let plan = overrun.plan;
    let position = position_bytes(plan, overrun.options.kv);
    let least = choices::context_min(&plan.program).max(CONTEXT_MULTIPLE);
    QUANTIZATIONS.iter().find_map(|(name, format)| {
        let needed = with_weights_in(plan, *format);
        let excess = needed.checked_sub(overrun.limit.bytes)?.div_ceil(position);
        let context = u64::from(plan.model.context).checked_sub(excess)?;
        let context = context / CONTEXT_MULTIPLE * CONTEXT_MULTIPLE;
        let needed = needed - (u64::from(plan.model.context) - context) * position;
        (context >= least).then(|| Change {
            what: format!("the model in {name} with a context of {context} tokens (-c {context})"),
            takes: format!("about {}", mib(needed)),
        })
    })
}
