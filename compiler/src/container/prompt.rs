//! Prompts: the container's own, those of guidance frameworks, and one for each task type.

use std::sync::Arc;

use omex_grammar::reference::FrameworkReference;

use super::fields::{Context, Object};
use super::json::{Json, Value};
use super::task::{Prompt, TaskType};
use crate::diagnostic::{Code, Diagnostic, Span, Spanned, did_you_mean, quoted};

/// Where the window goes in a template.
const INPUT_MARK: &str = "{{input}}";

/// System text and template of each built-in guidance framework.
const FRAMEWORKS: &[(&str, &str, &str)] = &[
    (
        "code-analysis",
        "You are an experienced software engineer who reviews code. You name concrete functions and lines.",
        "Analyse this part of a code base. Say what it does, how its parts depend on each other, and which \
         mistakes or risks you see.\n\n{{input}}",
    ),
    (
        "code-update",
        "You are an experienced software engineer who changes existing code with care.",
        "Say what has to change in the following code and give the changed code.\n\n{{input}}",
    ),
    (
        "document-summary",
        "You summarise documents faithfully and add nothing that they do not say.",
        "Summarise the following text in a few sentences.\n\n{{input}}",
    ),
];

pub(super) const TASK_TYPES: &[(&str, TaskType)] = &[
    ("code_generation", TaskType::CodeGeneration),
    ("code_analysis", TaskType::CodeAnalysis),
    ("summarization", TaskType::Summarization),
    ("question_answering", TaskType::QuestionAnswering),
    ("chat", TaskType::Chat),
    ("completion", TaskType::Completion),
];

/// System text and template of a task type; None for one that has to bring its own.
fn of_task_type(task_type: &TaskType) -> Option<(Option<&'static str>, &'static str)> {
    Some(match task_type {
        TaskType::CodeGeneration => (
            Some("You are a programming assistant. Answer with code and short comments."),
            "Write the code that the following asks for, or complete it if it is unfinished code.\n\n{{input}}",
        ),
        TaskType::CodeAnalysis => (
            Some("You are an experienced software engineer who explains code clearly."),
            "Explain what the following code does, and name its main parts.\n\n{{input}}",
        ),
        TaskType::Summarization => (
            Some("You summarise texts faithfully and add nothing that they do not say."),
            "Summarise the following text in a few sentences.\n\n{{input}}",
        ),
        TaskType::QuestionAnswering => (
            Some(
                "You answer questions precisely. When the text does not hold the answer, you say so.",
            ),
            "{{input}}",
        ),
        TaskType::Chat => (None, INPUT_MARK),
        TaskType::Completion => (None, INPUT_MARK),
        TaskType::Other(_) => return None,
    })
}

/// Splits a template that is known to be right.
fn builtin(system: Option<&str>, template: &str, raw: bool) -> Prompt {
    let (before, after) = template
        .split_once(INPUT_MARK)
        .expect("built-in templates hold the mark");
    Prompt {
        system: system.map(str::to_owned),
        before: before.to_owned(),
        after: after.to_owned(),
        raw,
        span: None,
    }
}

/// The prompt of a task whose container has none. None for a task type that is not a known one.
pub(super) fn default_prompt(task_type: &TaskType) -> Option<Prompt> {
    let (system, template) = of_task_type(task_type)?;
    Some(builtin(
        system,
        template,
        *task_type == TaskType::Completion,
    ))
}

/// The prompt of a guidance framework. None, and a finding, if there is no such framework.
pub(super) fn of_framework(
    context: &mut Context<'_>,
    framework: &Spanned<FrameworkReference>,
) -> Option<Arc<Prompt>> {
    let name = &framework.value.name;
    if let Some((_, system, template)) = FRAMEWORKS.iter().find(|(known, ..)| known == name) {
        let prompt = builtin(Some(system), template, false);
        return Some(Arc::new(Prompt {
            span: Some(framework.span),
            ..prompt
        }));
    }
    let names: Vec<&str> = FRAMEWORKS.iter().map(|(known, ..)| *known).collect();
    let near = did_you_mean(name, names.iter().copied());
    let help = match near {
        Some(near) => format!("did you mean `zsei://frameworks/{near}`?"),
        None => format!(
            "the built-in ones are {}; or write a `prompt` instead",
            names.join(", ")
        ),
    };
    context.sink.push(
        Diagnostic::error(
            Code::NotInRegistry,
            format!("there is no framework {}", quoted(name)),
        )
        .at(context.source, framework.span, "")
        .help(help),
    );
    None
}

/// Reads a `prompt`: `{system, template}`, or a template alone.
pub(super) fn read(context: &mut Context<'_>, json: &Json<'_>, raw: bool) -> Option<Arc<Prompt>> {
    let (system, template) = match &json.value {
        Value::String(text) => (
            None,
            Some(Spanned::new(text.clone().into_owned(), json.span)),
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            let mut object = Object::new(context, "`prompt`", json)?;
            let system = object.string(context, "system");
            let template = object.string(context, "template");
            object.finish(context);
            (system, template)
        }
    };
    if let Some(system) = &system
        && let Some(at) = system.value.find("{{")
    {
        let span = context.part(system, at..at + 2);
        context.sink.push(
            Diagnostic::error(Code::PromptTemplate, "the system text holds a placeholder")
                .at(context.source, span, "")
                .help("put {{input}} into `template`"),
        );
        return None;
    }
    let (before, after) = match &template {
        Some(template) => split(context, template)?,
        None => (String::new(), String::new()),
    };
    Some(Arc::new(Prompt {
        system: system
            .map(|text| text.value)
            .filter(|text| !text.is_empty()),
        before,
        after,
        raw,
        span: Some(json.span),
    }))
}

/// The text before and after the one placeholder.
fn split(context: &mut Context<'_>, template: &Spanned<String>) -> Option<(String, String)> {
    let text = &template.value;
    let mut found: Option<std::ops::Range<usize>> = None;
    let mut from = 0;
    while let Some(open) = text[from..].find("{{").map(|n| from + n) {
        let close = text[open..].find("}}").map(|n| open + n + 2);
        let mark = open..close.unwrap_or(open + 2);
        let is_input = close.is_some_and(|end| text[open + 2..end - 2].trim() == "input");
        if !is_input || found.is_some() {
            let message = if is_input {
                "the template holds {{input}} twice".to_owned()
            } else {
                format!(
                    "the placeholder {} has no meaning",
                    quoted(&text[mark.clone()])
                )
            };
            let span = context.part(template, mark);
            context.sink.push(
                Diagnostic::error(Code::PromptTemplate, message)
                    .at(context.source, span, "")
                    .help("the only placeholder is {{input}}, once"),
            );
            return None;
        }
        from = mark.end;
        found = Some(mark);
    }
    match found {
        Some(mark) => Some((text[..mark.start].to_owned(), text[mark.end..].to_owned())),
        None => {
            context.sink.push(
                Diagnostic::error(
                    Code::PromptTemplate,
                    "the template has no place for the input",
                )
                .at(context.source, template.span, "")
                .help("write {{input}} where the window of the input goes"),
            );
            None
        }
    }
}

/// The place to point at when a task type has no built-in prompt.
pub(super) fn missing_prompt(context: &mut Context<'_>, task_type: &Spanned<String>, span: Span) {
    let names = TASK_TYPES.iter().map(|(name, _)| *name);
    let help = match did_you_mean(&task_type.value, names.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "write a `prompt`, or use one of: {}",
            names.collect::<Vec<_>>().join(", ")
        ),
    };
    let message = format!(
        "the task type {} has no built-in prompt",
        quoted(&task_type.value)
    );
    context.sink.push(
        Diagnostic::error(Code::InvalidValue, message)
            .at(context.source, span, "")
            .help(help),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_prompts_have_one_place_for_the_input() {
        let types = TASK_TYPES
            .iter()
            .map(|(_, task_type)| of_task_type(task_type).expect("has one").1);
        for template in types.chain(FRAMEWORKS.iter().map(|(.., template)| *template)) {
            assert_eq!(template.matches("{{").count(), 1, "{template}");
            assert!(template.contains(INPUT_MARK), "{template}");
        }
    }
}
