//! Plans as text that parses back to the same plan: one record per item.
//!
//! One table of fields serves printing and parsing.

use std::fmt::Write;

use omex_grammar::ir::{Literal, Record, parse_records};
use omex_kernels::WeightFormat;
use omex_plan::frames::Frame;
use omex_plan::memory::{MemoryContract, MemoryItem, MemoryKind};
use omex_plan::packed::{Digest, FormatCode, PackedLayout, Page, Piece, Tensor};
use omex_plan::paging::{PagePlan, PageRead};
use omex_plan::prompt::{PromptTemplate, Trim};
use omex_plan::session::SessionBuffers;
use omex_plan::task::{Input, Node, NodeKind, Program, Sampling, Window};
use omex_plan::{
    Arg, Buffer, BufferId, BufferKind, CodeRange, InputId, Kernel, KernelId, Model, NodeId, PageId,
    PanelRange, Phase, Plan, Step, Target, TensorId, WeightSource, Weights,
};

use crate::ir::attribute::{Attribute, Attributes, Braces, Word, number, tuple};
use crate::ir::text::{TextError, spec_from_parts, spec_parts};

macro_rules! words {
    ($($type:ty { $($variant:ident = $word:literal),* })*) => {$(
        impl Word for $type {
            const ALL: &'static [Self] = &[$(Self::$variant),*];
            fn word(self) -> String {
                match self {
                    $(Self::$variant => $word,)*
                }
                .to_owned()
            }
        }
    )*};
}

words! {
    BufferKind {
        Tokens = "tokens", Activation = "activation", KvRing = "kv_ring",
        ResidentPage = "resident_page", PageSlot = "page_slot", Logits = "logits",
        Session = "session", Scratch = "scratch"
    }
    PackedLayout { Rows = "rows", Panels = "panels", Vector = "vector" }
    Trim { None = "none", Left = "left", Right = "right", Both = "both" }
    MemoryKind {
        Activations = "activations", KvCache = "kv_cache", ResidentPages = "resident_pages",
        PageSlots = "page_slots", MappedPages = "mapped_pages", Tokenizer = "tokenizer",
        Code = "code", Session = "session", PlanMetadata = "plan_metadata", Stacks = "stacks",
        Runtime = "runtime", Generator = "generator", EncoderTables = "encoder_tables", Kernel = "kernel"
    }
}

macro_rules! ids {
    ($($name:ident)*) => {$(
        impl Attribute for $name {
            fn literal(&self) -> Literal {
                self.0.literal()
            }
            fn from_literal(literal: &Literal) -> Option<$name> {
                u32::from_literal(literal).map($name)
            }
        }
    )*};
}

ids! { BufferId InputId KernelId NodeId PageId TensorId }

/// Numbers whose shortest decimal reads back as the same bits.
macro_rules! floats {
    ($($name:ident)*) => {$(
        impl Attribute for $name {
            fn literal(&self) -> Literal {
                Literal::Number(format!("{self:?}"))
            }
            fn from_literal(literal: &Literal) -> Option<$name> {
                number(literal)
            }
        }
    )*};
}

floats! { f32 f64 }

impl Attribute for i32 {
    fn literal(&self) -> Literal {
        Literal::number(self)
    }
    fn from_literal(literal: &Literal) -> Option<i32> {
        number(literal)
    }
}

/// Small structs as tuples of their fields.
macro_rules! tuples {
    ($($name:ident ( $($field:ident),* );)*) => {$(
        impl Attribute for $name {
            fn literal(&self) -> Literal {
                Literal::Tuple(vec![$(self.$field.literal()),*])
            }
            fn from_literal(literal: &Literal) -> Option<$name> {
                match tuple(literal)? {
                    [$($field),*] => Some($name {
                        $($field: Attribute::from_literal($field)?),*
                    }),
                    _ => None,
                }
            }
        }
    )*};
}

tuples! {
    Piece(page, offset, first_unit, units);
    CodeRange(offset, bytes);
    Phase(first_step, steps);
    PanelRange(first, count);
    PageRead(first_page, pages, slot, start_phase, first_phase, end_phase, compressed);
    Frame(file_offset, bytes);
    Window(size, stride);
}

impl Attribute for Digest {
    fn literal(&self) -> Literal {
        Literal::Text(self.iter().map(|b| format!("{b:02x}")).collect())
    }
    fn from_literal(literal: &Literal) -> Option<Digest> {
        let text = String::from_literal(literal)?;
        let mut digest = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (i, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(digest)
    }
}

/// The format's name, or its number where it has none.
impl Attribute for FormatCode {
    fn literal(&self) -> Literal {
        self.get().map_or(self.0.literal(), |f| f.literal())
    }
    fn from_literal(literal: &Literal) -> Option<FormatCode> {
        let named = WeightFormat::from_literal(literal).map(FormatCode::new);
        named.or_else(|| u32::from_literal(literal).map(FormatCode))
    }
}

/// `(buffer, 3)`, `(selected_column, 3)`, `(tensor, 3)`, `(constants, 0, 32)`.
impl Attribute for Arg {
    fn literal(&self) -> Literal {
        let (word, numbers) = match *self {
            Arg::Buffer(id) => ("buffer", vec![id.0]),
            Arg::SelectedColumn(id) => ("selected_column", vec![id.0]),
            Arg::Tensor(id) => ("tensor", vec![id.0]),
            Arg::Constants { first, count } => ("constants", vec![first, count]),
        };
        let word = std::iter::once(Literal::word(word));
        Literal::Tuple(word.chain(numbers.iter().map(u32::literal)).collect())
    }
    fn from_literal(literal: &Literal) -> Option<Arg> {
        let [Literal::Word(word), numbers @ ..] = tuple(literal)? else {
            return None;
        };
        let numbers: Option<Vec<u32>> = numbers.iter().map(u32::from_literal).collect();
        match (word.as_str(), &numbers?[..]) {
            ("buffer", &[id]) => Some(Arg::Buffer(BufferId(id))),
            ("selected_column", &[id]) => Some(Arg::SelectedColumn(BufferId(id))),
            ("tensor", &[id]) => Some(Arg::Tensor(TensorId(id))),
            ("constants", &[first, count]) => Some(Arg::Constants { first, count }),
            _ => None,
        }
    }
}

/// Declares which fields of a struct make a record.
macro_rules! records {
    ($($print:ident $parse:ident $name:ident { $($field:ident),* })*) => {$(
        fn $print(value: &$name) -> Vec<(&'static str, Literal)> {
            vec![$((stringify!($field), value.$field.literal())),*]
        }
        fn $parse(attributes: &mut Attributes<'_>) -> Result<$name, String> {
            Ok($name { $($field: attributes.take(stringify!($field))?),* })
        }
    )*};
}

records! {
    put_target take_target Target {
        name, arch, features, l2_bytes, memory_bytes_per_s, memory_latency_ns, prefetch_pages
    }
    put_model take_model Model { name, architecture, vocabulary, layers, context, end_tokens }
    put_page take_page Page { file_offset, bytes, digest }
    put_tensor take_tensor Tensor { name, format, layout, rows, k, pieces }
    put_buffer take_buffer Buffer { name, kind, offset, bytes, first_phase, end_phase }
    put_step take_step Step { kernel, args, panels, name, layer }
    put_paging take_paging PagePlan {
        resident, reads, depth, gather, frames, frames_file_bytes, stages, storage_bytes_per_s, memory_bytes_per_s, zstd_bytes_per_s, macs_per_s
    }
    put_session take_session SessionBuffers { text, history, tokenizer, sampler }
    put_input take_input Input { name, path, anywhere }
    put_prompt take_prompt PromptTemplate {
        prefix_tokens, prefix_text, trim, suffix_text, suffix_tokens, empty_tokens
    }
    put_sampling take_sampling Sampling {
        temperature, top_k, top_p, min_p, repeat_penalty, repeat_last, seed
    }
    put_memory take_memory MemoryItem { kind, bytes }
}

struct Printer(String);

impl Printer {
    fn record(&mut self, name: &str, fields: &[(&'static str, Literal)]) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{name}{}", Braces(fields));
    }
}

/// The text of a plan's metadata.
pub fn plan_text(plan: &Plan) -> String {
    let mut out = Printer(String::new());
    out.record(
        "plan",
        &[
            ("result_id", plan.result_id.literal()),
            ("arena_bytes", plan.arena_bytes.literal()),
            ("columns_max", plan.columns_max.literal()),
            ("head_columns_max", plan.head_columns_max.literal()),
            ("sequences_max", plan.sequences_max.literal()),
            ("threads_max", plan.threads_max.literal()),
            ("body_phases", plan.body_phases.literal()),
            ("tokens_buffer", plan.tokens_buffer.literal()),
            ("logits_buffer", plan.logits_buffer.literal()),
            ("task_id", plan.program.task_id.literal()),
        ],
    );
    out.record("session", &put_session(&plan.session));
    out.record("target", &put_target(&plan.target));
    out.record("model", &put_model(&plan.model));
    for item in &plan.memory.items {
        out.record("memory", &put_memory(item));
    }
    for input in &plan.program.inputs {
        out.record("input", &put_input(input));
    }
    for node in &plan.program.nodes {
        node_record(&mut out, node);
    }
    let weights = &plan.weights;
    let slots = match &weights.source {
        WeightSource::Mapped | WeightSource::Paged(_) => None,
        WeightSource::Read { slots } => Some(slots.clone()),
    };
    out.record(
        "weights",
        &[
            ("packed_digest", weights.packed_digest.literal()),
            ("packed_file_bytes", weights.packed_file_bytes.literal()),
            ("slots", slots.literal()),
        ],
    );
    if let WeightSource::Paged(paged) = &weights.source {
        out.record("paging", &put_paging(paged));
    }
    for page in &weights.pages {
        out.record("page", &put_page(page));
    }
    for tensor in &weights.tensors {
        out.record("tensor", &put_tensor(tensor));
    }
    out.record("constants", &[("values", plan.constants.literal())]);
    for kernel in &plan.kernels {
        let (word, mut fields) = spec_parts(kernel.spec());
        fields.push(("code", kernel.code.literal()));
        out.record(word, &fields);
    }
    for buffer in &plan.buffers {
        out.record("buffer", &put_buffer(buffer));
    }
    for step in &plan.steps {
        out.record("step", &put_step(step));
    }
    out.record("phases", &[("steps", plan.phases.literal())]);
    out.0
}

fn node_record(out: &mut Printer, node: &Node) {
    let mut fields = vec![
        ("id", node.id.literal()),
        ("depends_on", node.depends_on.literal()),
    ];
    let word = match &node.kind {
        NodeKind::Parse { inputs, window } => {
            fields.push(("inputs", inputs.literal()));
            fields.push(("window", window.literal()));
            "parse"
        }
        NodeKind::Infer {
            prompt,
            tokens_max,
            sampling,
            stop,
        } => {
            fields.push(("tokens_max", tokens_max.literal()));
            fields.push(("stop", stop.literal()));
            fields.extend(put_prompt(prompt));
            fields.extend(put_sampling(sampling));
            "infer"
        }
        NodeKind::Merge { outputs } => {
            fields.push(("outputs", outputs.literal()));
            "merge"
        }
    };
    out.record(word, &fields);
}

/// Reads the text of a plan.
///
/// # Errors
///
/// The first record that is wrong. Whether the plan is consistent is for
/// [`omex_plan::check`] to say.
pub fn parse_plan(text: &str) -> Result<Plan, TextError> {
    let mut plan = Plan {
        target: Target {
            name: String::new(),
            arch: String::new(),
            features: Vec::new(),
            l2_bytes: 0,
            memory_bytes_per_s: 0,
            memory_latency_ns: 0,
            prefetch_pages: 0,
        },
        model: Model {
            name: String::new(),
            architecture: String::new(),
            vocabulary: 0,
            layers: 0,
            context: 0,
            end_tokens: Vec::new(),
        },
        weights: Weights {
            packed_digest: [0; 32],
            packed_file_bytes: 0,
            source: WeightSource::Mapped,
            pages: Vec::new(),
            tensors: Vec::new(),
        },
        constants: Vec::new(),
        kernels: Vec::new(),
        buffers: Vec::new(),
        arena_bytes: 0,
        steps: Vec::new(),
        phases: Vec::new(),
        body_phases: 0,
        tokens_buffer: BufferId(0),
        logits_buffer: BufferId(0),
        session: SessionBuffers {
            text: BufferId(0),
            history: BufferId(0),
            tokenizer: BufferId(0),
            sampler: BufferId(0),
        },
        columns_max: 0,
        head_columns_max: 0,
        sequences_max: 0,
        threads_max: 0,
        program: Program {
            task_id: String::new(),
            inputs: Vec::new(),
            nodes: Vec::new(),
        },
        memory: MemoryContract { items: Vec::new() },
        result_id: [0; 32],
    };
    let mut missing = vec![
        "plan",
        "session",
        "target",
        "model",
        "weights",
        "constants",
        "phases",
    ];
    for record in &parse_records(text)? {
        read_record(&mut plan, record).map_err(|e| TextError::at(record.span.start, e))?;
        missing.retain(|name| *name != record.name);
    }
    match missing[..] {
        [] => Ok(plan),
        [first, ..] => Err(TextError::at(text.len(), format!("`{first}` is missing"))),
    }
}

fn read_record(plan: &mut Plan, record: &Record) -> Result<(), String> {
    if record.name.starts_with("kernel.") {
        let is_code = |(name, _): &&(String, Literal)| name == "code";
        let code = record.attributes.iter().find(is_code);
        let code = code.and_then(|(_, l)| Option::<CodeRange>::from_literal(l));
        let code = code.ok_or("attribute `code` is missing or wrong")?;
        let spec: Vec<_> = record
            .attributes
            .iter()
            .filter(|a| !is_code(a))
            .cloned()
            .collect();
        let spec = spec_from_parts(&record.name, &spec)?;
        plan.kernels.push(Kernel::new(spec, code));
        return Ok(());
    }
    let mut fields = Attributes::new(&record.attributes);
    match record.name.as_str() {
        "plan" => {
            plan.result_id = fields.take("result_id")?;
            plan.arena_bytes = fields.take("arena_bytes")?;
            plan.columns_max = fields.take("columns_max")?;
            plan.head_columns_max = fields.take("head_columns_max")?;
            plan.sequences_max = fields.take("sequences_max")?;
            plan.threads_max = fields.take("threads_max")?;
            plan.body_phases = fields.take("body_phases")?;
            plan.tokens_buffer = fields.take("tokens_buffer")?;
            plan.logits_buffer = fields.take("logits_buffer")?;
            plan.program.task_id = fields.take("task_id")?;
        }
        "session" => plan.session = take_session(&mut fields)?,
        "target" => plan.target = take_target(&mut fields)?,
        "model" => plan.model = take_model(&mut fields)?,
        "memory" => plan.memory.items.push(take_memory(&mut fields)?),
        "input" => plan.program.inputs.push(take_input(&mut fields)?),
        "parse" | "infer" | "merge" => {
            let node = take_node(&record.name, &mut fields)?;
            plan.program.nodes.push(node);
        }
        "weights" => {
            plan.weights.packed_digest = fields.take("packed_digest")?;
            plan.weights.packed_file_bytes = fields.take("packed_file_bytes")?;
            let slots: Option<Vec<BufferId>> = fields.take("slots")?;
            plan.weights.source =
                slots.map_or(WeightSource::Mapped, |slots| WeightSource::Read { slots });
        }
        "paging" => plan.weights.source = WeightSource::Paged(take_paging(&mut fields)?),
        "page" => plan.weights.pages.push(take_page(&mut fields)?),
        "tensor" => plan.weights.tensors.push(take_tensor(&mut fields)?),
        "constants" => plan.constants = fields.take("values")?,
        "buffer" => plan.buffers.push(take_buffer(&mut fields)?),
        "step" => plan.steps.push(take_step(&mut fields)?),
        "phases" => plan.phases = fields.take("steps")?,
        other => return Err(format!("`{other}` is no record of a plan")),
    }
    fields.finish()
}

fn take_node(word: &str, fields: &mut Attributes<'_>) -> Result<Node, String> {
    Ok(Node {
        id: fields.take("id")?,
        depends_on: fields.take("depends_on")?,
        kind: match word {
            "parse" => NodeKind::Parse {
                inputs: fields.take("inputs")?,
                window: fields.take("window")?,
            },
            "infer" => NodeKind::Infer {
                prompt: take_prompt(fields)?,
                tokens_max: fields.take("tokens_max")?,
                sampling: take_sampling(fields)?,
                stop: fields.take("stop")?,
            },
            _ => NodeKind::Merge {
                outputs: fields.take("outputs")?,
            },
        },
    })
}

/// The slots of the arena: offset, size, lifetime, kind and name, by offset.
pub fn arena_text(plan: &Plan) -> String {
    let mut buffers: Vec<&Buffer> = plan.buffers.iter().collect();
    buffers.sort_by_key(|b| (b.offset, b.first_phase));
    let mut out = format!(
        "; arena of {} bytes, {} phases\n;     offset        bytes   phases      kind           name\n",
        plan.arena_bytes,
        plan.phases.len()
    );
    for b in buffers {
        let phases = format!("{}..{}", b.first_phase, b.end_phase);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:>12} {:>12}   {phases:<11} {:<14} {}",
            b.offset,
            b.bytes,
            b.kind.word(),
            b.name
        );
    }
    out
}
