//! `execution_graph`: reading its nodes.

use std::collections::HashMap;

use omex_grammar::reference::FrameworkReference;

use super::fields::{Context, Object, array, choice};
use super::flow::{RawInput, duplicate_id, read_inputs};
use super::inference::{self, InferenceSettings};
use super::json::Json;
use super::paths;
use super::task::{MemoryLevel, MergeMode, Window};
use crate::diagnostic::{Code, Diagnostic, Severity, Span, Spanned, quoted};

/// Above it a graph is refused: no task needs more, and every node costs memory.
const NODES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeType {
    Chunk,
    ParseCodebase,
    Infer,
    SemanticAnalysis,
    SummaryGeneration,
    Merge,
}

const NODE_TYPES: &[(&str, NodeType)] = &[
    ("token_chunk_parse", NodeType::Chunk),
    ("inference_slices", NodeType::Infer),
    ("output_merge_and_decode", NodeType::Merge),
    ("parse_codebase", NodeType::ParseCodebase),
    ("semantic_analysis", NodeType::SemanticAnalysis),
    ("summary_generation", NodeType::SummaryGeneration),
];

pub(super) const MERGE_MODES: &[(&str, MergeMode)] = &[
    ("concat", MergeMode::Concat),
    ("overlap", MergeMode::Overlap),
    ("last", MergeMode::Last),
    ("reduce", MergeMode::Reduce),
];

impl NodeType {
    pub(super) fn name(self) -> &'static str {
        NODE_TYPES
            .iter()
            .find(|(_, node_type)| *node_type == self)
            .map_or("", |(name, _)| name)
    }

    pub(super) fn infers(self) -> bool {
        match self {
            NodeType::Infer | NodeType::SemanticAnalysis | NodeType::SummaryGeneration => true,
            NodeType::Chunk | NodeType::ParseCodebase | NodeType::Merge => false,
        }
    }

    /// Whether it reads files.
    pub(super) fn reads_files(self) -> bool {
        matches!(self, NodeType::Chunk | NodeType::ParseCodebase)
    }
}

/// A node as written.
#[derive(Debug)]
pub(super) struct RawNode {
    pub(super) id: Spanned<String>,
    pub(super) span: Span,
    pub(super) node_type: Spanned<NodeType>,
    pub(super) depends_on: Vec<Spanned<String>>,
    pub(super) inputs: Option<Vec<RawInput>>,
    pub(super) output: Option<Spanned<String>>,
    pub(super) memory: Option<Spanned<MemoryLevel>>,
    pub(super) window: Option<Spanned<Window>>,
    pub(super) merge: Option<Spanned<MergeMode>>,
    /// None when the node says nothing about inference.
    pub(super) settings: Option<Box<InferenceSettings>>,
}

/// The nodes in the container's order, and the entry node. None when the graph cannot be linked.
pub(super) fn read(
    context: &mut Context<'_>,
    json: &Json<'_>,
    raw_prompt: bool,
) -> Option<(Vec<RawNode>, Option<Spanned<String>>)> {
    let mut object = Object::new(context, "`execution_graph`", json)?;
    let entry = object.string(context, "entry_node");
    let nodes = object.get("nodes");
    if nodes.is_none() {
        object.missing(context, "nodes", "a graph is an array of nodes");
    }
    let items = nodes.and_then(|json| array(context, "nodes", json));
    object.finish(context);
    let items = items?;
    if items.is_empty() {
        let span = nodes.map_or(json.span, |json| json.span);
        context.error(Code::NothingToRun, "the graph has no nodes", span, "");
        return None;
    }
    if items.len() > NODES_MAX {
        let message = format!(
            "the graph has {} nodes, and at most {NODES_MAX} are read",
            items.len()
        );
        context.error(
            Code::TooLarge,
            message,
            items[NODES_MAX].span,
            "the first one too many",
        );
        return None;
    }
    let mut ids: HashMap<&str, Span> = HashMap::with_capacity(items.len());
    let mut raw = Vec::with_capacity(items.len());
    for item in items {
        raw.push(read_node(context, item, raw_prompt));
    }
    for node in raw.iter().flatten() {
        if let Some(first) = ids.insert(&node.id.value, node.id.span) {
            duplicate_id(context, "node", &node.id, first);
        }
    }
    // A node that could not be read would make every reference to it look dangling.
    let nodes: Option<Vec<RawNode>> = raw.into_iter().collect();
    Some((nodes?, entry))
}

fn read_node(context: &mut Context<'_>, json: &Json<'_>, raw_prompt: bool) -> Option<RawNode> {
    let mut object = Object::new(context, "the node", json)?;
    let id = object.string(context, "id");
    if object.get("id").is_none() {
        object.missing(context, "id", "`depends_on` and messages name nodes by id");
    }
    let type_text = object.string(context, "type");
    if object.get("type").is_none() {
        let names: Vec<&str> = NODE_TYPES.iter().map(|(name, _)| *name).collect();
        object.missing(context, "type", &format!("one of {}", names.join(", ")));
    }
    let node_type = type_text.and_then(|text| {
        choice(context, "type", &text, NODE_TYPES).map(|value| Spanned::new(value, text.span))
    });
    let depends_on = object.strings(context, "depends_on").unwrap_or_default();
    let inputs = object.get("input").map(|json| read_inputs(context, json));
    let output = read_output(context, &mut object);
    read_runner(context, &mut object);
    let memory = object.choice(
        context,
        "memory_profile",
        &[
            ("low", MemoryLevel::Low),
            ("adaptive", MemoryLevel::Adaptive),
            ("high", MemoryLevel::High),
        ],
    );
    let window = read_node_window(context, &mut object);
    let merge = match object.new_member(context, "merge") {
        Some(_) => object.choice(context, "merge", MERGE_MODES),
        None => None,
    };
    let settings = read_settings(context, &mut object, raw_prompt);
    let span = object.span;
    if let Some(node_type) = node_type {
        report_idle_fields(context, &mut object, node_type.value);
    }
    object.finish(context);
    Some(RawNode {
        id: id?,
        span,
        node_type: node_type?,
        depends_on,
        inputs,
        output,
        memory,
        window,
        merge,
        settings,
    })
}

fn read_output(context: &mut Context<'_>, object: &mut Object<'_, '_>) -> Option<Spanned<String>> {
    let outputs = object.strings(context, "output")?;
    if let Some(second) = outputs.get(1) {
        context.error(
            Code::InvalidValue,
            "a node has one output",
            second.span,
            "the second one",
        );
    }
    let output = outputs.into_iter().next()?;
    paths::check(context, &output, 0, "--any-path").ok()?;
    Some(output)
}

fn read_runner(context: &mut Context<'_>, object: &mut Object<'_, '_>) {
    const RUNNERS: &[(&str, bool)] = &[
        ("local_cpu", true),
        ("auto", true),
        ("remote_inference_node", false),
        ("zsei-guided-agent", false),
    ];
    let Some(runner) = object.string(context, "runner") else {
        return;
    };
    if choice(context, "runner", &runner, RUNNERS) != Some(false) {
        return;
    }
    let severity = context.strict_severity();
    context.sink.push_with(severity, || {
        let message = format!(
            "the runner {} is replaced by `local_cpu`",
            quoted(&runner.value)
        );
        let diagnostic = match severity {
            Severity::Error => Diagnostic::error(Code::RunnerReplaced, message),
            Severity::Warning | Severity::Note => {
                Diagnostic::warning(Code::RunnerReplaced, message)
            }
        };
        diagnostic.at(context.source, runner.span, "no remote is configured")
    });
}

/// `token_window` as in a flow, or its two fields on the node itself.
fn read_node_window(
    context: &mut Context<'_>,
    object: &mut Object<'_, '_>,
) -> Option<Spanned<Window>> {
    let own = inference::window_fields(context, object);
    match object.new_get(context, "token_window") {
        Some(json) => {
            if own.is_some() {
                let message = "the node states its window twice; `token_window` wins";
                context.warn(Code::NoEffect, message, json.span, "this one is used");
            }
            inference::read_window(context, json)
        }
        None => own,
    }
}

fn read_settings(
    context: &mut Context<'_>,
    object: &mut Object<'_, '_>,
    raw_prompt: bool,
) -> Option<Box<InferenceSettings>> {
    const FIELDS: [&str; 6] = [
        "model_reference",
        "guidance",
        "prompt",
        "sampling",
        "max_tokens",
        "stop",
    ];
    let says_any = FIELDS
        .map(|name| object.get(name).is_some())
        .contains(&true);
    if !says_any {
        return None;
    }
    let mut settings = InferenceSettings::read(context, object, raw_prompt);
    settings.model = inference::read_model(context, object, "model_reference");
    settings.guidance = object.string(context, "guidance").and_then(|text| {
        context
            .parse(text, Code::ReferenceSyntax, FrameworkReference::parse)
            .ok()
    });
    Some(Box::new(settings))
}

/// Reports fields that mean nothing for a node of this type.
fn report_idle_fields(context: &mut Context<'_>, object: &mut Object<'_, '_>, node_type: NodeType) {
    let idle: &[&str] = match node_type {
        NodeType::Chunk | NodeType::ParseCodebase => &[
            "model_reference",
            "guidance",
            "prompt",
            "sampling",
            "max_tokens",
            "stop",
            "merge",
        ],
        NodeType::Merge => &[
            "model_reference",
            "guidance",
            "prompt",
            "sampling",
            "max_tokens",
            "stop",
            "token_window",
            "window_size",
        ],
        NodeType::Infer | NodeType::SemanticAnalysis => &["merge", "token_window", "window_size"],
        NodeType::SummaryGeneration => &["merge"],
    };
    for &name in idle {
        if let Some(member) = object.present(name) {
            context.sink.push_with(Severity::Warning, || {
                let message = format!(
                    "`{name}` has no effect on a node of type `{}`",
                    node_type.name()
                );
                Diagnostic::warning(Code::NoEffect, message).at(context.source, member.key_span, "")
            });
        }
    }
}
