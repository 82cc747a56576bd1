//! Task containers: JSON in, a typed [`Task`] out, with a finding for everything that is wrong.
//!
//! [`validate`] reads in three steps, each of which finds all that it can before the next one
//! starts: JSON with spans (`json`), fields with their types (`fields` and the readers on it),
//! and the graph's edges (`link`). `build` then fills in the defaults.

mod build;
mod fields;
mod flow;
mod graph;
mod inference;
mod json;
mod limits;
mod link;
mod paths;
mod policy;
mod prompt;
mod requirements;
mod supported;
mod task;
mod text;

use std::collections::HashMap;
use std::sync::Arc;

use crate::diagnostic::{Code, Diagnostic, Sink, Spanned, quoted};
use build::{Builder, Defaults, Program};
use fields::{Context, Object};
use inference::InferenceSettings;
use json::Json;

pub use json::CONTAINER_BYTES_MAX;
pub use requirements::ModelFacts;
pub use task::*;

/// How a container is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValidateOptions {
    /// `--strict`: unknown fields and replaced runners are errors.
    pub strict: bool,
    /// Paths in the container may leave the working directory.
    pub any_path: bool,
}

/// Reads a container. `name` is its path, for messages; callers read at most
/// [`CONTAINER_BYTES_MAX`] + 1 bytes of it.
///
/// The task is there if and only if no finding is an error. What it asks for and cannot be built
/// is told by [`Task::require_supported`].
pub fn validate(
    name: &str,
    bytes: Vec<u8>,
    options: &ValidateOptions,
) -> (Option<Task>, Vec<Diagnostic>) {
    let source = match json::decode(name, bytes) {
        Ok(source) => source,
        Err(error) => return (None, vec![error]),
    };
    let json = match json::parse(&source) {
        Ok(json) => json,
        Err(error) => return (None, vec![error]),
    };
    let mut context = Context {
        source: &source,
        sink: Sink::new(),
        strict: options.strict,
        any_path: options.any_path,
        version: Version::V0_3,
    };
    let task = read_task(&mut context, &json);
    let valid = !context.sink.has_errors();
    if let Some(task) = task.as_ref().filter(|_| valid)
        && let Some(warning) = task.container_limits_warning()
    {
        context.sink.push(warning);
    }
    (task.filter(|_| valid), context.sink.into_vec())
}

fn read_task(context: &mut Context<'_>, json: &Json<'_>) -> Option<Task> {
    let mut top = Object::new(context, "the container", json)?;
    let version = read_version(context, &mut top);
    context.version = version.unwrap_or(Version::V0_3);
    // Editors use it to find the schema.
    top.get("$schema");
    let id = read_id(context, &mut top);
    let type_text = top.string(context, "task_type");
    if top.get("task_type").is_none() {
        let names: Vec<&str> = prompt::TASK_TYPES.iter().map(|(name, _)| *name).collect();
        top.missing(
            context,
            "task_type",
            &format!("one of {}", names.join(", ")),
        );
    }
    let type_text =
        type_text.unwrap_or_else(|| Spanned::new(String::new(), policy::start(json.span)));
    let known = prompt::TASK_TYPES
        .iter()
        .find(|(name, _)| *name == type_text.value);
    let task_type = known.map_or_else(
        || TaskType::Other(type_text.value.clone()),
        |(_, known)| known.clone(),
    );
    let raw_prompt = task_type == TaskType::Completion;

    let mut unsupported = Vec::new();
    let about = policy::read_context(context, &mut top);
    let limits = about.limits(context, &mut top, &mut unsupported);
    let settings = InferenceSettings::read(context, &mut top, raw_prompt);
    let merge = match top.new_member(context, "merge") {
        Some(_) => top.choice(context, "merge", graph::MERGE_MODES),
        None => None,
    };
    let flow_json = top.get("task_flow");
    let flow = flow_json.and_then(|json| flow::read(context, json));
    let graph_json = top.get("execution_graph");
    let storage = policy::read_storage(context, &mut top);
    let completion = policy::read_completion(context, &mut top);
    let date = policy::read_metadata(context, &mut top);
    let has_flow = flow_json.is_some();
    let defaults = Defaults {
        flow: flow.unwrap_or_default(),
        top: settings,
        merge,
        prompt: prompt::default_prompt(&task_type).map(Arc::new),
        task_type: type_text.clone(),
    };
    let model = policy::read_model(context, &mut top, &defaults.flow);

    let program = match graph_json {
        Some(json) => {
            report_idle_flow_input(context, &defaults);
            read_graph(context, json, raw_prompt, &defaults, &mut unsupported)
        }
        None if has_flow => read_flow_alone(context, &defaults, &mut unsupported),
        None => {
            context.sink.push(
                Diagnostic::error(
                    Code::NothingToRun,
                    "the container has neither a graph nor a flow",
                )
                .at(context.source, policy::start(json.span), "this object")
                .help("add an `execution_graph`, a `task_flow`, or both"),
            );
            None
        }
    };
    report_overruled_sampling(context, &defaults);
    top.finish(context);
    let program = program?;
    Some(Task {
        source: context.source.clone(),
        version: version?,
        id: id?,
        task_type: Spanned::new(task_type, type_text.span),
        device_profile: about.device_profile,
        inputs: program.inputs,
        artefacts: program.artefacts,
        nodes: program.nodes,
        outputs: program.outputs,
        limits,
        model,
        storage,
        completion,
        any_path: context.any_path,
        date,
        unsupported,
    })
}

fn read_version(context: &mut Context<'_>, top: &mut Object<'_, '_>) -> Option<Version> {
    const HELP: &str = "write `\"omex_version\": \"0.3.0\"`";
    if top.get("omex_version").is_none() {
        top.missing(context, "omex_version", HELP);
    }
    let text = top.string(context, "omex_version")?;
    let mut parts = text.value.split('.');
    let numbers =
        [parts.next(), parts.next()].map(|part| part.and_then(|part| part.parse::<u32>().ok()));
    let patch =
        parts.next().is_none_or(|part| part.parse::<u32>().is_ok()) && parts.next().is_none();
    let version = match numbers {
        [Some(0), Some(1)] => Some(Version::V0_1),
        [Some(0), Some(2)] => Some(Version::V0_2),
        [Some(0), Some(3)] => Some(Version::V0_3),
        _ => None,
    };
    if version.is_none() || !patch {
        context.sink.push(
            Diagnostic::error(
                Code::UnknownVersion,
                format!("the version {} is not known", quoted(&text.value)),
            )
            .at(context.source, text.span, "expected 0.1, 0.2 or 0.3")
            .help(HELP),
        );
        return None;
    }
    version
}

/// The task's id names folders, so it holds nothing that a path could not.
fn read_id(context: &mut Context<'_>, top: &mut Object<'_, '_>) -> Option<Spanned<String>> {
    const BYTES_MAX: usize = 200;
    if top.get("task_id").is_none() {
        top.missing(
            context,
            "task_id",
            "traces and checkpoints are kept under it",
        );
    }
    let id = top.string(context, "task_id")?;
    let fits = !id.value.is_empty()
        && id.value.len() <= BYTES_MAX
        && !id.value.starts_with('.')
        && !id
            .value
            .chars()
            .any(|c| c.is_control() || matches!(c, '/' | '\\'));
    if !fits {
        context.sink.push(
            Diagnostic::error(
                Code::InvalidValue,
                format!("the task id {} cannot name a folder", quoted(&id.value)),
            )
            .at(context.source, id.span, "")
            .help("use letters, digits, `-` and `_`, at most 200 bytes"),
        );
        return None;
    }
    Some(id)
}

fn read_graph(
    context: &mut Context<'_>,
    json: &Json<'_>,
    raw_prompt: bool,
    defaults: &Defaults,
    unsupported: &mut Vec<Unsupported>,
) -> Option<Program> {
    let (mut nodes, entry) = graph::read(context, json, raw_prompt)?;
    let mut links = link::link(context, &nodes, entry.as_ref(), json.span)?;
    build::add_implied_nodes(&mut nodes, &mut links);
    Some(builder(context, defaults, unsupported).build(nodes, &links))
}

fn read_flow_alone(
    context: &mut Context<'_>,
    defaults: &Defaults,
    unsupported: &mut Vec<Unsupported>,
) -> Option<Program> {
    if !defaults.flow.require_complete(context) {
        return None;
    }
    let (nodes, links) = build::nodes_of_flow(&defaults.flow)?;
    Some(builder(context, defaults, unsupported).build(nodes, &links))
}

fn builder<'c, 'a>(
    context: &'c mut Context<'a>,
    defaults: &'c Defaults,
    unsupported: &'c mut Vec<Unsupported>,
) -> Builder<'c, 'a> {
    Builder {
        context,
        defaults,
        unsupported,
        program: Program::default(),
        input_ids: HashMap::new(),
    }
}

/// With a graph, the nodes say what is read; the flow's own input is not.
fn report_idle_flow_input(context: &mut Context<'_>, defaults: &Defaults) {
    if let Some(input) = defaults.flow.inputs.first() {
        let message = format!("the flow's input {} is not read", quoted(&input.path.value));
        context.sink.push(
            Diagnostic::warning(Code::NoEffect, message)
                .at(context.source, input.path.span, "")
                .note("with an `execution_graph`, each node's `input` says what is read"),
        );
    }
}

/// A `greedy_sample` stage wins over a temperature at the top.
fn report_overruled_sampling(context: &mut Context<'_>, defaults: &Defaults) {
    if let (Some(greedy), Some(temperature)) =
        (defaults.flow.greedy, defaults.top.sampling.temperature)
        && temperature.value > 0.0
    {
        context.sink.push(
            Diagnostic::warning(
                Code::NoEffect,
                "the temperature has no effect beside a `greedy_sample` stage",
            )
            .at(context.source, temperature.span, "")
            .label(context.source, greedy, "this stage is greedy")
            .help("use a stage of type `sample`"),
        );
    }
}
