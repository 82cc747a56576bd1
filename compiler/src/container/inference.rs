//! The settings of an inferring node: sampling, stop texts, length, window.
//!
//! Each may stand on the node, on a stage of the flow, or at the top; the nearest wins.

use std::sync::Arc;

use omex_grammar::reference::{FrameworkReference, ModelReference};

use super::fields::{self, Context, Object};
use super::json::Json;
use super::paths;
use super::prompt;
use super::task::{Prompt, Sampling, Window};
use crate::diagnostic::{Code, Diagnostic, Spanned};

/// What one place in the container says about sampling.
#[derive(Clone, Debug, Default)]
pub(super) struct SamplingSettings {
    pub(super) temperature: Option<Spanned<f32>>,
    pub(super) top_k: Option<Spanned<u32>>,
    pub(super) top_p: Option<Spanned<f32>>,
    pub(super) min_p: Option<Spanned<f32>>,
    pub(super) repeat_penalty: Option<Spanned<f32>>,
    pub(super) repeat_last_n: Option<Spanned<u32>>,
    pub(super) seed: Option<Spanned<u64>>,
}

impl SamplingSettings {
    /// Reads the fields of a `sampling` object or of a `sample` stage.
    pub(super) fn read(context: &mut Context<'_>, object: &mut Object<'_, '_>) -> SamplingSettings {
        let unit = 0.0..=1.0;
        SamplingSettings {
            temperature: object.float(context, "temperature", 0.0..=100.0),
            top_k: object.whole_u32(context, "top_k", 0),
            top_p: object.float(context, "top_p", unit.clone()),
            min_p: object.float(context, "min_p", unit),
            repeat_penalty: object.float(context, "repeat_penalty", 0.01..=100.0),
            repeat_last_n: object.whole_u32(context, "repeat_last_n", 0),
            seed: object.whole(context, "seed", 0..=u64::MAX),
        }
    }

    /// These settings, and where they say nothing, the others.
    pub(super) fn or(self, other: &SamplingSettings) -> SamplingSettings {
        SamplingSettings {
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repeat_penalty: self.repeat_penalty.or(other.repeat_penalty),
            repeat_last_n: self.repeat_last_n.or(other.repeat_last_n),
            seed: self.seed.or(other.seed),
        }
    }

    /// Fills in the defaults. Whoever limits the candidates or has a `sample` stage wants to
    /// sample; otherwise the default is greedy.
    pub(super) fn resolve(&self, has_sample_stage: bool) -> Sampling {
        const SAMPLED_TEMPERATURE: f32 = 0.8;
        let limits = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let default = if limits || has_sample_stage {
            SAMPLED_TEMPERATURE
        } else {
            0.0
        };
        let greedy = Sampling::GREEDY;
        Sampling {
            temperature: self.temperature.map_or(default, |t| t.value),
            top_k: self.top_k.map_or(greedy.top_k, |k| k.value),
            top_p: self.top_p.map_or(greedy.top_p, |p| p.value),
            min_p: self.min_p.map_or(greedy.min_p, |p| p.value),
            repeat_penalty: self
                .repeat_penalty
                .map_or(greedy.repeat_penalty, |p| p.value),
            repeat_last_n: self.repeat_last_n.map_or(greedy.repeat_last_n, |n| n.value),
            seed: self.seed.map_or(greedy.seed, |s| s.value),
        }
    }
}

/// What a node or the top of the container says about inference.
#[derive(Clone, Debug, Default)]
pub(super) struct InferenceSettings {
    pub(super) model: Option<Spanned<ModelReference>>,
    pub(super) guidance: Option<Spanned<FrameworkReference>>,
    pub(super) prompt: Option<Arc<Prompt>>,
    pub(super) sampling: SamplingSettings,
    pub(super) max_tokens: Option<Spanned<u32>>,
    pub(super) stop: Option<Vec<Spanned<String>>>,
}

impl InferenceSettings {
    /// Reads `prompt`, `sampling`, `max_tokens` and `stop`, all of which 0.3 added.
    pub(super) fn read(
        context: &mut Context<'_>,
        object: &mut Object<'_, '_>,
        raw_prompt: bool,
    ) -> InferenceSettings {
        let prompt = object
            .new_get(context, "prompt")
            .and_then(|json| prompt::read(context, json, raw_prompt));
        let sampling = match object.new_get(context, "sampling") {
            Some(json) => sampling_object(context, json),
            None => SamplingSettings::default(),
        };
        let max_tokens = match object.new_member(context, "max_tokens") {
            Some(_) => object.whole_u32(context, "max_tokens", 1),
            None => None,
        };
        let stop = match object.new_member(context, "stop") {
            Some(_) => read_stop(context, object),
            None => None,
        };
        InferenceSettings {
            model: None,
            guidance: None,
            prompt,
            sampling,
            max_tokens,
            stop,
        }
    }
}

fn sampling_object(context: &mut Context<'_>, json: &Json<'_>) -> SamplingSettings {
    match Object::new(context, "`sampling`", json) {
        Some(mut object) => {
            let settings = SamplingSettings::read(context, &mut object);
            object.finish(context);
            settings
        }
        None => SamplingSettings::default(),
    }
}

pub(super) fn read_stop(
    context: &mut Context<'_>,
    object: &mut Object<'_, '_>,
) -> Option<Vec<Spanned<String>>> {
    let texts = object.strings(context, "stop")?;
    for text in texts.iter().filter(|text| text.value.is_empty()) {
        context.error(
            Code::InvalidValue,
            "a stop text is empty",
            text.span,
            "every text ends with it",
        );
    }
    Some(texts)
}

/// A model reference whose path stays in the task's folder.
pub(super) fn read_model(
    context: &mut Context<'_>,
    object: &mut Object<'_, '_>,
    name: &'static str,
) -> Option<Spanned<ModelReference>> {
    let text = object.string(context, name)?;
    let reference = context
        .parse(text.clone(), Code::ReferenceSyntax, ModelReference::parse)
        .ok()?;
    if let Some(path) = reference.value.path() {
        let offset = text.value.len() - path.len();
        paths::check(context, &text, offset, "--any-path").ok()?;
    }
    Some(reference)
}

/// `{window_size, stride}`. Without `stride` the windows do not overlap.
pub(super) fn read_window(context: &mut Context<'_>, json: &Json<'_>) -> Option<Spanned<Window>> {
    let mut object = Object::new(context, "`token_window`", json)?;
    let window = window_fields(context, &mut object);
    if object.get("window_size").is_none() {
        object.missing(context, "window_size", "say how many tokens a window holds");
    }
    object.finish(context);
    window
}

/// Reads `window_size` and `stride` where they stand among other fields.
pub(super) fn window_fields(
    context: &mut Context<'_>,
    object: &mut Object<'_, '_>,
) -> Option<Spanned<Window>> {
    let size = object.whole_u32(context, "window_size", 1);
    let stride_json = object.get("stride");
    let stride = stride_json
        .and_then(|json| fields::whole(context, "stride", json, 1..=u64::from(u32::MAX)));
    let Some(size) = size else {
        if let Some(json) = stride_json {
            context.warn(
                Code::NoEffect,
                "`stride` has no effect without `window_size`",
                json.span,
                "",
            );
        }
        return None;
    };
    let stride_tokens = stride.map_or(size.value, |n| {
        u32::try_from(n.value).expect("the range fits 32 bits")
    });
    if let Some(stride) = stride
        && stride_tokens > size.value
    {
        context.sink.push(
            Diagnostic::error(
                Code::WindowShape,
                format!(
                    "a stride of {stride_tokens} skips tokens between windows of {}",
                    size.value
                ),
            )
            .at(context.source, stride.span, "larger than the window")
            .label(context.source, size.span, "the window")
            .help("input is never dropped: make the stride at most the window"),
        );
        return None;
    }
    Some(Spanned::new(
        Window {
            size_tokens: size.value,
            stride_tokens,
        },
        size.span,
    ))
}
