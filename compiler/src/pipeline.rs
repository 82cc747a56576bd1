//! The compiler's pipeline: from a task and a model to a plan.
//!
//! Pure: no file, environment, clock or terminal. Equal inputs give equal bytes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use omex_kernels::KernelSpec;
use omex_kernels::spec::KvFormat;
use omex_plan::memory::MemoryKind;
use omex_plan::prompt::PromptTemplate;
use omex_plan::session::SessionBytes;
use omex_plan::{Model, Plan, Target, WeightSource};
use omex_runtime::memory::{Device, Sections};

use crate::arena::Layout;
use crate::choices;
use crate::container::{MemoryLevel, NodeId, RamLimit, RamOrigin, Task};
use crate::diagnostic::Diagnostic;
use crate::emit::code::CodeSection;
use crate::emit::identity::{Identity, result_id};
use crate::emit::memory::memory_contract;
use crate::emit::program::program;
use crate::emit::{PackedModel, Parts, assemble, kernels};
use crate::import::family::ModelConfig;
use crate::ir::{Graph, Stage, verify};
use crate::paging;
use crate::passes::build::{Cache, build};
use crate::passes::fuse::fuse;
use crate::passes::lifetimes::lifetimes;
use crate::passes::normalize::normalize;
use crate::passes::schedule::{Schedule, schedule};
use crate::passes::select::select;
use crate::report::budget::{Overrun, over_budget};
use crate::work::{Watch, Work, watched};

/// Shortest prefill chunk for which all weights stay rather than a longer one.
const WHOLE_COLUMNS_MIN: u32 = 32;
/// Prefill chunk of tasks that ask for the smallest working set.
const LOW_COLUMNS: u32 = 16;
/// Attempts to fit a page plan with all that it adds.
const PAGING_ROUNDS: u32 = 8;
/// A page plan that leaves less of the budget is not improved.
const BUDGET_UNUSED_BYTES: u64 = 1 << 20;

/// What is compiled, for what.
pub struct Inputs<'a> {
    pub task: &'a Task,
    /// What reports call the model.
    pub model_name: &'a str,
    pub model: &'a ModelConfig,
    pub packed: PackedModel<'a>,
    /// Tokenizer section of the plan.
    pub tokenizer: &'a [u8],
    /// Tokens that end a generation, sorted.
    pub end_tokens: &'a [u32],
    /// The prompt of every inferring node.
    pub prompts: &'a BTreeMap<NodeId, PromptTemplate>,
    pub target: &'a Target,
    /// What the memory contract depends on of the target.
    pub device: Device,
    /// Bandwidth of the target's storage in large reads, and of its memory.
    pub storage_bytes_per_s: u64,
    pub memory_bytes_per_s: u64,
    /// 8-bit multiply-adds of the target's cores together.
    pub macs_per_s: u64,
    /// Compressed copies of the packed model's pages, where they are asked for.
    pub frames: paging::Frames,
    /// The code of a kernel for the target; `None` where the runtime's own
    /// implementation computes it.
    pub code_of: &'a dyn Fn(&KernelSpec) -> Option<Vec<u8>>,
    pub watch: &'a dyn Watch,
}

/// What the command line asks for beyond the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub context: Option<u32>,
    /// Prefill chunk.
    pub columns_max: Option<u32>,
    /// Windows that go through each layer together.
    pub sequences_max: Option<u32>,
    pub threads_max: Option<u32>,
    /// Limits of the flag and of the target.
    pub limits: Vec<RamLimit>,
    /// Where weights come from; by the budget without it.
    pub weights: Option<WeightsFrom>,
    /// How pages are read where not all stay.
    pub paging: Paging,
    /// How keys and values are kept.
    pub kv: KvFormat,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsFrom {
    /// The packed file, mapped.
    Mapped,
    /// The arena, all of them.
    Read,
    /// The arena, as many as fit; the others are read in every pass.
    Paged,
}

/// Sizes of a page plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    pub slots_bytes_max: u64,
    pub read_bytes_max: u64,
    pub depth: u32,
}

impl Default for Paging {
    fn default() -> Paging {
        Paging {
            slots_bytes_max: paging::SLOTS_BYTES_MAX,
            read_bytes_max: paging::READ_BYTES_MAX,
            depth: paging::DEPTH,
        }
    }
}

/// A plan, and how it came about.
#[derive(Debug)]
pub struct Compiled {
    pub plan: Plan,
    /// Code section of the plan.
    pub code: Vec<u8>,
    pub warnings: Vec<Diagnostic>,
    pub stages: Stages,
}

/// What `--emit` prints.
#[derive(Debug)]
pub struct Stages {
    /// The graph after each pass.
    pub graphs: Vec<(Stage, Graph)>,
    pub schedule: Schedule,
    pub layout: Layout,
}

/// # Errors
///
/// What the container or the model asks for and cannot have; a budget that is
/// too small.
pub fn compile(inputs: &Inputs<'_>, options: &Options) -> Result<Compiled, Vec<Diagnostic>> {
    match attempt(inputs, options)? {
        Attempt::Fits(compiled) => Ok(*compiled),
        Attempt::TooLarge { plan, limit } => Err(vec![over_budget(&Overrun {
            task: inputs.task,
            plan: &plan,
            limit,
            options,
            planned: &|options| match attempt(inputs, options) {
                Ok(Attempt::Fits(compiled)) => Some(compiled.plan),
                Ok(Attempt::TooLarge { .. }) | Err(_) => None,
            },
        })]),
    }
}

/// A plan within its limit, or the smallest there is.
enum Attempt {
    Fits(Box<Compiled>),
    TooLarge { plan: Box<Plan>, limit: RamLimit },
}

fn attempt(inputs: &Inputs<'_>, options: &Options) -> Result<Attempt, Vec<Diagnostic>> {
    let h = &inputs.model.hyperparameters;
    let program = program(inputs.task, inputs.prompts)?;
    let context = choices::context(inputs.task, &program, h.context_len, options.context);
    let context = context.map_err(|e| vec![e])?;
    choices::check_cache(options.kv, h.head_len).map_err(|e| vec![e])?;
    let (limit, warning) = choices::budget(inputs.task, &options.limits);

    let model = Model {
        name: inputs.model_name.to_owned(),
        architecture: inputs.model.architecture.clone(),
        vocabulary: h.vocab_len,
        layers: h.layer_count,
        context,
        end_tokens: inputs.end_tokens.to_vec(),
    };
    let result_id = result_id(&Identity {
        packed_digest: inputs.packed.digest,
        tokenizer: inputs.tokenizer,
        kv: options.kv,
        context,
        end_tokens: inputs.end_tokens,
        program: &program,
    });
    // Rings that slide depend on the chunk, code does not.
    let made = RefCell::new(BTreeMap::new());
    let code_of = |spec: &KernelSpec| -> Option<Vec<u8>> {
        let mut made = made.borrow_mut();
        let make = || watched(inputs.watch, Work::Code, || (inputs.code_of)(spec));
        let code = made.entry(*spec).or_insert_with(make);
        code.clone()
    };
    let lowered = |columns: u32| {
        let cache = Cache {
            context,
            columns,
            format: options.kv,
        };
        watched(inputs.watch, Work::Lowering, || {
            lower(inputs.model, cache, &code_of)
        })
    };
    let sections = Sections {
        code_bytes: lowered(1)?.code.bytes.len() as u64,
        tokenizer_bytes: inputs.tokenizer.len() as u64,
    };
    let assembled = |columns: Columns, read_weights: bool| {
        let lowered = lowered(columns.body)?;
        let selected = lowered.selected();
        let storage = lifetimes(
            selected,
            &lowered.schedule,
            columns.body,
            columns.head,
            columns.sequences,
            SessionBytes::new(&program, context, h.vocab_len, columns.sequences),
        );
        let (mut plan, layout) = assemble(&Parts {
            target: inputs.target,
            model: &model,
            packed: inputs.packed,
            read_weights,
            graph: selected,
            schedule: &lowered.schedule,
            storage: &storage,
            code: &lowered.code,
            columns_max: columns.body,
            head_columns_max: columns.head,
            sequences_max: columns.sequences,
            threads_max: choices::threads_max(inputs.device.cores, options.threads_max),
            program: &program,
            result_id,
            watch: inputs.watch,
        })
        .map_err(|e| vec![e])?;
        plan.memory = memory_contract(&plan, sections, inputs.device);
        Ok((plan, layout))
    };
    let fitting = Fitting {
        inputs,
        options,
        sections,
        limit,
        runs: choices::runs(&program, context),
        sequences: choices::sequences(&program, options.sequences_max),
    };
    let (plan, layout) = match fitting.plan(context, &assembled)? {
        Fitted::Plan(plan, layout) => (*plan, layout),
        Fitted::Smallest(plan) => {
            let limit = limit.expect("only a limit refuses a plan");
            return Ok(Attempt::TooLarge { plan, limit });
        }
    };
    let warnings = warning.into_iter().chain(paging::slow_plan(&plan));
    let Lowered {
        graphs,
        schedule,
        code,
    } = lowered(plan.columns_max)?;
    let plan = match omex_plan::check(plan, code.bytes.len() as u64) {
        Ok(checked) => checked.into_plan(),
        Err(e) => panic!("runtimes would refuse the plan that was made: {e}"),
    };
    Ok(Attempt::Fits(Box::new(Compiled {
        warnings: warnings.collect(),
        plan,
        code: code.bytes,
        stages: Stages {
            graphs,
            schedule,
            layout,
        },
    })))
}

/// A model as kernels in their order, before anything has a place.
struct Lowered {
    /// The graph after each pass.
    graphs: Vec<(Stage, Graph)>,
    schedule: Schedule,
    code: CodeSection,
}

impl Lowered {
    fn selected(&self) -> &Graph {
        let (_, graph) = self.graphs.last().expect("passes leave graphs");
        graph
    }
}

fn lower(
    model: &ModelConfig,
    cache: Cache,
    code_of: &dyn Fn(&KernelSpec) -> Option<Vec<u8>>,
) -> Result<Lowered, Vec<Diagnostic>> {
    let built = checked(Stage::Built, build(model, cache));
    let normalized = checked(Stage::Normalized, normalize(built.clone()));
    let fused = checked(Stage::Fused, fuse(normalized.clone()));
    let selected = checked(Stage::Selected, select(fused.clone())?);
    let schedule = schedule(&selected);
    let code = CodeSection::new(&kernels(&selected, &schedule), code_of);
    Ok(Lowered {
        graphs: vec![
            (Stage::Built, built),
            (Stage::Normalized, normalized),
            (Stage::Fused, fused),
            (Stage::Selected, selected),
        ],
        schedule,
        code,
    })
}

/// Finds the plan that fits the budget and runs fastest.
struct Fitting<'a> {
    inputs: &'a Inputs<'a>,
    options: &'a Options,
    sections: Sections,
    limit: Option<RamLimit>,
    /// Prompt and generated tokens of each node's longest generation.
    runs: Vec<(u64, u64)>,
    /// Windows at a time to try, most first.
    sequences: Vec<u32>,
}

/// Columns that the body and the head compute at once, at most, and the
/// sequences that they may belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Columns {
    body: u32,
    head: u32,
    sequences: u32,
}

impl Columns {
    /// One column of the head for each sequence, and so many of the body.
    fn new(body: u32, sequences: u32) -> Columns {
        Columns {
            body: body.max(sequences),
            head: sequences,
            sequences,
        }
    }
}

/// Makes the plan without page plan for a chunk; its weights are read or mapped.
type Assembled<'a> = dyn Fn(Columns, bool) -> Result<(Plan, Layout), Vec<Diagnostic>> + 'a;

/// Keeps the plan that needs less.
fn keep_smaller(smallest: &mut Option<Plan>, plan: Plan) {
    let needed = plan.memory.needed_bytes();
    if (smallest.as_ref()).is_none_or(|least| needed <= least.memory.needed_bytes()) {
        *smallest = Some(plan);
    }
}

/// What [`Fitting`] found.
enum Fitted {
    Plan(Box<Plan>, Layout),
    /// Not even this one fits.
    Smallest(Box<Plan>),
}

impl Fitting<'_> {
    fn plan(&self, context: u32, assembled: &Assembled<'_>) -> Result<Fitted, Vec<Diagnostic>> {
        let level = self.memory_level();
        // A stated budget bounds the page cache too, so the weights are read then.
        let stated = self.limit.is_some_and(|l| l.origin != RamOrigin::Target);
        let (whole, paged) = match (self.options.weights, level) {
            (Some(WeightsFrom::Mapped), _) => (Some(false), false),
            (Some(WeightsFrom::Read), _) => (Some(true), false),
            (None, MemoryLevel::High) => (Some(stated), false),
            (Some(WeightsFrom::Paged), _) | (None, MemoryLevel::Low) => (None, true),
            (None, MemoryLevel::Adaptive) => (Some(stated), true),
        };
        let mut smallest = None;
        if let Some(read_weights) = whole {
            // Below this, reading pages costs less than passes over so few tokens.
            let asked = self.options.columns_max;
            let chunks = choices::columns(context, asked);
            let least = if paged { WHOLE_COLUMNS_MIN } else { 1 };
            // A short context has no longer one.
            let least = least.min(chunks[0]);
            for columns in chunks {
                if columns < least && asked.is_none() {
                    break;
                }
                for &sequences in self.sequences_of(level) {
                    let columns = Columns::new(columns, sequences);
                    let (plan, layout) = assembled(columns, read_weights)?;
                    if self.fits(&plan) && self.is_worth_its_rings(&plan) {
                        return Ok(Fitted::Plan(Box::new(plan), layout));
                    }
                    keep_smaller(&mut smallest, plan);
                }
            }
        }
        if paged {
            let mut best: Option<(f64, Plan, Layout)> = None;
            // One sequence shows which chunk pays; more of them are tried with that.
            let mut chunks = self.paged_columns(context, level);
            for &sequences in self.sequences_of(level).iter().rev() {
                for &columns in &chunks {
                    let columns = Columns::new(columns, sequences);
                    let (unpaged, layout) = assembled(columns, false)?;
                    match self.page(&unpaged, level) {
                        Ok(plan) => {
                            let seconds = self.run_s(&plan);
                            if best.as_ref().is_none_or(|(least, ..)| seconds < *least) {
                                best = Some((seconds, plan, layout));
                            }
                        }
                        Err(plan) => keep_smaller(&mut smallest, *plan),
                    }
                }
                if let Some((_, plan, _)) = &best {
                    chunks = vec![plan.columns_max];
                }
            }
            if let Some((_, plan, layout)) = best {
                let drafting = self.drafting(&plan, level, assembled)?;
                let (plan, layout) = drafting.unwrap_or((plan, layout));
                return Ok(Fitted::Plan(Box::new(plan), layout));
            }
        }
        let smallest = smallest.expect("one chunk is tried at least");
        Ok(Fitted::Smallest(Box::new(smallest)))
    }

    /// The plan with room to verify drafts, where reading takes so long that
    /// more columns cost nothing.
    fn drafting(
        &self,
        plan: &Plan,
        level: MemoryLevel,
        assembled: &Assembled<'_>,
    ) -> Result<Option<(Plan, Layout)>, Vec<Diagnostic>> {
        let cost = paging::Cost::of(plan).expect("the plan is paged");
        let drafts = cost.drafts(plan.sequences_max);
        let drafts = drafts.min(plan.columns_max - plan.head_columns_max);
        if drafts == 0 || level == MemoryLevel::Low {
            return Ok(None);
        }
        let columns = Columns {
            body: plan.columns_max,
            head: plan.head_columns_max + drafts,
            sequences: plan.sequences_max,
        };
        let (unpaged, layout) = assembled(columns, false)?;
        Ok(self.page(&unpaged, level).ok().map(|plan| (plan, layout)))
    }

    /// What the nodes ask for together: the smallest working set wins, as it
    /// holds for the whole process; `high` forbids paging.
    fn memory_level(&self) -> MemoryLevel {
        let levels = self.inputs.task.nodes.iter().filter_map(|n| n.memory);
        let levels: Vec<MemoryLevel> = levels.map(|level| level.value).collect();
        let asked = |level| levels.contains(&level);
        if asked(MemoryLevel::High) {
            MemoryLevel::High
        } else if asked(MemoryLevel::Low) {
            MemoryLevel::Low
        } else {
            MemoryLevel::Adaptive
        }
    }

    /// Windows at a time to try; one where the smallest working set is asked for.
    fn sequences_of(&self, level: MemoryLevel) -> &[u32] {
        let last = self.sequences.len() - 1;
        match level {
            MemoryLevel::Low => &self.sequences[last..],
            MemoryLevel::Adaptive | MemoryLevel::High => &self.sequences,
        }
    }

    fn paged_columns(&self, context: u32, level: MemoryLevel) -> Vec<u32> {
        let asked = self.options.columns_max;
        let columns = choices::paged_columns(context, asked);
        match (asked, level) {
            (None, MemoryLevel::Low) => vec![LOW_COLUMNS.min(context)],
            (Some(_), _) | (None, MemoryLevel::Adaptive | MemoryLevel::High) => columns,
        }
    }

    fn fits(&self, plan: &Plan) -> bool {
        self.limit
            .is_none_or(|l| plan.memory.needed_bytes() <= l.bytes)
    }

    /// Whether several sequences, where nobody asked for them, leave most of the
    /// memory to the weights.
    fn is_worth_its_rings(&self, plan: &Plan) -> bool {
        let rings = plan.memory.bytes_of(MemoryKind::KvCache);
        let weights = &plan.weights.pages;
        let weights: u64 = weights.iter().map(|page| page.bytes).sum();
        plan.sequences_max == 1 || self.options.sequences_max.is_some() || 2 * rings <= weights
    }

    /// Seconds of one longest generation of each node.
    fn run_s(&self, plan: &Plan) -> f64 {
        let cost = paging::Cost::of(plan).expect("the plan is paged");
        let runs = self.runs.iter();
        let sequences = plan.sequences_max;
        runs.map(|&(prompt, tokens)| cost.run_s(prompt, tokens, sequences))
            .sum()
    }

    /// The plan with as many resident pages as the budget allows, which reads
    /// compressed copies of pages where that is faster: what they are read into
    /// takes memory that weights could stay in.
    ///
    /// # Errors
    ///
    /// The smallest plan, when it does not fit.
    fn page(&self, unpaged: &Plan, level: MemoryLevel) -> Result<Plan, Box<Plan>> {
        let framed = self.page_with(unpaged, level, &self.inputs.frames)?;
        let compresses = match &framed.weights.source {
            WeightSource::Paged(paged) => paged.stages.is_some(),
            WeightSource::Mapped | WeightSource::Read { .. } => false,
        };
        if !compresses {
            return Ok(framed);
        }
        let plain = self.page_with(unpaged, level, &paging::Frames::default());
        let faster = |plain: &Plan| self.run_s(plain) <= self.run_s(&framed);
        Ok(plain.ok().filter(faster).unwrap_or(framed))
    }

    /// The same, with these copies wherever one makes a read faster.
    fn page_with(
        &self,
        unpaged: &Plan,
        level: MemoryLevel,
        frames: &paging::Frames,
    ) -> Result<Plan, Box<Plan>> {
        let weights = unpaged.memory.bytes_of(MemoryKind::MappedPages);
        let others = unpaged.memory.needed_bytes() - weights;
        let low = level == MemoryLevel::Low && self.options.weights.is_none();
        let sizes = &self.options.paging;
        let layers = self.inputs.task.model.load_layers;
        let request = |weights_bytes_max: u64| paging::Request {
            weights_bytes_max,
            slots_bytes_max: if low {
                sizes.slots_bytes_max / 4
            } else {
                sizes.slots_bytes_max
            },
            read_bytes_max: sizes.read_bytes_max,
            depth: sizes.depth,
            first_layers: layers.map_or(0..0, |l| l.value.0..l.value.1),
            storage_bytes_per_s: self.inputs.storage_bytes_per_s,
            memory_bytes_per_s: self.inputs.memory_bytes_per_s,
            macs_per_s: self.inputs.macs_per_s,
            frames: frames.clone(),
        };
        let paged = |weights_bytes_max: u64| {
            let request = request(weights_bytes_max);
            let page = || paging::page(unpaged, &request);
            watched(self.inputs.watch, Work::Paging, page).map(|mut plan| {
                plan.memory = memory_contract(&plan, self.sections, self.inputs.device);
                plan
            })
        };
        let mut weights_bytes_max = match self.limit {
            _ if low => 0,
            Some(limit) => limit.bytes.saturating_sub(others),
            None => 2 * weights + sizes.slots_bytes_max,
        };
        // What the page plan itself adds, and what mapping would have, is only
        // known once it is made.
        let mut best: Option<Plan> = None;
        for _ in 0..PAGING_ROUNDS {
            let Ok(plan) = paged(weights_bytes_max) else {
                break;
            };
            let Some(limit) = self.limit.filter(|_| !low) else {
                if self.fits(&plan) {
                    return Ok(plan);
                }
                break;
            };
            let needed = plan.memory.needed_bytes();
            if needed > limit.bytes {
                weights_bytes_max = weights_bytes_max.saturating_sub(needed - limit.bytes);
                continue;
            }
            let unused = limit.bytes - needed;
            // A plan that streams nothing needs no slots, and may need less for more.
            let streamed = streamed_bytes(&plan);
            let better = (best.as_ref()).is_none_or(|best| streamed < streamed_bytes(best));
            if better {
                best = Some(plan);
            }
            if unused < BUDGET_UNUSED_BYTES || streamed == 0 || !better {
                break;
            }
            weights_bytes_max += unused;
        }
        if let Some(plan) = best {
            return Ok(plan);
        }
        let least = match paged(0) {
            Ok(plan) => plan,
            Err(e) => paged(e.weights_bytes_min).expect("what it takes suffices"),
        };
        if self.fits(&least) {
            Ok(least)
        } else {
            Err(Box::new(least))
        }
    }
}

/// What a pass reads.
fn streamed_bytes(plan: &Plan) -> u64 {
    match &plan.weights.source {
        WeightSource::Paged(paged) => paged.pass_bytes(plan),
        WeightSource::Mapped | WeightSource::Read { .. } => 0,
    }
}

/// Verifies a pass's result. A violation is a bug of the compiler.
fn checked(stage: Stage, graph: Graph) -> Graph {
    if let Err(e) = verify(stage, &graph) {
        panic!("the {} graph is wrong: {e}\n{graph}", stage.name());
    }
    graph
}
