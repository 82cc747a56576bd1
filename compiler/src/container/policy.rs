//! The container's small objects: context, limits, model requirements, storage, completion.

use omex_grammar::quantization::Quantization;

use super::fields::{Context, Object};
use super::flow::Flow;
use super::json::Value;
use super::paths;
use super::task::{
    CompletionPolicy, Limits, ModelRequirements, RamLimit, RamOrigin, StoragePolicy, Unsupported,
};
use crate::diagnostic::{Code, Diagnostic, Span, Spanned, did_you_mean, quoted};
use crate::prompt::Date;

const MINUTE_MS: u64 = 60_000;
const MIB_SHIFT: u32 = 20;
const MODES: &[(&str, bool)] = &[("local", true), ("remote", false), ("hybrid", false)];

/// What `context` says.
#[derive(Default)]
pub(super) struct ContextObject {
    pub(super) device_profile: Option<Spanned<String>>,
    memory_limit: Option<Spanned<u64>>,
    /// Whether the task runs here.
    local: Option<Spanned<bool>>,
    guided: Option<Spanned<bool>>,
}

fn megabytes(
    context: &mut Context<'_>,
    object: &mut Object<'_, '_>,
    name: &'static str,
) -> Option<Spanned<u64>> {
    let megabytes = object.whole(context, name, 1..=u64::MAX >> MIB_SHIFT)?;
    Some(megabytes.map(|n| n << MIB_SHIFT))
}

pub(super) fn read_context(context: &mut Context<'_>, top: &mut Object<'_, '_>) -> ContextObject {
    let Some(mut object) = top.object(context, "context") else {
        return ContextObject::default();
    };
    // Who asked is for logs only.
    object.string(context, "source");
    object.string(context, "requested_by");
    let guided = object.boolean(context, "zsei_guided");
    let read = ContextObject {
        device_profile: object.string(context, "device_profile"),
        memory_limit: megabytes(context, &mut object, "memory_limit_mb"),
        local: object.choice(context, "execution_mode", MODES),
        guided: object.boolean(context, "zsei_guidance").or(guided),
    };
    object.finish(context);
    read
}

impl ContextObject {
    /// Reads `execution_mode` and `memory_profile` of the top level too, and joins them.
    pub(super) fn limits(
        &self,
        context: &mut Context<'_>,
        top: &mut Object<'_, '_>,
        unsupported: &mut Vec<Unsupported>,
    ) -> Limits {
        let mode = top.choice(context, "execution_mode", MODES);
        if let (Some(outer), Some(inner)) = (mode, self.local)
            && outer.value != inner.value
        {
            context.sink.push(
                Diagnostic::warning(Code::NoEffect, "two different execution modes are stated")
                    .at(context.source, inner.span, "here")
                    .label(context.source, outer.span, "and here"),
            );
        }
        for remote in [mode, self.local]
            .into_iter()
            .flatten()
            .filter(|local| !local.value)
        {
            let what = "an execution mode other than `local`".to_owned();
            unsupported.push(Unsupported {
                what,
                span: remote.span,
                needed: true,
            });
        }
        if let Some(guided) = self.guided.filter(|guided| guided.value) {
            unsupported.push(Unsupported {
                what: "ZSEI guidance".to_owned(),
                span: guided.span,
                needed: false,
            });
        }
        let mut ram = Vec::new();
        ram.extend(self.memory_limit.map(|limit| RamLimit {
            bytes: limit.value,
            origin: RamOrigin::ContextMemoryLimit(limit.span),
        }));
        if let Some(mut object) = top.object(context, "memory_profile") {
            let limit = megabytes(context, &mut object, "max_ram_mb");
            ram.extend(limit.map(|limit| RamLimit {
                bytes: limit.value,
                origin: RamOrigin::MemoryProfile(limit.span),
            }));
            if let Some(gpu) = object
                .boolean(context, "gpu_available")
                .filter(|gpu| gpu.value)
            {
                let message =
                    "`gpu_available` has no effect: whether there is a GPU is a fact of the target";
                context.warn(Code::NoEffect, message, gpu.span, "");
            }
            object.finish(context);
        }
        Limits { ram }
    }
}

pub(super) fn read_model(
    context: &mut Context<'_>,
    top: &mut Object<'_, '_>,
    flow: &Flow,
) -> ModelRequirements {
    let mut read = ModelRequirements {
        load_layers: flow.load_layers,
        compress: flow.compress,
        ..ModelRequirements::default()
    };
    let Some(mut object) = top.object(context, "model_requirements") else {
        return read;
    };
    read.family = object.string(context, "model_family");
    read.quantization = object
        .string(context, "quantization")
        .and_then(|text| quantization(context, &text));
    read.context_tokens = object.whole_u32(context, "max_sequence_tokens", 1);
    if let Some(strategy) = object.string(context, "token_window_strategy") {
        window_strategy(context, &strategy, flow);
    }
    object.finish(context);
    if let (Some(positions), Some(window)) = (read.context_tokens, flow.window)
        && window.value.size_tokens >= positions.value
    {
        let message = format!(
            "a window of {} tokens leaves no room in a context of {}",
            window.value.size_tokens, positions.value
        );
        context.sink.push(
            Diagnostic::error(Code::RuntimeLimits, message)
                .at(context.source, window.span, "the window")
                .label(context.source, positions.span, "the context")
                .note("prompt, window and generated tokens share the context"),
        );
    }
    read
}

fn quantization(
    context: &mut Context<'_>,
    text: &Spanned<String>,
) -> Option<Spanned<Quantization>> {
    match Quantization::parse(&text.value) {
        Ok(value) => Some(Spanned::new(value, text.span)),
        Err(_) => {
            let near = did_you_mean(&text.value, Quantization::names());
            context.sink.push(
                Diagnostic::error(
                    Code::QuantizationUnknown,
                    format!("the quantization {} is not known", quoted(&text.value)),
                )
                .at(context.source, text.span, "")
                .help(match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "write a width such as `int4` or a format such as `q4_k`".to_owned(),
                }),
            );
            None
        }
    }
}

fn window_strategy(context: &mut Context<'_>, strategy: &Spanned<String>, flow: &Flow) {
    if strategy.value == "truncate" {
        context.sink.push(
            Diagnostic::error(
                Code::InvalidValue,
                "the strategy `truncate` would drop input silently",
            )
            .at(context.source, strategy.span, "")
            .help("`sliding` reads all of the input, window by window"),
        );
        return;
    }
    let sliding = super::fields::choice(
        context,
        "token_window_strategy",
        strategy,
        &[("sliding", true), ("none", false)],
    );
    if let (Some(false), Some(window)) = (sliding, flow.window) {
        context.sink.push(
            Diagnostic::warning(
                Code::NoEffect,
                "the strategy `none` is contradicted by a token window",
            )
            .at(context.source, window.span, "this window is used")
            .label(context.source, strategy.span, "this has no effect"),
        );
    }
}

pub(super) fn read_storage(context: &mut Context<'_>, top: &mut Object<'_, '_>) -> StoragePolicy {
    let Some(mut object) = top.object(context, "storage_policy") else {
        return StoragePolicy::default();
    };
    let dir = object.string(context, "local_cache_dir");
    let read = StoragePolicy {
        allow_remote_fetch: object.boolean(context, "allow_remote_fetch"),
        local_cache_dir: dir
            .filter(|dir| paths::check(context, dir, 0, "--cache-dir PATH").is_ok()),
        model_prefetch: object.boolean(context, "model_prefetch"),
    };
    object.finish(context);
    read
}

pub(super) fn read_completion(
    context: &mut Context<'_>,
    top: &mut Object<'_, '_>,
) -> CompletionPolicy {
    let Some(mut object) = top.object(context, "completion_policy") else {
        return CompletionPolicy::default();
    };
    let minutes = object.whole(context, "max_runtime_minutes", 1..=u64::MAX / MINUTE_MS);
    let read = CompletionPolicy {
        retry_on_fail: object.boolean(context, "retry_on_fail"),
        max_retries: object.whole_u32(context, "max_retries", 0),
        max_runtime_ms: minutes.map(|minutes| minutes.map(|n| n * MINUTE_MS)),
    };
    object.finish(context);
    read
}

/// `metadata` is the user's own: an object with anything in it. A day in `date` is
/// today's for prompts.
pub(super) fn read_metadata(context: &mut Context<'_>, top: &mut Object<'_, '_>) -> Option<Date> {
    // Other fields are not looked at, so none is unknown.
    let metadata = top.object(context, "metadata")?;
    let Value::String(date) = &metadata.present("date")?.json.value else {
        return None;
    };
    Date::parse(date)
}

/// The start of an object, to point at.
pub(super) fn start(span: Span) -> Span {
    Span::new(span.start, span.start + 1)
}
