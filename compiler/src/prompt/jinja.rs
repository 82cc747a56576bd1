//! Jinja as `transformers` sets it up for chat templates: blocks eat the newline after
//! them and the white space before them, loops have `break` and `continue`, and values
//! have Python's methods. minijinja parses, the evaluation is our own: a template is
//! somebody else's program, and each of its operations has to fit a budget.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::ast::Stmt;
use minijinja::machinery::{Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::date::Date;
use super::eval::Machine;
use super::literals::with_plain_escapes;
use super::value::{self, Budget, Failure, Value, failure};
use crate::diagnostic::{Code, clean};
use crate::import::ImportError;
use crate::tokenizer::Vocabulary;

/// What one rendering may spend: a million steps, or 64 MB of text. Real templates use
/// some thousands of steps.
const RENDERING_UNITS: u64 = 64_000_000;
/// What all renderings of a template may spend.
const TOTAL_UNITS: u64 = 4_000_000_000;
/// Largest template source in bytes.
const SOURCE_BYTES_MAX: usize = 1 << 20;
/// Longest line in bytes.
const LINE_BYTES_MAX: usize = 65_000;
/// Most tokens of one tag, and most branches of one `if`: the parser's recursion, and the
/// depth of its tree, can grow with both.
const TAG_TOKENS_MAX: usize = 1000;
const BRANCHES_MAX: usize = 50;

/// A chat template's source, ready to be parsed.
pub struct Source(String);

impl Source {
    /// # Errors
    /// `ChatTemplateInvalid` for a source that is too large.
    pub fn new(source: &str) -> Result<Self, ImportError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(ImportError::new(
                Code::ChatTemplateInvalid,
                format!(
                    "the chat template has {} bytes; {SOURCE_BYTES_MAX} are supported",
                    source.len()
                ),
            ));
        }
        // Jinja reads lines, whatever ends them.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        check_lines(&source)?;
        let source = in_dialect(&source)?;
        check_lines(&source)?;
        Ok(Self(source))
    }
}

/// A chat template, ready to be rendered.
pub struct ChatTemplate<'s> {
    source: &'s str,
    tree: Stmt<'s>,
    date: Option<Date>,
    /// The texts of special tokens under the names that templates know.
    special: BTreeMap<&'static str, String>,
    units_left: Cell<u64>,
}

/// Why a template gives no text.
#[derive(Clone, Debug)]
pub struct RenderError {
    /// The template refuses the conversation, by `raise_exception`.
    pub is_raised: bool,
    /// `ChatTemplateInvalid`
    pub error: ImportError,
}

impl From<RenderError> for ImportError {
    fn from(e: RenderError) -> ImportError {
        e.error
    }
}

impl<'s> ChatTemplate<'s> {
    /// # Errors
    /// `ChatTemplateInvalid` for a source that is not Jinja.
    pub fn new(
        source: &'s Source,
        vocabulary: &Vocabulary,
        date: Option<Date>,
    ) -> Result<Self, ImportError> {
        let source = source.0.as_str();
        check_size(source)?;
        let tree = parse(source, "chat_template", syntax()).map_err(unparsed)?;
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
            source,
            tree,
            date,
            special,
            units_left: Cell::new(TOTAL_UNITS),
        })
    }

    /// Renders a conversation of a system and a user's message, with the assistant's turn
    /// opened.
    ///
    /// # Errors
    /// The template raises, fails or runs too long.
    pub fn render(&self, system: Option<&str>, user: &str) -> Result<String, RenderError> {
        let total = self.units_left.get();
        let budget = Budget::new(total.min(RENDERING_UNITS));
        let spent_before = budget.left();
        let rendered = self.evaluate(system, user, &budget);
        self.units_left.set(total - (spent_before - budget.left()));
        rendered.map_err(|failure| RenderError {
            is_raised: failure.is_raised,
            error: failed(failure),
        })
    }

    fn evaluate(&self, system: Option<&str>, user: &str, budget: &Budget) -> value::Result<String> {
        let message = |role: &str, content: &str| {
            let fields = [("role", role), ("content", content)];
            let fields = fields.map(|(name, value)| (name.into(), value.into()));
            Value::map(fields.into(), budget)
        };
        let mut messages = Vec::new();
        if let Some(system) = system {
            messages.push(message("system", system)?);
        }
        messages.push(message("user", user)?);
        let mut variables = vec![
            ("messages", Value::list(messages, budget)?),
            ("add_generation_prompt", true.into()),
            ("tools", Value::None),
            ("documents", Value::None),
        ];
        for (&name, text) in &self.special {
            variables.push((name, text.as_str().into()));
        }
        Machine::new(budget, self.date, variables).run(&self.tree)
    }

    /// The literals of the source's tags.
    #[must_use]
    pub fn literals(&self) -> Literals {
        let mut texts = BTreeSet::new();
        let mut numbers = BTreeSet::new();
        let mut before: Option<String> = None;
        // A source that is a template was cut into tokens before.
        for (token, _) in tokenize(self.source, false, syntax()).flatten() {
            let text = match token {
                Token::Str(text) => text.to_owned(),
                Token::String(text) => text.into(),
                Token::Int(number) => {
                    numbers.insert(number);
                    continue;
                }
                _ => continue,
            };
            // Neighbours may be joined before the input is compared with them.
            if let Some(before) = before {
                texts.insert(before + &text);
            }
            before = Some(text.clone());
            texts.insert(text);
        }
        texts.remove("");
        Literals { texts, numbers }
    }
}

/// What a template may compare its input with.
#[derive(Debug, Default)]
pub struct Literals {
    /// Not empty; each, and each with its neighbour.
    pub texts: BTreeSet<String>,
    pub numbers: BTreeSet<u64>,
}

fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .expect("Jinja's own delimiters are valid")
}

/// The template in minijinja's dialect. `transformers` marks what the assistant said with
/// `{% generation %}` blocks, which render as what is in them, and Jinja's literals have
/// Python's escapes.
fn in_dialect(source: &str) -> Result<String, ImportError> {
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    let mut starts = false;
    // Where the source is no template any more, parsing says why.
    for (token, span) in tokenize(source, false, syntax()).map_while(Result::ok) {
        let range = span.start_offset as usize..span.end_offset as usize;
        let instead = match token {
            Token::Ident("generation") if starts => Some("with".to_owned()),
            Token::Ident("endgeneration") if starts => Some("endwith".to_owned()),
            Token::Str(_) | Token::String(_) if source[range.clone()].contains('\\') => {
                let plain = with_plain_escapes(&source[range.clone()]);
                Some(plain.ok_or_else(|| {
                    failed(Failure {
                        line: Some(span.start_line.into()),
                        ..failure("a string has an escape that is not supported")
                    })
                })?)
            }
            _ => None,
        };
        if let Some(instead) = instead {
            out.push_str(&source[done..range.start]);
            out.push_str(&instead);
            done = range.end;
        }
        starts = matches!(token, Token::BlockStart);
    }
    out.push_str(&source[done..]);
    Ok(out)
}

/// Refuses lines whose columns minijinja could not count.
fn check_lines(source: &str) -> Result<(), ImportError> {
    let long = source.lines().position(|line| line.len() > LINE_BYTES_MAX);
    match long {
        None => Ok(()),
        Some(index) => Err(failed(Failure {
            line: Some(index + 1),
            ..failure(format!("a line has more than {LINE_BYTES_MAX} bytes"))
        })),
    }
}

/// Refuses what the parser's recursion could not hold.
fn check_size(source: &str) -> Result<(), ImportError> {
    let mut tag_tokens = 0;
    let mut starts = false;
    let mut branches: Vec<usize> = Vec::new();
    for token in tokenize(source, false, syntax()) {
        let (token, span) = token.map_err(unparsed)?;
        tag_tokens += 1;
        match token {
            Token::BlockStart | Token::VariableStart | Token::TemplateData(_) => tag_tokens = 0,
            Token::Ident("if") if starts => branches.push(0),
            Token::Ident("endif") if starts => {
                branches.pop();
            }
            Token::Ident("elif") if starts => {
                if let Some(count) = branches.last_mut() {
                    *count += 1;
                }
            }
            _ => {}
        }
        starts = matches!(token, Token::BlockStart);
        let what = if tag_tokens > TAG_TOKENS_MAX {
            format!("a tag has more than {TAG_TOKENS_MAX} parts")
        } else if branches.last().is_some_and(|&count| count > BRANCHES_MAX) {
            format!("an `if` has more than {BRANCHES_MAX} branches")
        } else {
            continue;
        };
        return Err(failed(Failure {
            line: Some(span.start_line.into()),
            ..failure(what)
        }));
    }
    Ok(())
}

fn unparsed(error: minijinja::Error) -> ImportError {
    let what = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    failed(Failure {
        line: error.line(),
        ..failure(what)
    })
}

fn failed(error: Failure) -> ImportError {
    let line = error
        .line
        .map(|line| format!(", line {line}"))
        .unwrap_or_default();
    let what = clean(&error.what);
    let failed = ImportError::new(
        Code::ChatTemplateInvalid,
        format!("the model's chat template fails{line}: {what}"),
    );
    if what.contains("strftime_now") {
        failed.help("the template asks for today's date: state it in the container, as `\"metadata\": {\"date\": \"2025-01-31\"}`")
    } else {
        failed
    }
}
