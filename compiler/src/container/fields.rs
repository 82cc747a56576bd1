//! Typed access to the fields of JSON objects, with a finding for each that is wrong.
//!
//! A reader asks an [`Object`] for the fields it knows; [`Object::finish`] reports those that
//! nobody asked for. A wrong value is reported and then read as absent, so that one run reports
//! all mistakes.

use std::sync::Arc;

use omex_grammar::SyntaxError;

use super::json::{Json, Member, Number, Value};
use super::task::Version;
use crate::diagnostic::{
    Code, Diagnostic, Severity, Sink, Source, Span, Spanned, did_you_mean, quoted,
};

/// What the readers of one container share.
pub(super) struct Context<'a> {
    pub(super) source: &'a Arc<Source>,
    pub(super) sink: Sink,
    /// Unknown fields and replaced runners are errors.
    pub(super) strict: bool,
    /// Paths may leave the working directory.
    pub(super) any_path: bool,
    pub(super) version: Version,
}

impl<'a> Context<'a> {
    pub(super) fn error(
        &mut self,
        code: Code,
        message: impl Into<String>,
        span: Span,
        label: &str,
    ) {
        self.sink
            .push(Diagnostic::error(code, message).at(self.source, span, label));
    }

    pub(super) fn warn(&mut self, code: Code, message: impl Into<String>, span: Span, label: &str) {
        self.sink
            .push(Diagnostic::warning(code, message).at(self.source, span, label));
    }

    /// An error under --strict, else a warning.
    pub(super) fn strict_severity(&self) -> Severity {
        if self.strict {
            Severity::Error
        } else {
            Severity::Warning
        }
    }

    fn wrong_type(&mut self, field: &str, expected: &str, json: &Json<'_>) {
        let message = format!(
            "{} must be {expected}, and is {}",
            quoted(field),
            json.value.type_name()
        );
        self.error(
            Code::WrongType,
            message,
            json.span,
            &format!("expected {expected}"),
        );
    }

    /// The span of a part of a string's text. The whole string, when escapes shift its bytes.
    pub(super) fn part(&self, string: &Spanned<String>, range: std::ops::Range<usize>) -> Span {
        let inside = string.span.range().len().checked_sub(2);
        if inside == Some(string.value.len()) {
            let start = string.span.range().start + 1;
            return Span::from_range(start + range.start..start + range.end);
        }
        string.span
    }

    /// Reads a string with one of the small grammars.
    pub(super) fn parse<T>(
        &mut self,
        string: Spanned<String>,
        code: Code,
        parse: impl FnOnce(&str) -> Result<T, SyntaxError>,
    ) -> Result<Spanned<T>, ()> {
        match parse(&string.value) {
            Ok(value) => Ok(Spanned::new(value, string.span)),
            Err(error) => {
                let span = self.part(&string, error.span.clone());
                let message = format!("cannot read {}: {}", quoted(&string.value), error.message);
                self.error(code, message, span, "");
                Err(())
            }
        }
    }

    /// Says that a field came with a later version of the format.
    fn newer(&mut self, member: &Member<'_>) {
        if self.version < Version::V0_3 {
            let message = format!(
                "{} came with version 0.3 of the format",
                quoted(&member.key)
            );
            self.sink.push(
                Diagnostic::warning(Code::NewerField, message)
                    .at(self.source, member.key_span, "")
                    .help("write `\"omex_version\": \"0.3.0\"`"),
            );
        }
    }
}

/// A JSON object being read.
pub(super) struct Object<'j, 'a> {
    /// What it is, for messages: "the stage", "`context`".
    what: String,
    pub(super) span: Span,
    members: &'j [Member<'a>],
    known: Vec<&'static str>,
}

impl<'j, 'a> Object<'j, 'a> {
    /// None, and a finding, if the value is not an object.
    pub(super) fn new(
        context: &mut Context<'_>,
        what: impl Into<String>,
        json: &'j Json<'a>,
    ) -> Option<Self> {
        let what = what.into();
        match &json.value {
            Value::Object(members) => Some(Object {
                what,
                span: json.span,
                members,
                known: Vec::new(),
            }),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => {
                let message = format!(
                    "{what} must be an object, and is {}",
                    json.value.type_name()
                );
                context.error(Code::WrongType, message, json.span, "expected an object");
                None
            }
        }
    }

    pub(super) fn member(&mut self, name: &'static str) -> Option<&'j Member<'a>> {
        self.known.push(name);
        let member = self.members.iter().find(|member| member.key == name)?;
        // Null is how some tools write "not set".
        (!matches!(member.json.value, Value::Null)).then_some(member)
    }

    /// As [`member`](Self::member), without counting the field as known.
    pub(super) fn present(&self, name: &str) -> Option<&'j Member<'a>> {
        self.members
            .iter()
            .find(|member| member.key == name && !matches!(member.json.value, Value::Null))
    }

    pub(super) fn get(&mut self, name: &'static str) -> Option<&'j Json<'a>> {
        self.member(name).map(|member| &member.json)
    }

    /// As [`member`](Self::member), of a field that 0.3 added.
    pub(super) fn new_member(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
    ) -> Option<&'j Member<'a>> {
        let member = self.member(name)?;
        context.newer(member);
        Some(member)
    }

    pub(super) fn new_get(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
    ) -> Option<&'j Json<'a>> {
        self.new_member(context, name).map(|member| &member.json)
    }

    pub(super) fn object(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
    ) -> Option<Object<'j, 'a>> {
        let json = self.get(name)?;
        Object::new(context, format!("`{name}`"), json)
    }

    pub(super) fn string(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
    ) -> Option<Spanned<String>> {
        let json = self.get(name)?;
        string(context, name, json)
    }

    pub(super) fn boolean(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
    ) -> Option<Spanned<bool>> {
        let json = self.get(name)?;
        match &json.value {
            Value::Bool(value) => Some(Spanned::new(*value, json.span)),
            Value::Null
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => {
                context.wrong_type(name, "true or false", json);
                None
            }
        }
    }

    /// A whole number in a range.
    pub(super) fn whole(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Option<Spanned<u64>> {
        let json = self.get(name)?;
        whole(context, name, json, range)
    }

    pub(super) fn whole_u32(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
        min: u32,
    ) -> Option<Spanned<u32>> {
        let value = self.whole(context, name, u64::from(min)..=u64::from(u32::MAX))?;
        Some(value.map(|n| u32::try_from(n).expect("the range fits 32 bits")))
    }

    /// A number in a range, as the nearest f32.
    pub(super) fn float(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Option<Spanned<f32>> {
        let json = self.get(name)?;
        let Value::Number(number) = json.value else {
            context.wrong_type(name, "a number", json);
            return None;
        };
        let value = match number {
            Number::Unsigned(n) => n as f64,
            Number::Negative(n) => n as f64,
            Number::Float(x) => x,
        };
        if !range.contains(&value) {
            let limits = format!("between {} and {}", range.start(), range.end());
            let message = format!("`{name}` must be {limits}");
            context.error(
                Code::InvalidValue,
                message,
                json.span,
                &format!("expected a number {limits}"),
            );
            return None;
        }
        Some(Spanned::new(value as f32, json.span))
    }

    /// A string, or an array of strings.
    pub(super) fn strings(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
    ) -> Option<Vec<Spanned<String>>> {
        let json = self.get(name)?;
        match &json.value {
            Value::Array(items) => Some(
                items
                    .iter()
                    .filter_map(|item| string(context, name, item))
                    .collect(),
            ),
            Value::String(text) => Some(vec![Spanned::new(text.clone().into_owned(), json.span)]),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                context.wrong_type(name, "a string or an array of strings", json);
                None
            }
        }
    }

    /// One of a few names.
    pub(super) fn choice<T: Copy>(
        &mut self,
        context: &mut Context<'_>,
        name: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<Spanned<T>> {
        let text = self.string(context, name)?;
        choice(context, name, &text, choices).map(|value| Spanned::new(value, text.span))
    }

    pub(super) fn missing(&self, context: &mut Context<'_>, name: &str, help: &str) {
        context.sink.push_with(Severity::Error, || {
            let start = self.span.start;
            Diagnostic::error(Code::MissingField, format!("{} has no `{name}`", self.what))
                .at(context.source, Span::new(start, start + 1), "this object")
                .help(help)
        });
    }

    /// Reports the fields that nobody has asked for.
    pub(super) fn finish(self, context: &mut Context<'_>) {
        let severity = context.strict_severity();
        for member in self
            .members
            .iter()
            .filter(|member| !self.known.contains(&&*member.key))
        {
            context.sink.push_with(severity, || {
                let message = format!("{} has no field {}", self.what, quoted(&member.key));
                let diagnostic = match severity {
                    Severity::Error => Diagnostic::error(Code::UnknownField, message),
                    Severity::Warning | Severity::Note => {
                        Diagnostic::warning(Code::UnknownField, message)
                    }
                };
                let near = did_you_mean(&member.key, self.known.iter().copied());
                diagnostic
                    .at(context.source, member.key_span, "it has no effect")
                    .help_if(near.map(|near| format!("did you mean `{near}`?")))
            });
        }
    }
}

pub(super) fn string(
    context: &mut Context<'_>,
    name: &str,
    json: &Json<'_>,
) -> Option<Spanned<String>> {
    match &json.value {
        Value::String(text) => Some(Spanned::new(text.clone().into_owned(), json.span)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            context.wrong_type(name, "a string", json);
            None
        }
    }
}

pub(super) fn array<'j, 'a>(
    context: &mut Context<'_>,
    name: &str,
    json: &'j Json<'a>,
) -> Option<&'j [Json<'a>]> {
    match &json.value {
        Value::Array(items) => Some(items),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            context.wrong_type(name, "an array", json);
            None
        }
    }
}

pub(super) fn whole(
    context: &mut Context<'_>,
    name: &str,
    json: &Json<'_>,
    range: std::ops::RangeInclusive<u64>,
) -> Option<Spanned<u64>> {
    /// Below it every whole f64 is exact.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let Value::Number(number) = json.value else {
        context.wrong_type(name, "a whole number", json);
        return None;
    };
    let value = match number {
        Number::Unsigned(n) => Some(n),
        Number::Float(x) if x.trunc() == x && (0.0..EXACT_MAX).contains(&x) => Some(x as u64),
        Number::Float(_) | Number::Negative(_) => None,
    };
    match value.filter(|n| range.contains(n)) {
        Some(value) => Some(Spanned::new(value, json.span)),
        None => {
            let limits = format!("a whole number from {} to {}", range.start(), range.end());
            let message = format!("{} must be {limits}", quoted(name));
            context.error(
                Code::InvalidValue,
                message,
                json.span,
                &format!("expected {limits}"),
            );
            None
        }
    }
}

pub(super) fn choice<T: Copy>(
    context: &mut Context<'_>,
    name: &str,
    text: &Spanned<String>,
    choices: &[(&'static str, T)],
) -> Option<T> {
    if let Some((_, value)) = choices.iter().find(|(choice, _)| *choice == text.value) {
        return Some(*value);
    }
    context.sink.push_with(Severity::Error, || {
        let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
        let help = match did_you_mean(&text.value, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("it is one of: {}", names.join(", ")),
        };
        Diagnostic::error(
            Code::InvalidValue,
            format!("{} is not a `{name}`", quoted(&text.value)),
        )
        .at(context.source, text.span, "")
        .help(help)
    });
    None
}
