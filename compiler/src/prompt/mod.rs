//! Prompts: a model's chat template is evaluated at build time, around the place of the
//! input, and becomes an [`omex_plan::prompt::PromptTemplate`].
//!
//! The template is a Jinja program that could do anything with the input, and it only ever
//! runs here. So it is rendered with many probes in the input's place: its treatment of
//! them must be "trim white space at these ends, put the rest there", or it is refused.
//! Whatever a template can look for in the input stands as a literal in its source, so
//! every literal is a probe too. An input that a template refuses, for what it spells, is
//! put in like all others: it is text, and means nothing.

mod arguments;
mod braces;
mod date;
mod eval;
mod filters;
mod format;
mod jinja;
mod json;
mod literals;
mod loops;
mod operators;
mod python;
#[cfg(test)]
mod tests;
mod value;

use omex_plan::prompt::{PromptTemplate, Trim, is_space};
use omex_runtime::tokenizer::{Scratch, SpecialText, TokenKind, Tokenizer};

pub use date::Date;
pub use jinja::{ChatTemplate, RenderError, Source};

use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::tokenizer::Vocabulary;

/// What a prompt is made of.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The model's chat template; without one the prompt is plain text.
    pub chat_template: Option<&'a str>,
    /// The system message.
    pub system: Option<&'a str>,
    /// The user's message, with `{{input}}` once, in the input's place. Special tokens
    /// that are spelled here or in `system` are special, as in the chat template itself.
    pub message: &'a str,
    /// Today, for templates that ask; without it they fall back to a date of their own.
    pub date: Option<Date>,
}

/// More literals than any real template has.
const LITERALS_MAX: usize = 2048;

/// More different numbers than any real template has.
const NUMBERS_MAX: usize = 256;
/// Lines of the longest probe: templates with a limit of their own have a lower one.
const LONG_PROBE_LINES: usize = 100_000;

/// Compiles a prompt for the model of `vocabulary`, which `tokenizer` was compiled from.
///
/// With a chat template the tokens are those of Hugging Face's `apply_chat_template` for
/// the system message and the user's message with an assistant's turn opened: the template
/// alone decides about BOS. A plain prompt starts with BOS where the model wants it.
///
/// # Errors
/// `PromptTemplate` when `message` does not hold the input once, `ChatTemplateInvalid`
/// when the template cannot be evaluated, `ChatTemplateUnsupported` when it does more with
/// the input than trimming it.
pub fn compile(
    vocabulary: &Vocabulary,
    tokenizer: &Tokenizer<'_>,
    request: &Request<'_>,
) -> Result<PromptTemplate, ImportError> {
    let (before, after) = split_message(request.message)?;
    let source = request.chat_template.map(Source::new).transpose()?;
    let chat = source
        .as_ref()
        .map(|source| ChatTemplate::new(source, vocabulary, request.date))
        .transpose()?;
    let prompt = Prompt {
        chat: chat.as_ref(),
        system: request.system,
        before,
        after,
    };
    let framed = prompt.frame();
    let Some(system) = request.system.filter(|_| !prompt.has_system(&framed)) else {
        return cut(tokenizer, &prompt, &framed?);
    };
    // A template without a place for a system message: its text goes in front of the
    // user's.
    let before = format!("{system}\n\n{before}");
    let joined = Prompt {
        system: None,
        before: &before,
        ..prompt
    };
    match joined.frame() {
        Ok(frame) => cut(tokenizer, &joined, &frame),
        Err(e) => Err(framed.err().unwrap_or(e)),
    }
}

/// The parts around `{{input}}`.
fn split_message(message: &str) -> Result<(&str, &str), ImportError> {
    let places: Vec<(usize, usize)> = message
        .match_indices("{{")
        .filter_map(|(start, _)| {
            let end = start + message[start..].find("}}")? + 2;
            (message[start + 2..end - 2].trim() == "input").then_some((start, end))
        })
        .collect();
    match places[..] {
        [(start, end)] => Ok((&message[..start], &message[end..])),
        _ => Err(ImportError::new(
            Code::PromptTemplate,
            format!("the prompt has {{{{input}}}} {} times", places.len()),
        )
        .help("write {{input}} once, where the input goes")),
    }
}

/// Everything about a prompt but the input.
struct Prompt<'a> {
    chat: Option<&'a ChatTemplate<'a>>,
    system: Option<&'a str>,
    before: &'a str,
    after: &'a str,
}

/// What a rendered prompt looks like: `left`, the trimmed input, `right`.
struct Frame {
    left: String,
    right: String,
    trim: Trim,
    /// The whole prompt for an input that is empty once trimmed.
    empty: String,
}

impl Prompt<'_> {
    /// Whether the system message has a place in the prompt, where a template may change
    /// it. One without a place gives the same text with another, or fails with every input.
    fn has_system(&self, framed: &Result<Frame, ImportError>) -> bool {
        let sentinel = self.sentinel();
        match framed {
            Ok(frame) => {
                let other = format!("{} other", self.system.unwrap_or(""));
                let other = Prompt {
                    system: Some(&other),
                    ..*self
                };
                let own = format!("{}{sentinel}{}", frame.left, frame.right);
                other.render(&sentinel).map_or(true, |other| other != own)
            }
            Err(e) => e.code != Code::ChatTemplateInvalid || self.render(&sentinel).is_ok(),
        }
    }

    fn render(&self, input: &str) -> Result<String, RenderError> {
        let message = format!("{}{input}{}", self.before, self.after);
        match &self.chat {
            Some(chat) => chat.render(self.system, &message),
            None => Ok(match self.system {
                Some(system) => format!("{system}\n\n{message}"),
                None => message,
            }),
        }
    }

    /// The prompt with this input in it; none if the template refuses the input.
    fn render_accepted(&self, input: &str) -> Result<Option<String>, ImportError> {
        match self.render(input) {
            Ok(rendered) => Ok(Some(rendered)),
            Err(e) if e.is_raised => Ok(None),
            Err(e) => Err(e.error.help(format!(
                "it does so for the input {}, among others perhaps",
                quoted(input)
            ))),
        }
    }

    /// A text that stands nowhere else in the prompt and that shows every change made to
    /// it: both cases, inner white space, quotes, markup, and text beyond ASCII.
    fn sentinel(&self) -> String {
        (0_u32..)
            .map(|n| format!("Om{n}eX <i n>&amp;\"'\\ {{{{x}}}}{{% y %}}  \n\n\té漢😀\u{a0}Z{n}q"))
            .find(|sentinel| {
                let elsewhere = [self.system.unwrap_or(""), self.before, self.after];
                !elsewhere
                    .iter()
                    .any(|text| text.contains(sentinel.as_str()))
            })
            .expect("some number is free")
    }

    /// Finds the frame and holds every probe against it.
    fn frame(&self) -> Result<Frame, ImportError> {
        let sentinel = self.sentinel();
        let rendered = self.render(&sentinel)?;
        let places: Vec<usize> = rendered.match_indices(&sentinel).map(|(i, _)| i).collect();
        let [place] = places[..] else {
            return Err(unsupported(match places.len() {
                0 => "changes or leaves out the input".to_owned(),
                n => format!("repeats the input {n} times"),
            }));
        };
        let left = rendered[..place].to_owned();
        let right = rendered[place + sentinel.len()..].to_owned();

        let space: String = ('\0'..=char::MAX).filter(|&c| is_space(c)).collect();
        let padded = self.render(&format!("{space}{sentinel}{space}"))?;
        let trim = [Trim::None, Trim::Left, Trim::Right, Trim::Both]
            .into_iter()
            .find(|trim| {
                let kept = trim
                    .apply_str(&format!("{space}{sentinel}{space}"))
                    .to_owned();
                padded == format!("{left}{kept}{right}")
            })
            .ok_or_else(|| unsupported("trims something else than white space".to_owned()))?;
        let frame = Frame {
            empty: match self.render_accepted("")? {
                Some(rendered) => rendered,
                None => format!("{left}{right}"),
            },
            left,
            right,
            trim,
        };

        for probe in self.probes(&sentinel, &space)? {
            let kept = trim.apply_str(&probe);
            let expected = match kept {
                "" => frame.empty.clone(),
                kept => format!("{}{kept}{}", frame.left, frame.right),
            };
            let rendered = self.render_accepted(&probe)?;
            if rendered.is_some_and(|rendered| rendered != expected) {
                return Err(unsupported(format!(
                    "treats the input {} in a way of its own",
                    quoted(&probe)
                )));
            }
        }
        Ok(frame)
    }

    /// Inputs that a template might treat differently.
    fn probes(&self, sentinel: &str, space: &str) -> Result<Vec<String>, ImportError> {
        let mut probes: Vec<String> = [
            "a", "A", "0", "7", "None", "True", "[]", "{}", "é", "漢", ".",
        ]
        .map(str::to_owned)
        .to_vec();
        probes.push(sentinel.repeat(50));
        // Many characters, words and lines.
        let long = |count: usize| format!("{}x", "x\n".repeat(count));
        probes.push(long(LONG_PROBE_LINES));
        for c in space.chars() {
            probes.push(c.to_string());
            probes.push(format!("{c}{sentinel}{c}"));
        }
        for pad in [" ", "\n", "  ", "\n\n", " \n", "\n ", "\t \r\n"] {
            probes.push(pad.to_owned());
            probes.push(format!("{pad}{sentinel}"));
            probes.push(format!("{sentinel}{pad}"));
            probes.push(format!("{pad}a{pad}"));
        }
        probes.push(space.to_owned());
        let literals = self.chat.map(ChatTemplate::literals).unwrap_or_default();
        if literals.texts.len() > LITERALS_MAX || literals.numbers.len() > NUMBERS_MAX {
            return Err(unsupported(format!(
                "has more than {LITERALS_MAX} literals, or {NUMBERS_MAX} numbers"
            )));
        }
        for number in literals.numbers {
            probes.push(number.to_string());
            // What is as long as this, in characters, words or lines.
            if let Ok(count) = usize::try_from(number)
                && (1..=LONG_PROBE_LINES).contains(&count)
            {
                probes.push("x".repeat(count));
                probes.push(long(count - 1));
            }
        }
        for literal in literals.texts {
            probes.push(literal.clone());
            probes.push(format!("{literal}{sentinel}"));
            probes.push(format!("{sentinel}{literal}"));
            probes.push(format!("{sentinel}{literal}{sentinel}"));
            probes.push(format!("{literal}{sentinel}{literal}"));
            probes.push(format!("{sentinel} {literal} {sentinel}\n{literal}\n"));
        }
        Ok(probes)
    }
}

/// Cuts the frame at the special tokens around the input and tokenizes what is outside.
fn cut(
    tokenizer: &Tokenizer<'_>,
    prompt: &Prompt<'_>,
    frame: &Frame,
) -> Result<PromptTemplate, ImportError> {
    let mut scratch = Scratch::new();
    let mut encode = |text: &str| {
        let mut ids = Vec::new();
        tokenizer.encode(text.as_bytes(), SpecialText::Parse, &mut scratch, &mut ids);
        ids
    };
    let specials = |text: &str| {
        let mut found = Vec::new();
        tokenizer.encode_spans(
            text.as_bytes(),
            SpecialText::Parse,
            &mut Scratch::new(),
            &mut |id, span| {
                let special = match tokenizer.kind(id).expect("encoding gives tokens") {
                    TokenKind::Control => true,
                    // Text without a token gives it too.
                    TokenKind::Unknown => tokenizer
                        .decode(id)
                        .is_some_and(|own| text.as_bytes()[span.clone()].starts_with(own)),
                    TokenKind::Normal
                    | TokenKind::UserDefined
                    | TokenKind::Unused
                    | TokenKind::Byte => false,
                };
                if special {
                    found.push((id, span));
                }
            },
        );
        found
    };

    let last = specials(&frame.left).pop();
    let left_end = last.as_ref().map_or(0, |(_, span)| span.end);
    let right_start = specials(&frame.right)
        .first()
        .map_or(frame.right.len(), |(_, span)| span.start);
    let mut trim = frame.trim;
    if left_end == frame.left.len() && last.is_some_and(|(id, _)| tokenizer.strips_right(id)) {
        trim = match trim {
            Trim::None | Trim::Left => Trim::Left,
            Trim::Right | Trim::Both => Trim::Both,
        };
    }
    let mut prefix_tokens = encode(&frame.left[..left_end]);
    let bos = tokenizer
        .bos()
        .filter(|_| prompt.chat.is_none() && tokenizer.adds_bos());
    if let Some(bos) = bos
        && prefix_tokens.first() != Some(&bos)
    {
        prefix_tokens.insert(0, bos);
    }
    let mut template = PromptTemplate {
        prefix_tokens,
        prefix_text: frame.left[left_end..].to_owned(),
        trim,
        suffix_text: frame.right[..right_start].to_owned(),
        suffix_tokens: encode(&frame.right[right_start..]),
        empty_tokens: None,
    };
    let whole = |rendered: &str, encode: &mut dyn FnMut(&str) -> Vec<u32>| {
        let mut ids = encode(rendered);
        if let Some(bos) = bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    };
    let filled = |template: &PromptTemplate, input: &str| {
        let mut ids = Vec::new();
        tokenizer.encode_prompt(template, input.as_bytes(), &mut Scratch::new(), &mut ids);
        ids
    };
    let empty = whole(&frame.empty, &mut encode);
    if filled(&template, "") != empty {
        template.empty_tokens = Some(empty);
    }
    // The parts must give what the whole gives; inputs here spell no special token.
    for input in ["", "a", " a ", "\n\na\n", "Word: 12\n", " \t漢字"] {
        let Some(rendered) = prompt.render_accepted(input)? else {
            continue;
        };
        if filled(&template, input) != whole(&rendered, &mut encode) {
            return Err(unsupported(format!(
                "surrounds the input {} with text that has other tokens alone",
                quoted(input)
            )));
        }
    }
    Ok(template)
}

fn unsupported(what: String) -> ImportError {
    ImportError::new(
        Code::ChatTemplateUnsupported,
        format!("the chat template {what}"),
    )
    .help("only templates that put the input in one place, whole or trimmed, can be built")
}
