//! `task_flow`: the inference program that every inferring node runs for each window.

use std::collections::HashMap;

use omex_grammar::reference::ModelReference;

use super::fields::{Context, Object, array};
use super::inference::{self, SamplingSettings};
use super::json::{Json, Value};
use super::paths;
use super::task::{InputPath, Window};
use crate::diagnostic::{Code, Diagnostic, Severity, Span, Spanned, did_you_mean, quoted};

/// A flow has at most one stage of each type; more are read only to report them.
const STAGES_MAX: usize = 1000;

/// A file that the container reads.
#[derive(Clone, Debug)]
pub(super) struct RawInput {
    /// What `--input` calls it.
    pub(super) name: String,
    /// The text as written, which may also be the name of an artefact.
    pub(super) path: Spanned<String>,
}

impl RawInput {
    /// The file, if the path is a fitting one.
    pub(super) fn file(&self, context: &mut Context<'_>) -> Option<InputPath> {
        paths::check(context, &self.path, 0, "--input NAME=PATH").ok()?;
        Some(paths::input_path(&self.path.value))
    }
}

/// A string, a 0.3 object `{name, path}`, or an array of them.
pub(super) fn read_inputs(context: &mut Context<'_>, json: &Json<'_>) -> Vec<RawInput> {
    let one = |context: &mut Context<'_>, json: &Json<'_>| match &json.value {
        Value::Object(_) => {
            let mut object = Object::new(context, "the input", json)?;
            let name = object.string(context, "name");
            let path = object.string(context, "path");
            if path.is_none() {
                object.missing(context, "path", "say which file to read");
            }
            object.finish(context);
            let path = path?;
            Some(RawInput {
                name: name.map_or_else(|| path.value.clone(), |name| name.value),
                path,
            })
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            let path = super::fields::string(context, "input", json)?;
            Some(RawInput {
                name: path.value.clone(),
                path,
            })
        }
    };
    match &json.value {
        Value::Array(items) => items.iter().filter_map(|item| one(context, item)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            one(context, json).into_iter().collect()
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum StageType {
    ModelLoad,
    Tokenize,
    ForwardPass,
    Sampler,
    Decode,
}

impl StageType {
    /// What its output is.
    fn output(self) -> &'static str {
        match self {
            StageType::ModelLoad => "a model",
            StageType::Tokenize => "tokens",
            StageType::ForwardPass => "logits",
            StageType::Sampler => "generated tokens",
            StageType::Decode => "text",
        }
    }

    fn name(self) -> &'static str {
        match self {
            StageType::ModelLoad => "model_load",
            StageType::Tokenize => "tokenize",
            StageType::ForwardPass => "forward_pass",
            StageType::Sampler => "greedy_sample or sample",
            StageType::Decode => "decode",
        }
    }
}

/// Each stage type as written, and whether it samples at random.
const STAGE_TYPES: &[(&str, (StageType, bool))] = &[
    ("model_load", (StageType::ModelLoad, false)),
    ("tokenize", (StageType::Tokenize, false)),
    ("forward_pass", (StageType::ForwardPass, false)),
    ("greedy_sample", (StageType::Sampler, false)),
    ("sample", (StageType::Sampler, true)),
    ("decode", (StageType::Decode, false)),
];

/// Where a stage stands, for nodes that a flow implies.
#[derive(Clone, Debug)]
pub(super) struct StagePlace {
    pub(super) id: Spanned<String>,
    pub(super) span: Span,
}

/// What the flow says, merged over its stages.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow {
    pub(super) span: Span,
    pub(super) model: Option<Spanned<ModelReference>>,
    pub(super) load_layers: Option<Spanned<(u32, u32)>>,
    pub(super) compress: Option<Spanned<bool>>,
    pub(super) inputs: Vec<RawInput>,
    pub(super) window: Option<Spanned<Window>>,
    pub(super) sampling: SamplingSettings,
    /// The span of a `greedy_sample` stage's type.
    pub(super) greedy: Option<Span>,
    pub(super) sampled: bool,
    pub(super) max_tokens: Option<Spanned<u32>>,
    pub(super) stop: Option<Vec<Spanned<String>>>,
    pub(super) tokenize: Option<StagePlace>,
    pub(super) forward: Option<StagePlace>,
    pub(super) decode: Option<StagePlace>,
}

/// What earlier stages have put out, by name.
#[derive(Default)]
struct Scope {
    outputs: HashMap<String, (StageType, Span)>,
    seen: Vec<StageType>,
}

impl Scope {
    /// Checks that a stage's reference names an earlier output of the right kind.
    fn check(
        &self,
        context: &mut Context<'_>,
        field: &str,
        reference: Option<Spanned<String>>,
        wanted: StageType,
    ) {
        let Some(reference) = reference else {
            return;
        };
        let message = match self.outputs.get(&reference.value) {
            Some((found, _)) if *found == wanted => return,
            Some((found, _)) => {
                format!(
                    "`{field}` takes {}, and {} is {}",
                    wanted.output(),
                    quoted(&reference.value),
                    found.output()
                )
            }
            None => format!("no earlier stage outputs {}", quoted(&reference.value)),
        };
        let mut fitting: Vec<&str> = self
            .outputs
            .iter()
            .filter(|(_, (kind, _))| *kind == wanted)
            .map(|(name, _)| name.as_str())
            .collect();
        fitting.sort_unstable();
        let help = match did_you_mean(&reference.value, fitting.iter().copied())
            .or(fitting.first().copied())
        {
            Some(name) => format!("{} here: {}", wanted.output(), quoted(name)),
            None => format!("put a {} stage before this one", wanted.name()),
        };
        let mut diagnostic = Diagnostic::error(Code::StageReference, message)
            .at(context.source, reference.span, "")
            .help(help);
        if let Some((_, span)) = self.outputs.get(&reference.value) {
            diagnostic = diagnostic.label(context.source, *span, "it comes from here");
        }
        context.sink.push(diagnostic);
    }
}

pub(super) fn read(context: &mut Context<'_>, json: &Json<'_>) -> Option<Flow> {
    let stages = array(context, "task_flow", json)?;
    let mut flow = Flow {
        span: json.span,
        ..Flow::default()
    };
    let mut scope = Scope::default();
    let mut ids: HashMap<String, Span> = HashMap::new();
    if stages.len() > STAGES_MAX {
        let message = format!(
            "the flow has {} stages, and at most {STAGES_MAX} are read",
            stages.len()
        );
        context.error(Code::TooLarge, message, json.span, "");
        return None;
    }
    for json in stages {
        if let Some(object) = Object::new(context, "the stage", json) {
            read_stage(context, object, &mut flow, &mut scope, &mut ids);
        }
    }
    Some(flow)
}

fn read_stage(
    context: &mut Context<'_>,
    mut object: Object<'_, '_>,
    flow: &mut Flow,
    scope: &mut Scope,
    ids: &mut HashMap<String, Span>,
) {
    let span = object.span;
    let id = object.string(context, "id");
    match &id {
        None => object.missing(context, "id", "messages and traces name stages by id"),
        Some(id) => {
            if let Some(first) = ids.insert(id.value.clone(), id.span) {
                duplicate_id(context, "stage", id, first);
            }
        }
    }
    let type_text = object.string(context, "type");
    let Some(type_text) = type_text else {
        if object.get("type").is_none() {
            object.missing(
                context,
                "type",
                "one of model_load, tokenize, forward_pass, greedy_sample, sample, decode",
            );
        }
        return;
    };
    let Some((stage, random)) = super::fields::choice(context, "type", &type_text, STAGE_TYPES)
    else {
        return;
    };
    let id = id.unwrap_or_else(|| Spanned::new(stage.name().to_owned(), span));
    let place = Some(StagePlace { id, span });
    if scope.seen.contains(&stage) {
        let message = format!("the flow has two stages of type {}", stage.name());
        context.error(
            Code::FlowShape,
            message,
            type_text.span,
            "a flow is one inference program",
        );
    }
    match stage {
        StageType::ModelLoad => {
            flow.model = read_stage_model(context, &mut object);
            flow.load_layers = read_layers(context, &mut object);
            flow.compress =
                object.choice(context, "compression", &[("zstd", true), ("none", false)]);
        }
        StageType::Tokenize => {
            if let Some(json) = object.get("input") {
                flow.inputs = read_inputs(context, json);
            }
            for input in &flow.inputs {
                if let Some((kind, from)) = scope.outputs.get(&input.path.value) {
                    let message = format!(
                        "`input` takes text, and {} is {}",
                        quoted(&input.path.value),
                        kind.output()
                    );
                    context.sink.push(
                        Diagnostic::error(Code::StageReference, message)
                            .at(context.source, input.path.span, "")
                            .label(context.source, *from, "it comes from here"),
                    );
                }
            }
            flow.tokenize = place;
        }
        StageType::ForwardPass => {
            let model = object.string(context, "model");
            scope.check(context, "model", model, StageType::ModelLoad);
            let input = object.string(context, "input");
            scope.check(context, "input", input, StageType::Tokenize);
            flow.window = object
                .get("token_window")
                .and_then(|json| inference::read_window(context, json));
            flow.forward = place;
        }
        StageType::Sampler => {
            let logits = object.string(context, "logits");
            scope.check(context, "logits", logits, StageType::ForwardPass);
            flow.max_tokens = object.whole_u32(context, "max_tokens", 1);
            if object.new_member(context, "stop").is_some() {
                flow.stop = inference::read_stop(context, &mut object);
            }
            if random {
                flow.sampling = SamplingSettings::read(context, &mut object);
                flow.sampled = true;
            } else {
                flow.greedy = Some(type_text.span);
            }
        }
        StageType::Decode => {
            let input = object.string(context, "input");
            scope.check(context, "input", input, StageType::Sampler);
            flow.decode = place;
        }
    }
    if let Some(output) = object.string(context, "output")
        && let Some((_, first)) = scope
            .outputs
            .insert(output.value.clone(), (stage, output.span))
    {
        let message = format!("two stages output {}", quoted(&output.value));
        context.sink.push(
            Diagnostic::error(Code::StageReference, message)
                .at(context.source, output.span, "again here")
                .label(context.source, first, "first here"),
        );
    }
    scope.seen.push(stage);
    object.finish(context);
}

pub(super) fn duplicate_id(
    context: &mut Context<'_>,
    what: &str,
    id: &Spanned<String>,
    first: Span,
) {
    context.sink.push_with(Severity::Error, || {
        Diagnostic::error(
            Code::DuplicateId,
            format!("two {what}s have the id {}", quoted(&id.value)),
        )
        .at(context.source, id.span, "again here")
        .label(context.source, first, "first here")
    });
}

fn read_stage_model(
    context: &mut Context<'_>,
    object: &mut Object<'_, '_>,
) -> Option<Spanned<ModelReference>> {
    let path = inference::read_model(context, object, "model_path");
    let reference = inference::read_model(context, object, "model_reference");
    if let (Some(path), Some(reference)) = (&path, &reference)
        && path.value != reference.value
    {
        context.sink.push(
            Diagnostic::warning(
                Code::ModelsDiffer,
                "the stage names two models; `model_path` wins",
            )
            .at(context.source, path.span, "this one is used")
            .label(context.source, reference.span, "this one is not"),
        );
    }
    path.or(reference)
}

/// `[a, b]`, half-open.
fn read_layers(
    context: &mut Context<'_>,
    object: &mut Object<'_, '_>,
) -> Option<Spanned<(u32, u32)>> {
    let json = object.get("load_layers")?;
    let items = array(context, "load_layers", json)?;
    let bounds: Vec<u32> = items
        .iter()
        .filter_map(|item| {
            super::fields::whole(context, "load_layers", item, 0..=u64::from(u32::MAX))
        })
        .map(|n| u32::try_from(n.value).expect("the range fits 32 bits"))
        .collect();
    match bounds[..] {
        [first, end] if items.len() == 2 && first <= end => {
            Some(Spanned::new((first, end), json.span))
        }
        _ => {
            if bounds.len() == items.len() {
                context.sink.push(
                    Diagnostic::error(Code::InvalidValue, "`load_layers` is not a range of layers")
                        .at(context.source, json.span, "expected [FIRST, END]")
                        .help("the range is half-open: [0, 10] are the layers 0 to 9"),
                );
            }
            None
        }
    }
}

impl Flow {
    /// Reports the stages without which a flow alone is no task.
    pub(super) fn require_complete(&self, context: &mut Context<'_>) -> bool {
        let has_sampler = self.greedy.is_some() || self.sampled;
        let stages = [
            (StageType::Tokenize, self.tokenize.is_some()),
            (StageType::ForwardPass, self.forward.is_some()),
            (StageType::Sampler, has_sampler),
            (StageType::Decode, self.decode.is_some()),
        ];
        let mut complete = true;
        for (stage, _) in stages.iter().filter(|(_, present)| !present) {
            complete = false;
            let message = format!("the flow has no {} stage", stage.name());
            let start = self.span.start;
            context.error(
                Code::FlowShape,
                message,
                Span::new(start, start + 1),
                "without a graph the flow is the whole task",
            );
        }
        if let Some(tokenize) = &self.tokenize
            && self.inputs.is_empty()
        {
            complete = false;
            let start = tokenize.span.start;
            context.sink.push(
                Diagnostic::error(Code::MissingField, "the tokenize stage has no `input`")
                    .at(context.source, Span::new(start, start + 1), "this stage")
                    .help("name a file, or `-` for the standard input"),
            );
        }
        complete
    }
}
