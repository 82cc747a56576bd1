//! The refusal of a plan that does not fit its budget: what it needs, which
//! buffers alone are too much, and what would fit.

use omex_kernels::spec::ring_bytes;
use omex_kernels::{KernelSpec, WeightFormat};
use omex_plan::memory::MemoryKind;
use omex_plan::packed::{PackedLayout, Tensor};
use omex_plan::{BufferKind, Plan, WeightSource};

use super::{kind_name, mib, moment_name};
use crate::choices::{self, span};
use crate::container::{RamLimit, Task};
use crate::diagnostic::{Code, Diagnostic};

/// A plan at its smallest, and the limit that it exceeds.
#[derive(Clone, Copy, Debug)]
pub struct Overrun<'a> {
    pub task: &'a Task,
    pub plan: &'a Plan,
    pub limit: RamLimit,
    /// What the task needs with its weights paged, where they are not.
    pub paged_bytes: Option<u64>,
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

/// Something that people can change, and what the task needs then.
struct Change {
    what: String,
    needed_bytes: u64,
}

pub fn over_budget(overrun: &Overrun<'_>) -> Diagnostic {
    let Overrun {
        task,
        plan,
        limit,
        paged_bytes,
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
    let context = context_within(overrun, plan.memory.needed_bytes());
    let mut changes: Vec<Change> = context.into_iter().collect();
    let paged = paged_bytes.filter(|&bytes| bytes <= limit.bytes);
    changes.extend(paged.map(|needed_bytes| Change {
        what: "paging the weights (--weights paged)".to_owned(),
        needed_bytes,
    }));
    // Weights that are paged are in nobody's way.
    if let WeightSource::Read { .. } = plan.weights.source {
        changes.extend(coarser_weights(overrun));
        if changes.is_empty() {
            changes.extend(coarser_and_shorter(overrun));
        }
    }
    for change in changes.into_iter().take(CHANGES_MAX) {
        let needed = mib(change.needed_bytes);
        diagnostic = diagnostic.help(format!("{} would need {needed}", change.what));
    }
    diagnostic.help(format!(
        "or allow {} or more: --ram {}",
        mib(needed),
        mib(needed).replace(' ', "")
    ))
}

/// The smallest set of buffers and items that exceeds the limit together.
fn too_much(plan: &Plan, limit_bytes: u64) -> String {
    let arena = [
        MemoryKind::Activations,
        MemoryKind::KvCache,
        MemoryKind::ResidentPages,
        MemoryKind::PageSlots,
    ];
    let arena_bytes: u64 = arena.iter().map(|&kind| plan.memory.bytes_of(kind)).sum();
    let fixed_bytes = plan.memory.needed_bytes() - arena_bytes;
    let Some(room) = limit_bytes.checked_sub(fixed_bytes) else {
        return format!(
            "what lies outside the arena takes {} alone",
            mib(fixed_bytes)
        );
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
        "{} of {} buffers, alive in {}, are more than the {} left for them: {}",
        least.len(),
        plan.buffers.len(),
        moment_name(plan, phase),
        mib(room),
        parts.collect::<Vec<_>>().join(", ")
    )
}

/// The longest context that fits when the task otherwise needs `needed` bytes:
/// the KV rings of its length grow with it, everything else stays.
fn context_within(overrun: &Overrun<'_>, needed: u64) -> Option<Change> {
    let plan = overrun.plan;
    let whole = choices::ring(plan.model.context, None, plan.columns_max);
    let of_step = |step: &omex_plan::Step| {
        let &KernelSpec::KvStore {
            kv_heads,
            head_dim,
            ring,
            format,
            ..
        } = plan.kernels[step.kernel.index()].spec()
        else {
            return 0;
        };
        if ring == whole {
            2 * ring_bytes(format, kv_heads, head_dim, ring)
        } else {
            0
        }
    };
    let kv: u64 = plan.steps.iter().map(of_step).sum();
    let ring = u64::from(whole);
    let per_position = kv.div_ceil(ring).max(1);
    let rest = needed.checked_sub(kv)?;
    let fits = overrun.limit.bytes.checked_sub(rest)? / per_position / 16 * 16;
    let least = choices::context_min(&plan.program).max(16);
    (fits >= least && fits < ring).then(|| Change {
        what: format!("a context of {fits} tokens (-c {fits})"),
        needed_bytes: rest + fits * per_position,
    })
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
        needed_bytes,
    })
}

/// The finest quantization that fits with a shorter context, where neither
/// fits alone.
fn coarser_and_shorter(overrun: &Overrun<'_>) -> Option<Change> {
    QUANTIZATIONS.iter().find_map(|(name, format)| {
        let needed = with_weights_in(overrun.plan, *format);
        let context = context_within(overrun, needed)?;
        Some(Change {
            what: format!("the model in {name} with {}", context.what),
            needed_bytes: context.needed_bytes,
        })
    })
}
