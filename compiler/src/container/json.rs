//! JSON with the span of every value, in time and memory linear in the text.
//!
//! serde_json does the reading. It tells no positions to its visitors, so this module keeps a
//! cursor beside it: keys and scalars are taken as raw slices of the text, whose addresses give
//! their spans, and between them there is only whitespace and punctuation to step over.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::diagnostic::{Code, Diagnostic, Source, Span, quoted};

/// A container with 2^20 nodes is far below.
pub const CONTAINER_BYTES_MAX: usize = 256 << 20;
const DEPTH_MAX: u32 = 128;
const VALUES_MAX: u32 = 1 << 24;

/// A JSON value and where it stands.
#[derive(Debug)]
pub(super) struct Json<'a> {
    pub(super) span: Span,
    pub(super) value: Value<'a>,
}

#[derive(Debug)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    Number(Number),
    String(Cow<'a, str>),
    Array(Vec<Json<'a>>),
    Object(Vec<Member<'a>>),
}

/// A number, not rounded when it is whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Unsigned(u64),
    Negative(i64),
    /// Finite.
    Float(f64),
}

#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) key: Cow<'a, str>,
    pub(super) key_span: Span,
    pub(super) json: Json<'a>,
}

impl Value<'_> {
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        }
    }
}

/// The text of a container, or why it is none.
pub(super) fn decode(name: &str, bytes: Vec<u8>) -> Result<Arc<Source>, Diagnostic> {
    if bytes.len() > CONTAINER_BYTES_MAX {
        let message = format!(
            "the container has {} bytes, and at most {CONTAINER_BYTES_MAX} are read",
            bytes.len()
        );
        return Err(Diagnostic::error(Code::TooLarge, message).in_file(name, None));
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let byte = error.as_bytes()[valid];
            // Up to the fault the lossy text is the text itself, so the offset holds in both.
            let source = Arc::new(Source::new(name, String::from_utf8_lossy(error.as_bytes())));
            let span = Span::from_range(valid..valid + char::REPLACEMENT_CHARACTER.len_utf8());
            return Err(Diagnostic::error(
                Code::JsonEncoding,
                format!("byte {valid} ({byte:#04x}) is not UTF-8"),
            )
            .at(&source, span, "not UTF-8")
            .help("save the file as UTF-8"));
        }
    };
    let source = Arc::new(Source::new(name, text));
    if source.text().starts_with('\u{feff}') {
        return Err(Diagnostic::error(
            Code::JsonEncoding,
            "the file starts with a byte order mark",
        )
        .at(&source, Span::new(0, 3), "")
        .help("save the file as UTF-8 without BOM"));
    }
    if source.text().trim().is_empty() {
        return Err(
            Diagnostic::error(Code::EmptyContainer, "the container is empty")
                .at(&source, Span::new(0, 0), "")
                .help("start from one of the files in examples/"),
        );
    }
    Ok(source)
}

/// Reads the one value that the text holds.
pub(super) fn parse(source: &Arc<Source>) -> Result<Json<'_>, Diagnostic> {
    let state = State {
        source,
        cursor: Cell::new(0),
        depth: Cell::new(0),
        values: Cell::new(0),
        fault: RefCell::new(None),
    };
    let mut deserializer = serde_json::Deserializer::from_str(source.text());
    // The depth is bounded by DEPTH_MAX below.
    deserializer.disable_recursion_limit();
    let json = Seed(&state).deserialize(&mut deserializer);
    json.and_then(|json| deserializer.end().map(|()| json))
        .map_err(|error| {
            state
                .fault
                .take()
                .unwrap_or_else(|| syntax_error(source, &error))
        })
}

fn syntax_error(source: &Arc<Source>, error: &serde_json::Error) -> Diagnostic {
    let text = source.text();
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    if error.classify() == Category::Eof {
        let end = text.trim_end().len();
        return Diagnostic::error(Code::JsonSyntax, "the container ends in the middle")
            .at(source, Span::from_range(end..end), message)
            .help("the file may have been cut off; or a bracket, brace or quote is not closed");
    }
    // serde_json counts the byte at fault, except for a control character.
    let counted = usize::from(!message.contains("control character"));
    let start = source.line_start_of(error.line()) + error.column().saturating_sub(counted);
    let start = text.floor_char_boundary(start.min(text.len()));
    let found = text[start..].chars().next();
    let help = match found {
        Some('\'') => Some("strings and keys take double quotes"),
        Some('/' | '#') => Some("JSON has no comments"),
        Some('N' | 'I') => Some("NaN and Infinity are not JSON"),
        Some('T' | 'F') => Some("the literals are `true` and `false`"),
        _ if message.contains("trailing comma") => Some("remove the comma before the bracket"),
        _ if message.contains("key must be a string") => Some("put the key in double quotes"),
        _ if message.contains("control character") => Some("write line breaks as \\n"),
        _ if message.contains("trailing characters") => Some("a container is one JSON object"),
        _ => None,
    };
    let end = start + found.map_or(0, char::len_utf8);
    Diagnostic::error(
        Code::JsonSyntax,
        format!("the container is not JSON: {message}"),
    )
    .at(source, Span::from_range(start..end), "here")
    .help_if(help)
}

struct State<'a> {
    source: &'a Arc<Source>,
    /// The end of the last key, scalar or bracket.
    cursor: Cell<usize>,
    depth: Cell<u32>,
    values: Cell<u32>,
    /// What is wrong, when it is not a matter of JSON's syntax.
    fault: RefCell<Option<Diagnostic>>,
}

impl<'a> State<'a> {
    /// Steps over whitespace and the given punctuation.
    fn skip(&self, punctuation: &[u8]) -> usize {
        let rest = &self.source.text().as_bytes()[self.cursor.get()..];
        let skipped = rest
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace() || punctuation.contains(byte))
            .count();
        self.cursor.set(self.cursor.get() + skipped);
        self.cursor.get()
    }

    /// Stops serde_json. What it says then is replaced by `fault`.
    fn fail<E: de::Error>(&self, fault: Diagnostic) -> E {
        self.fault.replace(Some(fault));
        E::custom("refused")
    }

    /// The span of a slice of the text, which becomes the cursor's last step.
    fn take(&self, raw: &'a str) -> Span {
        let start = raw.as_ptr() as usize - self.source.text().as_ptr() as usize;
        self.cursor.set(start + raw.len());
        Span::from_range(start..start + raw.len())
    }

    fn string<E: de::Error>(&self, raw: &'a str, span: Span) -> Result<Cow<'a, str>, E> {
        let inside = &raw[1..raw.len() - 1];
        if !inside.contains('\\') {
            return Ok(Cow::Borrowed(inside));
        }
        serde_json::from_str::<String>(raw)
            .map(Cow::Owned)
            .map_err(|error| {
                // Only a surrogate is wrong in a string that has been scanned once.
                let end = (error.column()).clamp(1, raw.len());
                let start = raw[..end].rfind('\\').unwrap_or(0);
                let at = |n: usize| span.start + u32::try_from(n).expect("spans fit 32 bits");
                self.fail(
                    Diagnostic::error(Code::JsonEncoding, "half of a surrogate pair stands alone")
                        .at(
                            self.source,
                            Span::new(at(start), at(end.max(start + 1))),
                            "not a character",
                        )
                        .help("characters above U+FFFF take two escapes: \\ud83d\\ude00"),
                )
            })
    }

    fn number<E: de::Error>(&self, raw: &str, span: Span) -> Result<Number, E> {
        let whole = !raw.contains(['.', 'e', 'E']);
        let number = if !whole {
            raw.parse()
                .ok()
                .filter(|x: &f64| x.is_finite())
                .map(Number::Float)
        } else if raw.starts_with('-') {
            raw.parse().ok().map(|n| {
                if n == 0 {
                    Number::Unsigned(0)
                } else {
                    Number::Negative(n)
                }
            })
        } else {
            raw.parse().ok().map(Number::Unsigned)
        };
        number.ok_or_else(|| {
            let limit = if whole {
                "whole numbers lie between -2^63 and 2^64 - 1"
            } else {
                "the largest number is about 1.8e308"
            };
            self.fail(
                Diagnostic::error(
                    Code::NumberOutOfRange,
                    format!("the number {} is out of range", quoted(raw)),
                )
                .at(self.source, span, limit),
            )
        })
    }
}

#[derive(Clone, Copy)]
struct Seed<'s, 'a>(&'s State<'a>);

impl<'a> DeserializeSeed<'a> for Seed<'_, 'a> {
    type Value = Json<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Json<'a>, D::Error> {
        let state = self.0;
        let start = state.skip(b",:");
        let here = Span::from_range(start..start + 1);
        if state.values.replace(state.values.get() + 1) == VALUES_MAX {
            let message = format!("the container has more than {VALUES_MAX} values");
            return Err(state.fail(Diagnostic::error(Code::TooLarge, message).at(
                state.source,
                here,
                "",
            )));
        }
        if let Some(b'[' | b'{') = state.source.text().as_bytes().get(start) {
            if state.depth.get() == DEPTH_MAX {
                let message = format!("the JSON is nested more than {DEPTH_MAX} levels deep");
                return Err(state.fail(Diagnostic::error(Code::TooDeep, message).at(
                    state.source,
                    here,
                    "one level too many",
                )));
            }
            state.depth.set(state.depth.get() + 1);
            state.cursor.set(start + 1);
            let value = deserializer.deserialize_any(self)?;
            state.depth.set(state.depth.get() - 1);
            let end = state.skip(b"") + 1;
            state.cursor.set(end);
            return Ok(Json {
                span: Span::from_range(start..end),
                value,
            });
        }
        let raw = <&'a RawValue>::deserialize(deserializer)?.get();
        let span = state.take(raw);
        let value = match raw.as_bytes()[0] {
            b'n' => Value::Null,
            b't' => Value::Bool(true),
            b'f' => Value::Bool(false),
            b'"' => Value::String(state.string(raw, span)?),
            _ => Value::Number(state.number(raw, span)?),
        };
        Ok(Json { span, value })
    }
}

impl<'a> Visitor<'a> for Seed<'_, 'a> {
    type Value = Value<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array or an object")
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<Value<'a>, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'a>>(self, mut members: A) -> Result<Value<'a>, A::Error> {
        let state = self.0;
        let mut object: Vec<Member<'a>> = Vec::new();
        while let Some(raw) = members.next_key::<&'a RawValue>()? {
            let key_span = state.take(raw.get());
            let key = state.string(raw.get(), key_span)?;
            let json = members.next_value_seed(self)?;
            object.push(Member {
                key,
                key_span,
                json,
            });
        }
        match duplicate(&object) {
            None => Ok(Value::Object(object)),
            Some((first, second)) => Err(state.fail(
                Diagnostic::error(
                    Code::DuplicateKey,
                    format!("the key {} appears twice", quoted(&second.key)),
                )
                .at(state.source, second.key_span, "here again")
                .label(state.source, first.key_span, "first here")
                .help("remove one of the two"),
            )),
        }
    }
}

/// The first member whose key an earlier one has too, and that earlier one.
fn duplicate<'o, 'a>(object: &'o [Member<'a>]) -> Option<(&'o Member<'a>, &'o Member<'a>)> {
    const FEW: usize = 16;
    if object.len() <= FEW {
        return object.iter().enumerate().find_map(|(n, member)| {
            let first = object[..n]
                .iter()
                .find(|earlier| earlier.key == member.key)?;
            Some((first, member))
        });
    }
    let mut seen = HashMap::with_capacity(object.len());
    object.iter().find_map(|member| {
        seen.insert(&member.key, member)
            .map(|first| (first, member))
    })
}
