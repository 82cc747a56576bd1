//! The checks that stand between a decoded plan and its execution.
//!
//! Nothing here trusts the compiler: every step is proved to stay inside its
//! slots, every slot to be free while it is used, every value to be written
//! before it is read. No code is shared with the planner. The time that a check
//! takes is bounded by the plan's size, or by a limit on what it multiplies.

mod pages;

use std::collections::BTreeMap;

use omex_kernels::KernelSpec;
use omex_kernels::spec::{Access, KV_GROUP, Operand, OperandClass, kv_groups};

use crate::ids::{BufferId, TensorId};
use crate::packed::{PAGE_ALIGN, PackedLayout, Tensor};
use crate::paging::DIRECT_ALIGN;
use crate::plan::{
    Arg, Buffer, BufferKind, PREFETCH_PAGES_MAX, Plan, SEQUENCES_MAX, Step, WeightSource,
};
use crate::session::SessionBytes;
use crate::task::{NodeKind, Sampling};

/// Columns, threads and arena beyond these are refused before anything is
/// multiplied with them.
const COLUMNS_MAX: u32 = 1 << 16;
const THREADS_MAX: u32 = 1 << 10;
const ARENA_BYTES_MAX: u64 = 1 << 46;
/// Pieces of tensors that all steps together use, at most: each is looked at.
const PIECE_USES_MAX: usize = 1 << 24;

/// A plan that passed [`check`]; the runtime executes nothing else.
#[derive(Debug)]
pub struct CheckedPlan(Plan);

impl CheckedPlan {
    pub fn plan(&self) -> &Plan {
        &self.0
    }

    pub fn into_plan(self) -> Plan {
        self.0
    }
}

/// The first violated rule, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckError(pub String);

impl std::fmt::Display for CheckError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the plan is inconsistent: {}", self.0)
    }
}

impl std::error::Error for CheckError {}

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(CheckError(format!($($message)+)));
        }
    };
}
use ensure;

/// Proves a plan safe to execute with a code section of `code_bytes` bytes.
pub fn check(plan: Plan, code_bytes: u64) -> Result<CheckedPlan, CheckError> {
    check_limits(&plan)?;
    check_weights(&plan)?;
    check_kernels(&plan, code_bytes)?;
    check_arena(&plan)?;
    check_steps(&plan)?;
    pages::check_uses(&plan)?;
    check_program(&plan)?;
    Ok(CheckedPlan(plan))
}

fn check_limits(plan: &Plan) -> Result<(), CheckError> {
    let range = |what: &str, value: u32, max: u32| {
        ensure!(
            (1..=max).contains(&value),
            "{what} is {value}, not 1..={max}"
        );
        Ok(())
    };
    range("columns_max", plan.columns_max, COLUMNS_MAX)?;
    range("head_columns_max", plan.head_columns_max, plan.columns_max)?;
    // The logits of the sequences' newest tokens are computed together.
    let sequences = plan.head_columns_max.min(SEQUENCES_MAX);
    range("sequences_max", plan.sequences_max, sequences)?;
    range("threads_max", plan.threads_max, THREADS_MAX)?;
    let extent = omex_kernels::spec::EXTENT_MAX;
    range("the vocabulary", plan.model.vocabulary, extent)?;
    let positions = omex_kernels::spec::CONTEXT_MAX;
    range("the context", plan.model.context, positions)?;
    let ahead = plan.target.prefetch_pages;
    ensure!(
        ahead <= PREFETCH_PAGES_MAX,
        "code asks for memory {ahead} pages ahead"
    );
    ensure!(
        plan.arena_bytes <= ARENA_BYTES_MAX,
        "the arena has {} bytes",
        plan.arena_bytes
    );
    let args = plan.steps.iter().flat_map(|step| &step.args);
    let tensors = args.filter_map(|arg| match arg {
        Arg::Tensor(id) => plan.weights.tensors.get(id.index()),
        Arg::Buffer(_) | Arg::SelectedColumn(_) | Arg::Constants { .. } => None,
    });
    let uses = tensors.fold(0usize, |sum, tensor| {
        sum.saturating_add(tensor.pieces.len())
    });
    ensure!(
        uses <= PIECE_USES_MAX,
        "the steps use {uses} pieces of tensors"
    );
    let ends = &plan.model.end_tokens;
    ensure!(
        ends.is_sorted() && ends.iter().all(|&t| t < plan.model.vocabulary),
        "end tokens are not sorted ids of the vocabulary"
    );
    Ok(())
}

fn check_weights(plan: &Plan) -> Result<(), CheckError> {
    let weights = &plan.weights;
    let mut end = 0u64;
    for (i, page) in weights.pages.iter().enumerate() {
        let page_end = page.file_offset.checked_add(page.bytes);
        ensure!(
            page.bytes > 0
                && page.file_offset >= end
                && page.file_offset.is_multiple_of(PAGE_ALIGN)
                && page_end.is_some_and(|e| e <= weights.packed_file_bytes),
            "page {i} lies at {} with {} bytes",
            page.file_offset,
            page.bytes
        );
        end = page.file_offset + page.bytes;
    }
    for tensor in &weights.tensors {
        check_tensor(plan, tensor)?;
    }
    match &weights.source {
        WeightSource::Mapped => {}
        WeightSource::Read { slots } => {
            ensure!(
                slots.len() == weights.pages.len(),
                "{} slots for {} pages",
                slots.len(),
                weights.pages.len()
            );
            let mut seen = vec![false; plan.buffers.len()];
            for (page, &slot) in slots.iter().enumerate() {
                pages::check_resident(plan, page, slot, &mut seen)?;
            }
        }
        WeightSource::Paged(paged) => pages::check_reads(plan, paged)?,
    }
    Ok(())
}

fn check_tensor(plan: &Plan, tensor: &Tensor) -> Result<(), CheckError> {
    let name = &tensor.name;
    let Some((units, unit_bytes)) = tensor.unit() else {
        return Err(CheckError(format!("tensor {name} has an impossible shape")));
    };
    let mut next = 0u32;
    for piece in &tensor.pieces {
        let page = plan.weights.pages.get(piece.page.index());
        let bytes = piece.units as u64 * unit_bytes;
        let fits = page.is_some_and(|page| {
            piece
                .offset
                .checked_add(bytes)
                .is_some_and(|end| end <= page.bytes)
        });
        ensure!(
            fits && piece.units > 0
                && piece.offset.is_multiple_of(64)
                && piece.first_unit == next
                && piece.units <= units - next,
            "a piece of tensor {name} leaves its page or its place"
        );
        next += piece.units;
    }
    ensure!(next == units, "tensor {name} has {next} of {units} units");
    Ok(())
}

fn check_kernels(plan: &Plan, code_bytes: u64) -> Result<(), CheckError> {
    for (i, kernel) in plan.kernels.iter().enumerate() {
        let spec = kernel.spec();
        spec.validate()
            .map_err(|e| CheckError(format!("kernel {i}: {e}")))?;
        if let Some(code) = kernel.code {
            ensure!(
                matches!(spec, KernelSpec::Matmul { .. }),
                "kernel {i} has code but no calling convention"
            );
            let end = code.offset.checked_add(code.bytes);
            ensure!(
                code.bytes > 0
                    && code.offset.is_multiple_of(64)
                    && end.is_some_and(|e| e <= code_bytes),
                "the code of kernel {i} leaves the code section"
            );
        }
        let context = plan.model.context;
        let ring_ok = match *spec {
            KernelSpec::Attention { ring, window, .. } => {
                let reach = window as u64 + plan.columns_max as u64 - 1;
                ring >= context || (window > 0 && ring as u64 >= reach)
            }
            // Units of a pass write groups of slots of their own.
            KernelSpec::KvStore { ring, .. } => {
                ring >= context || ring / KV_GROUP >= kv_groups(plan.columns_max)
            }
            KernelSpec::Embed { rows, .. } => {
                ensure!(
                    rows >= plan.model.vocabulary,
                    "the embedding table has {rows} rows"
                );
                true
            }
            KernelSpec::RopeTable { .. }
            | KernelSpec::Norm { .. }
            | KernelSpec::Quantize { .. }
            | KernelSpec::Matmul { .. }
            | KernelSpec::NormAddNorm { .. }
            | KernelSpec::Gate { .. }
            | KernelSpec::Softcap { .. } => true,
        };
        ensure!(ring_ok, "the key-value ring of kernel {i} is too short");
    }
    Ok(())
}

fn check_arena(plan: &Plan) -> Result<(), CheckError> {
    let moments = plan.moments();
    let (sample, text) = (plan.sample_moment(), plan.text_moment());
    for buffer in &plan.buffers {
        let name = &buffer.name;
        let end = buffer.offset.checked_add(buffer.bytes);
        ensure!(
            buffer.bytes > 0
                && buffer.offset.is_multiple_of(64)
                && end.is_some_and(|e| e <= plan.arena_bytes),
            "buffer {name} leaves the arena"
        );
        let (first, end) = (buffer.first_phase, buffer.end_phase);
        let lives = match buffer.kind {
            BufferKind::Activation => end <= sample,
            BufferKind::Tokens => (first, end) == (0, sample),
            BufferKind::Logits => end == text,
            // A generation's, which begins once its text is tokens, unless others
            // are on their way then.
            BufferKind::KvRing if plan.sequences_max > 1 => (first, end) == (0, moments),
            BufferKind::KvRing => first == 0 && end >= text,
            BufferKind::Scratch => first >= sample,
            BufferKind::ResidentPage | BufferKind::PageSlot | BufferKind::Session => {
                (first, end) == (0, moments)
            }
        };
        ensure!(
            first < end && end <= moments && lives,
            "buffer {name} is live in moments {first}..{end} of {moments}"
        );
    }
    check_overlaps(&plan.buffers)?;
    let tokens = buffer(plan, plan.tokens_buffer)?;
    ensure!(
        tokens.kind == BufferKind::Tokens && tokens.bytes >= plan.columns_max as u64 * 4,
        "the token buffer does not hold a pass"
    );
    let logits = buffer(plan, plan.logits_buffer)?;
    let row = omex_kernels::pad_to_panel(plan.model.vocabulary) as u64 * 4;
    ensure!(
        logits.kind == BufferKind::Logits && logits.bytes >= row * u64::from(plan.head_columns_max),
        "the logits buffer does not hold the vocabulary"
    );
    check_session(plan)
}

/// Checks that no two buffers share memory while both are live. All of them are in
/// bounds, not empty, and live for a moment at least.
fn check_overlaps(buffers: &[Buffer]) -> Result<(), CheckError> {
    // At each moment what dies leaves before what is born comes.
    let births = buffers.iter().map(|b| (b.first_phase, true, b));
    let deaths = buffers.iter().map(|b| (b.end_phase, false, b));
    let mut events: Vec<_> = births.chain(deaths).collect();
    events.sort_unstable_by_key(|&(moment, is_birth, _)| (moment, is_birth));
    // By offset: what is live, which does not overlap.
    let mut live: BTreeMap<u64, &Buffer> = BTreeMap::new();
    for (_, is_birth, buffer) in events {
        if !is_birth {
            live.remove(&buffer.offset);
            continue;
        }
        let end = buffer.offset + buffer.bytes;
        if let Some((_, other)) = live.range(..end).next_back() {
            ensure!(
                other.offset + other.bytes <= buffer.offset,
                "buffers {} and {} overlap",
                other.name,
                buffer.name
            );
        }
        live.insert(buffer.offset, buffer);
    }
    Ok(())
}

/// Checks that what the runtime works with has room of its own. Buffers do not
/// overlap where both are live.
fn check_session(plan: &Plan) -> Result<(), CheckError> {
    let (sample, text) = (plan.sample_moment(), plan.text_moment());
    let needed = SessionBytes::of(plan);
    let (session, scratch) = (BufferKind::Session, BufferKind::Scratch);
    let ids = &plan.session;
    for (id, kind, bytes, moment) in [
        (ids.text, session, needed.text, text),
        (ids.history, session, needed.history, text),
        (ids.tokenizer, scratch, needed.tokenizer, text),
        (ids.sampler, scratch, needed.sampler, sample),
    ] {
        let buffer = buffer(plan, id)?;
        ensure!(
            buffer.kind == kind
                && buffer.bytes >= bytes
                && (buffer.first_phase..buffer.end_phase).contains(&moment),
            "buffer {} does not hold the {bytes} bytes that the runtime works with",
            buffer.name
        );
    }
    ensure!(
        ids.text != ids.history,
        "text and tokens are in the same buffer"
    );
    Ok(())
}

/// What a step does to a buffer.
struct Use {
    buffer: BufferId,
    access: Access,
    /// Nothing is left for later steps to write.
    complete: bool,
}

/// A matmul of several steps, the last of which is still to come.
struct OpenMatmul<'a> {
    step: &'a Step,
    next_panel: u32,
}

/// Checks which panels a step computes. Returns whether it continues a matmul
/// and whether it completes it.
fn check_panels<'a>(
    plan: &Plan,
    step: &'a Step,
    open: &mut Option<OpenMatmul<'a>>,
) -> Result<(bool, bool), CheckError> {
    let Some(range) = step.panels else {
        return Ok((false, true));
    };
    let name = &step.name;
    let kernel = plan.kernels.get(step.kernel.index());
    let panels = match kernel.map(|k| k.spec()) {
        Some(spec @ KernelSpec::Matmul { .. }) => spec.units(1),
        Some(_) | None => return Err(CheckError(format!("step {name} has no panels"))),
    };
    let first = match open {
        Some(open) => {
            ensure!(
                open.step.kernel == step.kernel && open.step.args == step.args,
                "step {name} comes between the steps of {}",
                open.step.name
            );
            open.next_panel
        }
        None => 0,
    };
    ensure!(
        range.first == first && range.count > 0 && range.count <= panels - first,
        "step {name} computes panels {}..+{} behind {first} of {panels}",
        range.first,
        range.count
    );
    let next_panel = first + range.count;
    let complete = next_panel == panels;
    *open = (!complete).then_some(OpenMatmul { step, next_panel });
    Ok((first > 0, complete))
}

fn check_steps(plan: &Plan) -> Result<(), CheckError> {
    let phases = plan.phases.len() as u32;
    ensure!(
        plan.body_phases >= 1 && plan.body_phases < phases,
        "{} body phases of {phases}",
        plan.body_phases
    );
    let mut written = vec![false; plan.buffers.len()];
    written[plan.tokens_buffer.index()] = true;
    for (id, buffer) in plan.buffers.iter().enumerate() {
        written[id] |= buffer.kind == BufferKind::KvRing;
    }
    let mut after_body = written.clone();
    let mut next = 0u32;
    let mut open: Option<OpenMatmul<'_>> = None;
    for (p, phase) in plan.phases.iter().enumerate() {
        let p = p as u32;
        let end = next.checked_add(phase.steps);
        ensure!(
            phase.first_step == next
                && phase.steps > 0
                && end.is_some_and(|e| e as usize <= plan.steps.len()),
            "phase {p} does not continue the steps"
        );
        if p == plan.body_phases {
            after_body.copy_from_slice(&written);
        }
        let steps = &plan.steps[next as usize..(next + phase.steps) as usize];
        next += phase.steps;
        let in_head = p >= plan.body_phases;
        ensure!(
            open.is_none() || p != plan.body_phases,
            "a matmul reaches from the body into the head"
        );
        let mut uses: Vec<Vec<Use>> = Vec::with_capacity(steps.len());
        for step in steps {
            let (continues, complete) = check_panels(plan, step, &mut open)?;
            let mut step_uses = check_step(plan, step, p, in_head, complete)?;
            if continues {
                // A residual in place was complete when the first part began.
                let out = step_uses.last().map(|u| u.buffer);
                step_uses.retain(|u| u.access == Access::Write || Some(u.buffer) != out);
            }
            for u in step_uses.iter().filter(|u| u.access == Access::Read) {
                let buffer = &plan.buffers[u.buffer.index()];
                ensure!(
                    written[u.buffer.index()],
                    "step {} reads {} before it is written",
                    step.name,
                    buffer.name
                );
                // The head may run for several columns of one pass.
                ensure!(
                    !in_head || !after_body[u.buffer.index()] || buffer.end_phase == phases,
                    "step {} of the head reads {}, which dies before the head ends",
                    step.name,
                    buffer.name
                );
            }
            for u in step_uses.iter().filter(|u| u.access == Access::Write) {
                let buffer = &plan.buffers[u.buffer.index()];
                ensure!(
                    !in_head || !after_body[u.buffer.index()],
                    "step {} of the head overwrites {} of the body",
                    step.name,
                    buffer.name
                );
            }
            uses.push(step_uses);
        }
        for (i, a) in uses.iter().enumerate() {
            for (j, b) in uses.iter().enumerate() {
                let conflict = i != j
                    && a.iter().any(|a| {
                        a.access == Access::Write && b.iter().any(|b| a.buffer == b.buffer)
                    });
                ensure!(
                    !conflict,
                    "steps {} and {} of one phase conflict",
                    steps[i].name,
                    steps[j].name
                );
            }
        }
        for u in uses.iter().flatten() {
            if u.access == Access::Write {
                written[u.buffer.index()] = u.complete;
            }
        }
    }
    ensure!(open.is_none(), "a matmul ends without its last panels");
    ensure!(
        next as usize == plan.steps.len(),
        "{} steps lie behind the last phase",
        plan.steps.len() - next as usize
    );
    ensure!(
        written[plan.logits_buffer.index()],
        "no step writes the logits"
    );
    Ok(())
}

fn check_step(
    plan: &Plan,
    step: &Step,
    phase: u32,
    in_head: bool,
    complete: bool,
) -> Result<Vec<Use>, CheckError> {
    let name = &step.name;
    let Some(kernel) = plan.kernels.get(step.kernel.index()) else {
        return Err(CheckError(format!("step {name} has no kernel")));
    };
    let spec = kernel.spec();
    let columns = if in_head {
        plan.head_columns_max
    } else {
        plan.columns_max
    };
    ensure!(
        !(in_head && matches!(spec, KernelSpec::Attention { .. })),
        "step {name} attends in the head"
    );
    let operands = spec.operands(columns);
    let per_column = spec.operands(1);
    let operands = operands.as_slice();
    ensure!(
        step.args.len() == operands.len(),
        "step {name} has {} arguments, its kernel {}",
        step.args.len(),
        operands.len()
    );
    let mut uses = Vec::with_capacity(operands.len());
    for (i, (&arg, operand)) in step.args.iter().zip(operands).enumerate() {
        match (operand.class, arg) {
            (OperandClass::Buffer | OperandClass::KvRing, Arg::Buffer(id)) => {
                let bytes = match operand.class {
                    OperandClass::KvRing => operand.bytes * u64::from(plan.sequences_max),
                    OperandClass::Buffer | OperandClass::Weights => operand.bytes,
                };
                check_slot(plan, step, operand, id, bytes, phase)?;
                let row = u64::from(omex_kernels::pad_to_panel(plan.model.vocabulary)) * 4;
                ensure!(
                    id != plan.logits_buffer
                        || plan.head_columns_max == 1
                        || per_column.as_slice()[i].bytes == row,
                    "step {name} writes logits in rows that are not the vocabulary's"
                );
                uses.push(Use {
                    buffer: id,
                    access: operand.access,
                    complete,
                });
            }
            (OperandClass::Buffer, Arg::SelectedColumn(id)) => {
                ensure!(
                    in_head && operand.access == Access::Read,
                    "step {name} selects a column outside the head"
                );
                // Any column of the pass may be selected.
                let bytes = per_column.as_slice()[i].bytes * plan.columns_max as u64;
                check_slot(plan, step, operand, id, bytes, phase)?;
                uses.push(Use {
                    buffer: id,
                    access: Access::Read,
                    complete,
                });
            }
            (OperandClass::Weights, Arg::Tensor(id)) => check_weight_arg(plan, step, i, id)?,
            (OperandClass::Weights, Arg::Constants { first, count }) => {
                let end = first as u64 + count as u64;
                ensure!(
                    matches!(spec, KernelSpec::RopeTable { pairs, .. } if *pairs == count)
                        && end <= plan.constants.len() as u64,
                    "step {name} reads constants {first}..{end}"
                );
            }
            (OperandClass::Buffer | OperandClass::KvRing, Arg::Tensor(_))
            | (OperandClass::Buffer | OperandClass::KvRing, Arg::Constants { .. })
            | (OperandClass::KvRing, Arg::SelectedColumn(_))
            | (OperandClass::Weights, Arg::Buffer(_) | Arg::SelectedColumn(_)) => {
                return Err(CheckError(format!(
                    "argument {} of step {name} is of the wrong class",
                    operand.name
                )));
            }
        }
    }
    // A kernel may read and write one buffer only where its contract says so.
    for (i, a) in uses.iter().enumerate() {
        for b in &uses[i + 1..] {
            let in_place =
                matches!(spec, KernelSpec::Matmul { residual: true, .. }) && i + 2 == uses.len();
            let both_read = a.access == Access::Read && b.access == Access::Read;
            ensure!(
                a.buffer != b.buffer || both_read || in_place,
                "step {name} overwrites its own operand"
            );
        }
    }
    Ok(uses)
}

fn check_slot(
    plan: &Plan,
    step: &Step,
    operand: &Operand,
    id: BufferId,
    bytes: u64,
    phase: u32,
) -> Result<(), CheckError> {
    let buffer = buffer(plan, id)?;
    let kind_ok = match buffer.kind {
        BufferKind::Tokens => operand.access == Access::Read && operand.name == "tokens",
        BufferKind::Activation => operand.class == OperandClass::Buffer && operand.name != "tokens",
        BufferKind::Logits => operand.class == OperandClass::Buffer && operand.name != "tokens",
        BufferKind::KvRing => operand.class == OperandClass::KvRing,
        BufferKind::ResidentPage
        | BufferKind::PageSlot
        | BufferKind::Session
        | BufferKind::Scratch => false,
    };
    ensure!(
        kind_ok,
        "operand {} of step {} is in buffer {}, which is of another kind",
        operand.name,
        step.name,
        buffer.name
    );
    ensure!(
        bytes <= buffer.bytes,
        "operand {} of step {} needs {bytes} bytes, buffer {} has {}",
        operand.name,
        step.name,
        buffer.name,
        buffer.bytes
    );
    ensure!(
        (buffer.first_phase..buffer.end_phase).contains(&phase),
        "step {} uses buffer {} in phase {phase}, where it is not live",
        step.name,
        buffer.name
    );
    Ok(())
}

fn check_weight_arg(plan: &Plan, step: &Step, arg: usize, id: TensorId) -> Result<(), CheckError> {
    let Some(tensor) = plan.weights.tensors.get(id.index()) else {
        return Err(CheckError(format!(
            "step {} has no tensor {}",
            step.name, id.0
        )));
    };
    let vector = |len: u32| tensor.layout == PackedLayout::Vector && tensor.k == len;
    let matches = match *plan.kernels[step.kernel.index()].spec() {
        KernelSpec::Embed {
            format,
            layout,
            rows,
            k,
            ..
        } => {
            tensor.format.get() == Some(format)
                && tensor.table_layout() == Some(layout)
                && (tensor.rows, tensor.k) == (rows, k)
        }
        KernelSpec::Matmul {
            format, rows, k, ..
        } if arg == 0 => {
            tensor.format.get() == Some(format)
                && tensor.layout == PackedLayout::Panels
                && (tensor.rows, tensor.k) == (rows, k)
        }
        KernelSpec::Matmul { rows, .. } => vector(rows),
        KernelSpec::Norm { len, .. } | KernelSpec::NormAddNorm { len, .. } => vector(len),
        KernelSpec::KvStore { head_dim, .. } | KernelSpec::Attention { head_dim, .. } => {
            vector(head_dim)
        }
        KernelSpec::RopeTable { .. }
        | KernelSpec::Quantize { .. }
        | KernelSpec::Gate { .. }
        | KernelSpec::Softcap { .. } => false,
    };
    ensure!(
        matches,
        "tensor {} is not what step {} multiplies with",
        tensor.name,
        step.name
    );
    Ok(())
}

fn check_program(plan: &Plan) -> Result<(), CheckError> {
    let program = &plan.program;
    for (i, node) in program.nodes.iter().enumerate() {
        let id = &node.id;
        ensure!(
            node.depends_on.iter().all(|d| d.index() < i),
            "node {id} depends on a later one"
        );
        let mut dependencies = node.depends_on.clone();
        dependencies.sort_unstable();
        ensure!(
            dependencies.windows(2).all(|pair| pair[0] != pair[1]),
            "node {id} depends on one twice"
        );
        match &node.kind {
            NodeKind::Parse { inputs, window } => ensure!(
                inputs.iter().all(|i| i.index() < program.inputs.len())
                    && window.stride >= 1
                    && window.stride <= window.size,
                "node {id} reads a missing input or has an empty stride"
            ),
            NodeKind::Infer {
                prompt,
                tokens_max,
                sampling,
                stop,
            } => {
                let mut tokens = (prompt.prefix_tokens.iter())
                    .chain(&prompt.suffix_tokens)
                    .chain(prompt.empty_tokens.iter().flatten());
                ensure!(
                    tokens.all(|&t| t < plan.model.vocabulary)
                        && *tokens_max < plan.model.context
                        && stop.iter().all(|s| !s.is_empty())
                        && sampling_ok(sampling),
                    "node {id} has a prompt, limit or sampler outside its range"
                );
            }
            NodeKind::Merge { outputs: _ } => {}
        }
    }
    Ok(())
}

fn sampling_ok(s: &Sampling) -> bool {
    let finite = [s.temperature, s.top_p, s.min_p, s.repeat_penalty];
    finite.iter().all(|x| x.is_finite() && *x >= 0.0) && s.repeat_penalty > 0.0
}

fn buffer(plan: &Plan, id: BufferId) -> Result<&Buffer, CheckError> {
    plan.buffers
        .get(id.index())
        .ok_or_else(|| CheckError(format!("buffer {} does not exist", id.0)))
}
