//! What a run tells while it goes on.

use std::io::{self, Write};

use crate::json::Object;

/// Room for the longest line of an event, names of files apart.
const LINE_BYTES: usize = 1024;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    EndToken,
    /// One of the task's stop texts appeared.
    StopText,
    /// As many tokens as were asked for.
    TokensMax,
}

impl Finish {
    pub const fn name(self) -> &'static str {
        match self {
            Finish::EndToken => "end",
            Finish::StopText => "stop",
            Finish::TokensMax => "length",
        }
    }
}

/// Something that happened. Windows are counted from 0 per node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    NodeStart {
        node: &'a str,
    },
    /// A prompt of so many tokens is about to be evaluated.
    Prompt {
        node: &'a str,
        window: u64,
        source: &'a str,
        prompt_tokens: u32,
    },
    /// So many of the prompt's tokens have been evaluated.
    Prefill {
        window: u64,
        evaluated: u32,
        prompt_tokens: u32,
    },
    /// A token was generated, the end token included. Windows may be evaluated
    /// together, but what they generate is told window by window.
    Token {
        id: u32,
    },
    WindowEnd {
        node: &'a str,
        window: u64,
        generated_tokens: u32,
        finish: Finish,
    },
    NodeEnd {
        node: &'a str,
    },
    /// Something that a user should know, such as a file that was passed over.
    Note {
        what: &'a str,
    },
}

/// Receives the result and the events of a run.
pub trait Sink {
    /// The next bytes of the task's standard output: whole characters, as far
    /// as the model generates them.
    fn text(&mut self, bytes: &[u8]) -> io::Result<()>;

    fn event(&mut self, _event: &Event<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A sink that keeps text and tokens, for reports at the end.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    pub text: Vec<u8>,
    pub token_ids: Vec<u32>,
}

impl Sink for Collector {
    fn text(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        if let Event::Token { id } = event {
            self.token_ids.push(*id);
        }
        Ok(())
    }
}

/// A sink that writes one JSON object a line for every event and text.
#[derive(Debug)]
pub struct JsonLines<W> {
    out: W,
    /// The memory of lines.
    line: String,
}

impl<W: Write> JsonLines<W> {
    pub fn new(out: W) -> JsonLines<W> {
        JsonLines {
            out,
            line: String::with_capacity(LINE_BYTES),
        }
    }

    /// An event's object, before its fields.
    fn named(&mut self, name: &str) -> Object {
        Object::reusing(std::mem::take(&mut self.line)).string("event", name)
    }

    fn line(&mut self, object: Object) -> io::Result<()> {
        self.line = object.finish();
        self.line.push('\n');
        self.out.write_all(self.line.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Sink for JsonLines<W> {
    fn text(&mut self, bytes: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(bytes);
        let object = self.named("text").string("text", &text);
        self.line(object)
    }

    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        let mut named = |name: &str| self.named(name);
        let object = match *event {
            Event::NodeStart { node } => named("node_start").string("node", node),
            Event::Prompt {
                node,
                window,
                source,
                prompt_tokens,
            } => named("prompt")
                .string("node", node)
                .integer("window", window)
                .string("source", source)
                .integer("prompt_tokens", prompt_tokens.into()),
            Event::Prefill {
                window,
                evaluated,
                prompt_tokens,
            } => named("prefill")
                .integer("window", window)
                .integer("evaluated", evaluated.into())
                .integer("prompt_tokens", prompt_tokens.into()),
            Event::Token { id } => named("token").integer("id", id.into()),
            Event::WindowEnd {
                node,
                window,
                generated_tokens,
                finish,
            } => named("window_end")
                .string("node", node)
                .integer("window", window)
                .integer("generated_tokens", generated_tokens.into())
                .string("finish", finish.name()),
            Event::NodeEnd { node } => named("node_end").string("node", node),
            Event::Note { what } => named("note").string("what", what),
        };
        self.line(object)
    }
}
