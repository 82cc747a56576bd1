//! Assembles the plan from what the passes decided.

pub mod code;
pub mod identity;
pub mod memory;
pub mod program;
pub mod text;

use std::collections::BTreeMap;

use omex_kernels::KernelSpec;
use omex_kernels::spec::{Access, OperandClass};
use omex_plan::memory::MemoryContract;
use omex_plan::packed::{Digest, FormatCode, PackedIndex, PackedLayout};
use omex_plan::session::SessionBuffers;
use omex_plan::task::Program;
use omex_plan::{
    Arg, Buffer, BufferId, BufferKind, Kernel, KernelId, Model, Phase, Plan, Step, Target,
    TensorId, WeightSource, Weights,
};

use crate::arena::{Effort, Item, Layout, Problem, solve, validate};
use crate::diagnostic::{Code, Diagnostic, quoted};
use crate::ir::{Graph, Op, Type, ValueId};
use crate::passes::lifetimes::{Place, Slot, Storage};
use crate::passes::schedule::Schedule;
use crate::work::{Watch, Work, watched};

use code::CodeSection;

/// Alignment of arena slots, and of those that reads bypassing the page cache fill.
const SLOT_ALIGN: u64 = 64;
const PAGE_SLOT_ALIGN: u64 = 4096;

/// A packed model, as far as a plan states it.
#[derive(Clone, Copy, Debug)]
pub struct PackedModel<'a> {
    pub index: &'a PackedIndex,
    /// Names the packed model: BLAKE3 of its encoded index.
    pub digest: Digest,
    pub file_bytes: u64,
}

/// Everything that a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    pub target: &'a Target,
    pub model: &'a Model,
    pub packed: PackedModel<'a>,
    /// Read every page into the arena instead of mapping the file.
    pub read_weights: bool,
    pub graph: &'a Graph,
    pub schedule: &'a Schedule,
    pub storage: &'a Storage,
    pub code: &'a CodeSection,
    pub columns_max: u32,
    pub head_columns_max: u32,
    pub sequences_max: u32,
    pub threads_max: u32,
    pub program: &'a Program,
    pub result_id: Digest,
    pub watch: &'a dyn Watch,
}

/// The plan without its memory contract, and its arena's layout.
///
/// # Errors
///
/// The packed model lacks a tensor of the graph or has it in another form.
pub fn assemble(parts: &Parts<'_>) -> Result<(Plan, Layout), Diagnostic> {
    let mut slots = parts.storage.slots.clone();
    let source = page_slots(parts, &mut slots);
    let problem = Problem {
        items: slots.iter().map(item).collect(),
    };
    let layout = watched(parts.watch, Work::Arena, || {
        solve(&problem, Effort::default())
    });
    if let Err(e) = validate(&problem, &layout) {
        panic!("the arena's layout is wrong: {e}");
    }

    let mut args = Args {
        parts,
        constants: Vec::new(),
        constants_of: BTreeMap::new(),
        tensors: parts
            .packed
            .index
            .tensors
            .iter()
            .enumerate()
            .map(|(i, t)| (t.name.as_str(), TensorId::from(i)))
            .collect(),
    };
    let mut steps = Vec::with_capacity(parts.schedule.steps.len());
    for &id in &parts.schedule.steps {
        let node = parts.graph.node(id);
        let spec = kernel_spec(&node.op);
        steps.push(Step {
            kernel: parts.code.kernel_of(spec),
            args: args.of_step(id, spec)?,
            panels: None,
            name: node.site.name.clone(),
            layer: node.site.layer,
        });
    }
    let slot_of = |id: ValueId| match parts.storage.place(id) {
        Place::Slot(slot) => BufferId(slot.0),
        Place::SelectedColumn(_) | Place::Rings { .. } => {
            unreachable!("tokens and logits have slots of their own")
        }
    };
    let tokens = parts.graph.order().into_iter();
    let tokens = tokens
        .filter(|&id| parts.graph.node(id).op == Op::Tokens)
        .map(slot_of)
        .next()
        .expect("a graph reads tokens");
    let phases = parts.schedule.phases.iter().map(|phase| Phase {
        first_step: phase.start as u32,
        steps: phase.len() as u32,
    });
    let buffers = slots.into_iter().zip(&layout.offsets);
    let session = parts.storage.session;
    let plan = Plan {
        target: parts.target.clone(),
        model: parts.model.clone(),
        weights: Weights {
            packed_digest: parts.packed.digest,
            packed_file_bytes: parts.packed.file_bytes,
            source,
            pages: parts.packed.index.pages.clone(),
            tensors: parts.packed.index.tensors.clone(),
        },
        constants: args.constants,
        kernels: parts.code.kernels.clone(),
        buffers: buffers
            .map(|(slot, &offset)| buffer(slot, offset))
            .collect(),
        arena_bytes: layout.bytes,
        steps,
        phases: phases.collect(),
        body_phases: parts.schedule.body_phases,
        tokens_buffer: tokens,
        logits_buffer: slot_of(parts.graph.result()),
        session: SessionBuffers {
            text: BufferId(session.text.0),
            history: BufferId(session.history.0),
            tokenizer: BufferId(session.tokenizer.0),
            sampler: BufferId(session.sampler.0),
        },
        columns_max: parts.columns_max,
        head_columns_max: parts.head_columns_max,
        sequences_max: parts.sequences_max,
        threads_max: parts.threads_max,
        program: parts.program.clone(),
        memory: MemoryContract { items: Vec::new() },
        result_id: parts.result_id,
    };
    Ok((plan, layout))
}

/// Appends a slot for every page when pages are read.
fn page_slots(parts: &Parts<'_>, slots: &mut Vec<Slot>) -> WeightSource {
    if !parts.read_weights {
        return WeightSource::Mapped;
    }
    let first = slots.len();
    let pages = &parts.packed.index.pages;
    slots.extend(pages.iter().enumerate().map(|(i, page)| Slot {
        name: format!("page.{i}"),
        kind: BufferKind::ResidentPage,
        bytes: page.bytes.next_multiple_of(PAGE_SLOT_ALIGN),
        first_phase: 0,
        // Sampling and tokenizing included.
        end_phase: parts.schedule.phases.len() as u32 + 2,
    }));
    WeightSource::Read {
        slots: (first..slots.len()).map(BufferId::from).collect(),
    }
}

/// Alignment of a buffer's place in the arena.
pub(crate) fn slot_align(kind: BufferKind) -> u64 {
    match kind {
        BufferKind::ResidentPage | BufferKind::PageSlot => PAGE_SLOT_ALIGN,
        BufferKind::Tokens
        | BufferKind::Activation
        | BufferKind::KvRing
        | BufferKind::Logits
        | BufferKind::Session
        | BufferKind::Scratch => SLOT_ALIGN,
    }
}

fn item(slot: &Slot) -> Item {
    Item {
        lower: slot.first_phase,
        upper: slot.end_phase,
        bytes: slot.bytes,
        align: slot_align(slot.kind),
    }
}

fn buffer(slot: Slot, offset: u64) -> Buffer {
    Buffer {
        name: slot.name,
        kind: slot.kind,
        offset,
        bytes: slot.bytes,
        first_phase: slot.first_phase,
        end_phase: slot.end_phase,
    }
}

fn kernel_spec(op: &Op) -> &KernelSpec {
    match op {
        Op::Kernel(spec) => spec,
        other => unreachable!("{other:?} is scheduled"),
    }
}

/// Turns operands into arguments.
struct Args<'a> {
    parts: &'a Parts<'a>,
    constants: Vec<f64>,
    /// Sources whose constants are in the plan already.
    constants_of: BTreeMap<ValueId, Arg>,
    tensors: BTreeMap<&'a str, TensorId>,
}

impl Args<'_> {
    /// The arguments in the order of the spec's operands: the graph's operands
    /// in the same order, then the result.
    fn of_step(&mut self, id: ValueId, spec: &KernelSpec) -> Result<Vec<Arg>, Diagnostic> {
        let mut operands = self.parts.graph.operands(id).into_iter();
        let mut args = Vec::new();
        let mut rings = Vec::new();
        for operand in spec.operands(1).as_slice() {
            let arg = match (operand.class, operand.access) {
                (OperandClass::KvRing, access) => {
                    if rings.is_empty() {
                        let ring = match access {
                            Access::Read => operands.next().expect("a ring is an operand"),
                            Access::Write => id,
                        };
                        rings = self.rings(ring);
                    }
                    rings.pop().expect("two rings")
                }
                (OperandClass::Weights, _) => {
                    let source = operands.next().expect("weights are an operand");
                    self.source(source)?
                }
                (OperandClass::Buffer, Access::Read) => {
                    self.column(operands.next().expect("columns are an operand"))
                }
                (OperandClass::Buffer, Access::Write) => self.column(id),
            };
            args.push(arg);
        }
        assert!(operands.next().is_none(), "every operand is an argument");
        Ok(args)
    }

    /// The value ring, then the key ring: the key ring is popped first.
    fn rings(&self, id: ValueId) -> Vec<Arg> {
        match self.parts.storage.place(id) {
            Place::Rings { keys, values } => vec![
                Arg::Buffer(BufferId(values.0)),
                Arg::Buffer(BufferId(keys.0)),
            ],
            Place::Slot(_) | Place::SelectedColumn(_) => unreachable!("columns are no ring"),
        }
    }

    fn column(&self, id: ValueId) -> Arg {
        match self.parts.storage.place(id) {
            Place::Slot(slot) => Arg::Buffer(BufferId(slot.0)),
            Place::SelectedColumn(slot) => Arg::SelectedColumn(BufferId(slot.0)),
            Place::Rings { .. } => unreachable!("a ring is no column"),
        }
    }

    fn source(&mut self, id: ValueId) -> Result<Arg, Diagnostic> {
        let node = self.parts.graph.node(id);
        match &node.op {
            Op::Frequencies(frequencies) => {
                let constants = &mut self.constants;
                let arg = self.constants_of.entry(id).or_insert_with(|| {
                    let values = frequencies.values();
                    let arg = Arg::Constants {
                        first: constants.len() as u32,
                        count: values.len() as u32,
                    };
                    constants.extend(values);
                    arg
                });
                Ok(*arg)
            }
            Op::Matrix { tensor, .. } | Op::Vector { tensor, .. } => {
                let tensor_id = self.tensors.get(tensor.as_str()).copied();
                let found = tensor_id.map(|t| &self.parts.packed.index.tensors[t.index()]);
                if let (Some(id), Some(found)) = (tensor_id, found)
                    && is_stored_as(node.ty, found)
                {
                    return Ok(Arg::Tensor(id));
                }
                let form = found.map_or("absent".to_owned(), |t| {
                    format!("{:?} of {} x {}", t.layout, t.rows, t.k)
                });
                Err(Diagnostic::error(
                    Code::ModelTensor,
                    format!(
                        "the packed model has no tensor {} of the form {}",
                        quoted(tensor),
                        node.ty
                    ),
                )
                .note(format!("it is {form}"))
                .help("remove the packed model from the cache; it is made again"))
            }
            other => unreachable!("{other:?} is no source of weights"),
        }
    }
}

fn is_stored_as(ty: Type, tensor: &omex_plan::packed::Tensor) -> bool {
    match ty {
        Type::Matrix {
            format,
            layout,
            rows,
            k,
        } => {
            tensor.format == FormatCode::new(format)
                && tensor.table_layout() == Some(layout)
                && (tensor.rows, tensor.k) == (rows, k)
        }
        Type::Vector { len } => {
            tensor.layout == PackedLayout::Vector && (tensor.rows, tensor.k) == (1, len)
        }
        Type::Tokens | Type::Columns { .. } | Type::Frequencies { .. } | Type::Kv { .. } => false,
    }
}

/// The kernels of a schedule, each once, in the order of their first step.
pub fn kernels(graph: &Graph, schedule: &Schedule) -> Vec<KernelSpec> {
    let mut seen = std::collections::BTreeSet::new();
    let specs = schedule
        .steps
        .iter()
        .map(|&id| *kernel_spec(&graph.node(id).op));
    specs.filter(|spec| seen.insert(*spec)).collect()
}

impl CodeSection {
    fn kernel_of(&self, spec: &KernelSpec) -> KernelId {
        let position = self.kernels.iter().position(|k: &Kernel| k.spec() == spec);
        KernelId::from(position.expect("every scheduled kernel is in the section"))
    }
}
