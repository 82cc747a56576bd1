//! Jinja as `transformers` sets it up for chat templates: blocks eat the newline after
//! them and the white space before them, loops have `break` and `continue`, and values
//! have Python's methods. Evaluation has fuel and loads nothing.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use super::python;
use crate::diagnostic::{Code, clean};
use crate::import::ImportError;
use crate::tokenizer::Vocabulary;

/// Instructions, and pieces of 64 bytes of data, that one rendering may use; real
/// templates use some thousands.
const FUEL: u64 = 1_000_000;
/// Largest template source in bytes.
const SOURCE_BYTES_MAX: usize = 1 << 20;
const NAME: &str = "chat_template";

/// A day, for templates that ask which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to the month's length.
    pub day: u8,
}

impl Date {
    /// Parses `YYYY-MM-DD`; `None` for anything else and for days that do not exist.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = |range: std::ops::Range<usize>| {
            let part = text.get(range)?;
            part.bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| part.parse().ok())
                .flatten()
        };
        let separated = text.len() == 10
            && text.is_char_boundary(4)
            && [4, 7].iter().all(|&i| text.as_bytes()[i] == b'-');
        let (year, month, day): (u16, u16, u16) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
        let date = Self {
            year,
            month: month as u8,
            day: day as u8,
        };
        (separated && (1..=12).contains(&month) && (1..=date.month_length()).contains(&day))
            .then_some(date)
    }

    fn is_leap(self) -> bool {
        self.year.is_multiple_of(4)
            && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400))
    }

    fn month_length(self) -> u16 {
        match self.month {
            2 => 28 + u16::from(self.is_leap()),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    fn day_of_year(self) -> u16 {
        let before: u16 = (1..self.month)
            .map(|month| Self { month, ..self }.month_length())
            .sum();
        before + u16::from(self.day)
    }

    /// 0 is Sunday.
    fn weekday(self) -> usize {
        let years = u32::from(self.year).max(1) - 1;
        let days =
            years * 365 + years / 4 - years / 100 + years / 400 + u32::from(self.day_of_year());
        days as usize % 7
    }

    /// C's `strftime` in the C locale, at midnight.
    fn format(self, format: &str) -> Result<String, Error> {
        const DAYS: [&str; 7] = [
            "Sunday",
            "Monday",
            "Tuesday",
            "Wednesday",
            "Thursday",
            "Friday",
            "Saturday",
        ];
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let (year, month, day) = (self.year, self.month, self.day);
            let (weekday, month_name) = (DAYS[self.weekday()], MONTHS[usize::from(month) - 1]);
            let mut directive = chars.next();
            // `%-d` and the like: without leading zeros.
            let bare = directive == Some('-');
            if bare {
                directive = chars.next();
            }
            let number = |value: u16, width: usize| {
                if bare {
                    value.to_string()
                } else {
                    format!("{value:0width$}")
                }
            };
            out.push_str(&match directive {
                Some('Y') => number(year, 4),
                Some('y') => number(year % 100, 2),
                Some('m') => number(month.into(), 2),
                Some('d') => number(day.into(), 2),
                Some('e') => format!("{day:2}"),
                Some('j') => number(self.day_of_year(), 3),
                Some('B') => month_name.to_owned(),
                Some('b' | 'h') => month_name[..3].to_owned(),
                Some('A') => weekday.to_owned(),
                Some('a') => weekday[..3].to_owned(),
                Some('w') => self.weekday().to_string(),
                Some('F') => format!("{year:04}-{month:02}-{day:02}"),
                Some('D' | 'x') => format!("{month:02}/{day:02}/{:02}", year % 100),
                Some('H' | 'M' | 'S') => number(0, 2),
                Some('I') => number(12, 2),
                Some('p') => "AM".to_owned(),
                Some('T' | 'X') => "00:00:00".to_owned(),
                Some('R') => "00:00".to_owned(),
                Some('%') => "%".to_owned(),
                other => {
                    let directive = other.map(String::from).unwrap_or_default();
                    return Err(invalid(format!("strftime_now does not know %{directive}")));
                }
            });
        }
        Ok(out)
    }
}

/// A chat template, ready to be rendered.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// The texts of special tokens under the names that templates know.
    special: BTreeMap<&'static str, String>,
}

impl ChatTemplate {
    /// # Errors
    /// `ChatTemplateInvalid` for a source that is not Jinja.
    pub fn new(
        source: &str,
        vocabulary: &Vocabulary,
        date: Option<Date>,
    ) -> Result<Self, ImportError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(ImportError::new(
                Code::ChatTemplateInvalid,
                format!(
                    "the chat template has {} bytes; {SOURCE_BYTES_MAX} are supported",
                    source.len()
                ),
            ));
        }
        let source = without_generation_blocks(source);
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .expect("Jinja's own delimiters are valid"),
        );
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("trim", python::trim);
        environment.add_filter("tojson", python::to_json);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> { Err(invalid(message)) },
        );
        if let Some(date) = date {
            environment.add_function("strftime_now", move |format: String| date.format(&format));
        }
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(failed)?;

        let text = |id: Option<u32>| id.map(|id| vocabulary.tokens[id as usize].clone());
        let special = [
            ("bos_token", vocabulary.bos),
            ("eos_token", vocabulary.eos),
            ("unk_token", vocabulary.unknown),
            ("pad_token", vocabulary.padding),
        ]
        .into_iter()
        .filter_map(|(name, id)| Some((name, text(id)?)))
        .collect();
        Ok(Self {
            environment,
            source,
            special,
        })
    }

    /// Renders a conversation of a system and a user's message, with the assistant's turn
    /// opened.
    ///
    /// # Errors
    /// `ChatTemplateInvalid` when the template fails, raises or runs too long.
    pub fn render(&self, system: Option<&str>, user: &str) -> Result<String, ImportError> {
        let message = |role: &str, content: &str| {
            let fields = [
                ("role", Value::from(role)),
                ("content", Value::from(content)),
            ];
            Value::from(BTreeMap::from(fields))
        };
        let messages: Vec<Value> = system
            .map(|text| message("system", text))
            .into_iter()
            .chain([message("user", user)])
            .collect();
        let mut context: BTreeMap<&'static str, Value> = self
            .special
            .iter()
            .map(|(&name, text)| (name, Value::from(text.as_str())))
            .collect();
        context.insert("messages", Value::from(messages));
        context.insert("add_generation_prompt", Value::from(true));
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        let template = self.environment.get_template(NAME).map_err(failed)?;
        template.render(Value::from(context)).map_err(failed)
    }

    /// Every string literal of the source, and what its escapes may stand for.
    #[must_use]
    pub fn literals(&self) -> Vec<String> {
        /// No template compares the input with anything as long as this.
        const LITERAL_BYTES_MAX: usize = 512;
        let mut found = BTreeSet::new();
        for (start, quote) in self.source.match_indices(['"', '\'']) {
            // A quote that is an apostrophe in plain text makes a literal that is none,
            // which does no harm as a probe; so each quote is taken for an opening one.
            let rest = &self.source[start + 1..];
            let rest = &rest[..rest.floor_char_boundary(LITERAL_BYTES_MAX)];
            let mut escaped = false;
            let end = rest.find(|c| {
                let ends = quote.starts_with(c) && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            let Some(literal) = end.map(|end| &rest[..end]) else {
                continue;
            };
            let unescaped = literal
                .replace("\\n", "\n")
                .replace("\\t", "\t")
                .replace("\\'", "'")
                .replace("\\\"", "\"")
                .replace("\\\\", "\\");
            found.insert(unescaped);
        }
        found.remove("");
        found.into_iter().collect()
    }
}

/// `transformers` marks what the assistant said with `{% generation %}` blocks, which
/// render as what is in them.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start + 2..start + len];
        let inner = tag.trim_matches(['-', '+']).trim();
        let replaced = match inner {
            "generation" => tag.replacen("generation", "if true", 1),
            "endgeneration" => tag.replacen("endgeneration", "endif", 1),
            _ => tag.to_owned(),
        };
        out.push_str(&rest[..start + 2]);
        out.push_str(&replaced);
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn failed(error: Error) -> ImportError {
    let line = error
        .line()
        .map(|line| format!(", line {line}"))
        .unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::OutOfFuel => "it runs too long or makes too much text".to_owned(),
        _ => match error.detail() {
            Some(detail) => clean(detail),
            None => error.kind().to_string(),
        },
    };
    let failed = ImportError::new(
        Code::ChatTemplateInvalid,
        format!("the model's chat template fails{line}: {what}"),
    );
    if what.contains("strftime_now") {
        failed.help("state the date in the container: the template asks for it")
    } else {
        failed
    }
}
