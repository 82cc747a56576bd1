//! What a plan needs of memory and why, for people and for programs. Made from
//! the plan alone: nothing runs.

pub mod budget;
mod chart;
mod json;
mod measured;
mod svg;
mod text;
mod trace;

use omex_kernels::spec::Access;
use omex_plan::memory::MemoryItem;
use omex_plan::{Arg, Buffer, BufferId, BufferKind, Plan, Step};

use crate::arena::{Effort, Item, Problem, forcing, solve};

pub use measured::Measured;

/// Version of the JSON form.
pub const SCHEMA_VERSION: u32 = 1;

/// The memory report of a plan.
#[derive(Clone, Debug)]
pub struct MemoryReport<'a> {
    plan: &'a Plan,
    arena: ArenaReport,
    measured: Option<Measured>,
}

/// How full the arena is.
#[derive(Clone, Debug)]
struct ArenaReport {
    /// No arena for these buffers is smaller.
    lower_bound_bytes: u64,
    /// The first moment with the largest load.
    peak_phase: u32,
    peak_bytes: u64,
    /// The buffers alive in it, the largest first.
    alive: Vec<BufferId>,
    /// Where the arena is larger than the lower bound.
    gap: Option<Gap>,
}

/// Why an arena is larger than its largest load.
#[derive(Clone, Debug)]
struct Gap {
    /// The least that an arena for these buffers takes, as far as the planner
    /// can prove it.
    proved_bytes: u64,
    /// Buffers that need so much without any other.
    forcing: Vec<BufferId>,
}

impl<'a> MemoryReport<'a> {
    pub fn new(plan: &'a Plan) -> MemoryReport<'a> {
        MemoryReport {
            plan,
            arena: ArenaReport::new(plan),
            measured: None,
        }
    }

    /// Puts what a run measured beside the prediction.
    pub fn with_measured(self, measured: Measured) -> MemoryReport<'a> {
        MemoryReport {
            measured: Some(measured),
            ..self
        }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        text::text(self)
    }

    pub fn json(&self) -> serde_json::Value {
        json::json(self)
    }

    /// The arena as a picture.
    pub fn svg(&self) -> String {
        svg::svg(self)
    }

    /// A page with the picture and the items.
    pub fn html(&self) -> String {
        svg::html(self)
    }

    /// A trace for Perfetto.
    pub fn trace(&self) -> serde_json::Value {
        trace::trace(self)
    }

    fn items(&self) -> &[MemoryItem] {
        &self.plan.memory.items
    }

    /// Barriers of a decoded token, whose body and head are a job each.
    fn barriers_per_token(&self) -> u64 {
        let (body, end) = (self.plan.body_phases as usize, self.plan.phases.len());
        self.plan.barriers(0..body, 1) + self.plan.barriers(body..end, 1)
    }

    /// The step that wrote a buffer last when a phase ends; none for what the
    /// runtime fills.
    fn writer(&self, id: BufferId, phase: u32) -> Option<&'a Step> {
        let phase = self.plan.phases.get(phase as usize)?;
        let end = (phase.first_step + phase.steps) as usize;
        let writes = |step: &&Step| {
            let operands = self.plan.kernels[step.kernel.index()].spec().operands(1);
            let mut pairs = step.args.iter().zip(operands.as_slice());
            pairs.any(|(arg, o)| o.access == Access::Write && *arg == Arg::Buffer(id))
        };
        let steps = &self.plan.steps;
        let before = steps[..end].iter().rfind(writes);
        before.or_else(|| steps[end..].iter().find(writes))
    }
}

impl ArenaReport {
    fn new(plan: &Plan) -> ArenaReport {
        let problem = Problem {
            items: plan.buffers.iter().map(item).collect(),
        };
        let lower_bound_bytes = problem.load_bytes();
        let loads = problem.loads();
        let peak = loads.iter().find(|(_, bytes)| *bytes == lower_bound_bytes);
        let peak_phase = peak.map_or(0, |(phase, _)| *phase);
        let is_alive = |b: &Buffer| (b.first_phase..b.end_phase).contains(&peak_phase);
        let ids = (0..plan.buffers.len()).map(BufferId::from);
        let mut alive: Vec<BufferId> = ids
            .filter(|id| is_alive(&plan.buffers[id.index()]))
            .collect();
        alive.sort_by_key(|id| (std::cmp::Reverse(plan.buffers[id.index()].bytes), *id));
        let has_gap = plan.arena_bytes > lower_bound_bytes;
        ArenaReport {
            gap: has_gap.then(|| Gap::new(&problem)),
            lower_bound_bytes,
            peak_phase,
            peak_bytes: alive.iter().map(|id| plan.buffers[id.index()].bytes).sum(),
            alive,
        }
    }
}

impl Gap {
    fn new(problem: &Problem) -> Gap {
        let proved_bytes = solve(problem, Effort::default()).bound_bytes;
        // One byte less is what they do not fit in.
        let forcing = proved_bytes
            .checked_sub(1)
            .filter(|_| proved_bytes > problem.load_bytes())
            .and_then(|limit| forcing(problem, limit))
            .unwrap_or_default();
        Gap {
            proved_bytes,
            forcing: forcing.into_iter().map(BufferId::from).collect(),
        }
    }
}

fn item(buffer: &Buffer) -> Item {
    Item {
        lower: buffer.first_phase,
        upper: buffer.end_phase,
        bytes: buffer.bytes,
        align: crate::emit::slot_align(buffer.kind),
    }
}

/// What a buffer of a kind is called.
fn kind_name(kind: BufferKind) -> &'static str {
    match kind {
        BufferKind::Tokens => "tokens",
        BufferKind::Activation => "activation",
        BufferKind::KvRing => "kv cache",
        BufferKind::ResidentPage => "resident page",
        BufferKind::PageSlot => "page slot",
        BufferKind::Logits => "logits",
        BufferKind::Session => "session",
        BufferKind::Scratch => "scratch",
    }
}

/// What goes on in a moment: the steps of a phase, or what lies between passes.
fn moment_name(plan: &Plan, moment: u32) -> String {
    let Some(phase) = plan.phases.get(moment as usize) else {
        let between = if moment == plan.sample_moment() {
            "a token is sampled"
        } else {
            "text becomes tokens"
        };
        return between.to_owned();
    };
    let steps = &plan.steps[phase.first_step as usize..][..phase.steps as usize];
    let names: Vec<String> = steps.iter().map(step_name).collect();
    format!("phase {moment}: {}", names.join(", "))
}

/// `ffn_down of layer 3`
fn step_name(step: &Step) -> String {
    match step.layer {
        Some(layer) => format!("{} of layer {layer}", step.name),
        None => step.name.clone(),
    }
}

/// MiB with two decimals, rounded up: what is needed is never understated.
pub(crate) fn mib(bytes: u64) -> String {
    let hundredths = (u128::from(bytes) * 100).div_ceil(1 << 20);
    format!("{}.{:02} MiB", hundredths / 100, hundredths % 100)
}
