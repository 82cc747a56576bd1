//! Typed access to TOML tables with spans: device profiles and model registries.

use std::sync::Arc;

use omex_grammar::quantity::parse_bytes;
use toml::Spanned as TomlSpanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{
    Code, Diagnostic, Severity, Sink, Source, Span, Spanned, did_you_mean, quoted,
};

/// Files larger than this are no profile and no registry.
const BYTES_MAX: usize = 4 << 20;

/// What the tables of one file share.
pub(crate) struct Reader<'s> {
    pub(crate) source: &'s Arc<Source>,
    /// What wrong values are reported as.
    pub(crate) code: Code,
    pub(crate) sink: Sink,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s Arc<Source>, code: Code) -> Reader<'s> {
        Reader {
            source,
            code,
            sink: Sink::new(),
        }
    }

    pub(crate) fn error(&mut self, message: impl Into<String>, span: Span, label: &str) {
        self.sink
            .push(Diagnostic::error(self.code, message).at(self.source, span, label));
    }

    fn wrong_type(&mut self, name: &str, expected: &str, value: &Value<'_, '_>) {
        let message = format!(
            "{} must be {expected}, and is {}",
            quoted(name),
            type_name(value.value)
        );
        self.error(message, value.span, &format!("expected {expected}"));
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Reads the file. The table borrows its text.
pub(crate) fn parse<'s>(reader: &mut Reader<'s>) -> Option<TomlSpanned<DeTable<'s>>> {
    let text = reader.source.text();
    if text.len() > BYTES_MAX {
        let message = format!(
            "the file has {} bytes, and at most {BYTES_MAX} are read",
            text.len()
        );
        reader
            .sink
            .push(Diagnostic::error(reader.code, message).in_file(reader.source.name(), None));
        return None;
    }
    match DeTable::parse(text) {
        Ok(table) => Some(table),
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            let message = format!("the file is not TOML: {}", error.message());
            reader.error(message, Span::from_range(span), "here");
            None
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'t, 's> {
    pub(crate) value: &'t DeValue<'s>,
    pub(crate) span: Span,
}

/// A table being read.
pub(crate) struct Table<'t, 's> {
    pub(crate) what: String,
    pub(crate) span: Span,
    table: &'t DeTable<'s>,
    known: Vec<&'static str>,
}

impl<'t, 's> Table<'t, 's> {
    pub(crate) fn new(what: impl Into<String>, table: &'t DeTable<'s>, span: Span) -> Self {
        Table {
            what: what.into(),
            span,
            table,
            known: Vec::new(),
        }
    }

    /// Every entry, by key.
    pub(crate) fn entries(
        &self,
    ) -> impl Iterator<Item = (Spanned<String>, Value<'t, 's>)> + use<'t, 's> {
        self.table.iter().map(|(key, value)| {
            let key = Spanned::new(
                key.get_ref().clone().into_owned(),
                Span::from_range(key.span()),
            );
            let span = Span::from_range(value.span());
            (
                key,
                Value {
                    value: value.get_ref(),
                    span,
                },
            )
        })
    }

    pub(crate) fn get(&mut self, name: &'static str) -> Option<Value<'t, 's>> {
        self.known.push(name);
        self.table
            .iter()
            .find(|(key, _)| key.get_ref() == name)
            .map(|(_, value)| Value {
                value: value.get_ref(),
                span: Span::from_range(value.span()),
            })
    }

    /// As [`get`](Self::get); its absence is an error.
    pub(crate) fn require(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
    ) -> Option<Value<'t, 's>> {
        let value = self.get(name);
        if value.is_none() {
            let message = format!("{} has no `{name}`", self.what);
            let start = Span::new(self.span.start, self.span.start);
            reader.error(message, start, "");
        }
        value
    }

    pub(crate) fn table(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
    ) -> Option<Table<'t, 's>> {
        let value = self.get(name)?;
        as_table(reader, name, value)
    }

    pub(crate) fn string(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
    ) -> Option<Spanned<String>> {
        let value = self.get(name)?;
        as_string(reader, name, value)
    }

    pub(crate) fn strings(
        &mut self,
        reader: &mut Reader<'_>,
        name: &'static str,
    ) -> Option<Vec<Spanned<String>>> {
        let value = self.get(name)?;
        let Some(items) = value.value.as_array() else {
            reader.wrong_type(name, "an array of strings", &value);
            return None;
        };
        let items = items.iter().filter_map(|item| {
            let span = Span::from_range(item.span());
            as_string(
                reader,
                name,
                Value {
                    value: item.get_ref(),
                    span,
                },
            )
        });
        Some(items.collect())
    }

    /// Reports the keys that nobody has asked for.
    pub(crate) fn finish(self, reader: &mut Reader<'_>) {
        for (key, _) in self
            .entries()
            .filter(|(key, _)| !self.known.contains(&key.value.as_str()))
        {
            reader.sink.push_with(Severity::Error, || {
                let near = did_you_mean(&key.value, self.known.iter().copied());
                Diagnostic::error(
                    reader.code,
                    format!("{} has no field {}", self.what, quoted(&key.value)),
                )
                .at(reader.source, key.span, "")
                .help_if(near.map(|near| format!("did you mean `{near}`?")))
            });
        }
    }
}

pub(crate) fn as_table<'t, 's>(
    reader: &mut Reader<'_>,
    name: &str,
    value: Value<'t, 's>,
) -> Option<Table<'t, 's>> {
    match value.value.as_table() {
        Some(table) => Some(Table::new(quoted(name), table, value.span)),
        None => {
            reader.wrong_type(name, "a table", &value);
            None
        }
    }
}

pub(crate) fn as_string(
    reader: &mut Reader<'_>,
    name: &str,
    value: Value<'_, '_>,
) -> Option<Spanned<String>> {
    match value.value.as_str() {
        Some(text) => Some(Spanned::new(text.to_owned(), value.span)),
        None => {
            reader.wrong_type(name, "a string", &value);
            None
        }
    }
}

pub(crate) fn as_bool(reader: &mut Reader<'_>, name: &str, value: Value<'_, '_>) -> Option<bool> {
    let found = value.value.as_bool();
    if found.is_none() {
        reader.wrong_type(name, "true or false", &value);
    }
    found
}

/// A whole number in a range, or a quantity of memory such as "1.8GiB".
pub(crate) fn as_amount(
    reader: &mut Reader<'_>,
    name: &str,
    value: Value<'_, '_>,
    range: std::ops::RangeInclusive<u64>,
) -> Option<u64> {
    let found = match value.value {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        DeValue::String(text) => match parse_bytes(text) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let message = format!("cannot read {}: {}", quoted(text), error.message);
                reader.error(message, value.span, "expected an amount such as \"512KiB\"");
                return None;
            }
        },
        DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => {
            reader.wrong_type(name, "a whole number", &value);
            return None;
        }
    };
    match found.filter(|n| range.contains(n)) {
        Some(n) => Some(n),
        None => {
            let limits = format!("between {} and {}", range.start(), range.end());
            let message = format!("{} must be {limits}", quoted(name));
            reader.error(message, value.span, "no device has this");
            None
        }
    }
}

/// A number in a range.
pub(crate) fn as_number(
    reader: &mut Reader<'_>,
    name: &str,
    value: Value<'_, '_>,
    range: std::ops::RangeInclusive<f64>,
) -> Option<f64> {
    let text = match value.value {
        DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
        DeValue::Float(number) => number.as_str(),
        DeValue::Integer(_)
        | DeValue::String(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => {
            reader.wrong_type(name, "a number", &value);
            return None;
        }
    };
    match text.parse().ok().filter(|x: &f64| range.contains(x)) {
        Some(x) => Some(x),
        None => {
            let limits = format!("between {} and {}", range.start(), range.end());
            reader.error(
                format!("{} must be {limits}", quoted(name)),
                value.span,
                "no device has this",
            );
            None
        }
    }
}
