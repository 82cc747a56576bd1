//! The compiler's pipeline: from a task and a model to a plan.
//!
//! Pure: no file, environment, clock or terminal. Equal inputs give equal bytes.

use std::collections::BTreeMap;

use omex_kernels::KernelSpec;
use omex_plan::memory::MemoryContract;
use omex_plan::prompt::PromptTemplate;
use omex_plan::{Model, Plan, Target};

use crate::arena::Layout;
use crate::choices;
use crate::container::{NodeId, RamLimit, RamOrigin, Task};
use crate::diagnostic::Diagnostic;
use crate::emit::code::CodeSection;
use crate::emit::identity::{Identity, result_id};
use crate::emit::program::program;
use crate::emit::{PackedModel, Parts, assemble, kernels};
use crate::import::llama::ModelConfig;
use crate::ir::{Graph, Stage, verify};
use crate::passes::build::build;
use crate::passes::fuse::fuse;
use crate::passes::lifetimes::lifetimes;
use crate::passes::normalize::normalize;
use crate::passes::schedule::{Schedule, schedule};
use crate::passes::select::select;
use crate::report::budget::{Overrun, over_budget};

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
    /// Cores of the target.
    pub cores: u32,
    /// The code of a kernel for the target; `None` where the runtime's own
    /// implementation computes it.
    pub code_of: &'a dyn Fn(&KernelSpec) -> Option<Vec<u8>>,
    /// The memory that the runtime needs for a plan, itemised; the plan's own
    /// contract is empty at that time.
    pub memory_of: &'a dyn Fn(&Plan, Sections) -> MemoryContract,
}

/// Sizes of a plan's raw sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections {
    pub code_bytes: u64,
    pub tokenizer_bytes: u64,
}

pub use crate::emit::memory::memory_contract;

/// What the command line asks for beyond the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub context: Option<u32>,
    /// Prefill chunk.
    pub columns_max: Option<u32>,
    pub threads_max: Option<u32>,
    /// Limits of the flag and of the target.
    pub limits: Vec<RamLimit>,
    /// Overrides the choice between mapping and reading the weights.
    pub read_weights: Option<bool>,
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
    let h = &inputs.model.hyperparameters;
    let program = program(inputs.task, inputs.prompts)?;
    let context = choices::context(inputs.task, &program, h.context_len, options.context);
    let context = context.map_err(|e| vec![e])?;
    let (limit, warning) = choices::budget(inputs.task, &options.limits);

    let built = checked(Stage::Built, build(inputs.model, choices::ring(context)));
    let normalized = checked(Stage::Normalized, normalize(built.clone()));
    let fused = checked(Stage::Fused, fuse(normalized.clone()));
    let selected = checked(Stage::Selected, select(fused.clone())?);
    let schedule = schedule(&selected);

    let specs = kernels(&selected, &schedule);
    let code = CodeSection::new(&specs, inputs.code_of);
    let sections = Sections {
        code_bytes: code.bytes.len() as u64,
        tokenizer_bytes: inputs.tokenizer.len() as u64,
    };
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
        context,
        end_tokens: inputs.end_tokens,
        program: &program,
    });
    // A stated budget bounds the page cache too, so the weights are read then.
    let stated = limit.is_some_and(|l| l.origin != RamOrigin::Target);
    let read_weights = options.read_weights.unwrap_or(stated);

    let mut smallest = None;
    for columns_max in choices::columns(context, options.columns_max) {
        let storage = lifetimes(&selected, &schedule, columns_max);
        let parts = Parts {
            target: inputs.target,
            model: &model,
            packed: inputs.packed,
            read_weights,
            graph: &selected,
            schedule: &schedule,
            storage: &storage,
            code: &code,
            columns_max,
            threads_max: choices::threads_max(inputs.cores, options.threads_max),
            program: &program,
            result_id,
        };
        let (mut plan, layout) = assemble(&parts).map_err(|e| vec![e])?;
        plan.memory = (inputs.memory_of)(&plan, sections);
        let needed = plan
            .memory
            .rss_peak_bytes()
            .max(plan.memory.charge_peak_bytes());
        if limit.is_none_or(|l| needed <= l.bytes) {
            return Ok(Compiled {
                plan,
                code: code.bytes,
                warnings: warning.into_iter().collect(),
                stages: Stages {
                    graphs: vec![
                        (Stage::Built, built),
                        (Stage::Normalized, normalized),
                        (Stage::Fused, fused),
                        (Stage::Selected, selected),
                    ],
                    schedule,
                    layout,
                },
            });
        }
        smallest = Some(plan);
    }
    let plan = smallest.expect("one chunk is tried at least");
    let limit = limit.expect("only a limit refuses a plan");
    Err(vec![over_budget(&Overrun {
        task: inputs.task,
        plan: &plan,
        limit,
    })])
}

/// Verifies a pass's result. A violation is a bug of the compiler.
fn checked(stage: Stage, graph: Graph) -> Graph {
    if let Err(e) = verify(stage, &graph) {
        panic!("the {} graph is wrong: {e}\n{graph}", stage.name());
    }
    graph
}
