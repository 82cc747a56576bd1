//! Generates from one prompt.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::draft::{DRAFT_MAX, look_up};
use crate::error::RunError;
use crate::events::{Event, Finish, Sink};
use crate::exec::Engine;
use crate::os::signal;
use crate::sample::Sampler;
use crate::tokenizer::stream::Utf8Hold;
use crate::tokenizer::{TokenKind, Tokenizer};

/// Counts over a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
    /// Passes over a generated token and the draft behind it.
    pub(super) decode_passes: u64,
    pub(super) drafted_tokens: u64,
    pub(super) accepted_tokens: u64,
    pub(super) prefill: Duration,
    pub(super) decode: Duration,
    pub(super) first_token: Option<Duration>,
}

/// Receives the logits of every evaluated position as little-endian f32.
pub(super) struct LogitsFile<'a> {
    pub(super) path: &'a Path,
    pub(super) file: BufWriter<File>,
}

impl LogitsFile<'_> {
    fn write(&mut self, logits: &[f32]) -> Result<(), RunError> {
        for logit in logits {
            self.file
                .write_all(&logit.to_le_bytes())
                .map_err(RunError::io("write the logits", self.path))?;
        }
        Ok(())
    }
}

/// What stays the same from window to window.
pub(super) struct Generator<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) tokenizer: &'a Tokenizer<'a>,
    /// Tokens of a prefill pass.
    pub(super) chunk: usize,
    /// Tokens of a draft that a pass verifies.
    pub(super) drafts_max: usize,
    pub(super) logits_file: Option<LogitsFile<'a>>,
    pub(super) counts: Counts,
    pub(super) started: Instant,
}

/// One generation.
pub(super) struct Request<'a> {
    pub(super) tokens_max: u32,
    pub(super) stop: &'a [String],
    pub(super) sampler: &'a mut Sampler,
    /// The prompt; generated tokens are appended.
    pub(super) tokens: &'a mut Vec<u32>,
    pub(super) stop_filter: &'a mut StopFilter,
}

/// Where a generation's text and events go.
pub(super) trait Receiver {
    fn text(&mut self, bytes: &[u8]) -> Result<(), RunError>;
    fn sink(&mut self) -> &mut dyn Sink;

    fn event(&mut self, event: &Event<'_>) -> Result<(), RunError> {
        let failed = RunError::io("report progress", Path::new("the event stream"));
        self.sink().event(event).map_err(failed)
    }
}

fn check_stop() -> Result<(), RunError> {
    match signal::stop_requested() {
        Some(exit_code) => Err(RunError::Stopped { exit_code }),
        None => Ok(()),
    }
}

impl Generator<'_> {
    /// Evaluates the prompt and generates up to `tokens_max` tokens. Returns
    /// how many were generated, an end token not counted, and why it ended.
    pub(super) fn generate(
        &mut self,
        request: Request<'_>,
        out: &mut dyn Receiver,
    ) -> Result<(u32, Finish), RunError> {
        let Request {
            tokens_max,
            stop,
            sampler,
            tokens,
            stop_filter,
        } = request;
        let prompt_tokens = tokens.len() as u32;
        self.prefill(tokens, out)?;
        let mut hold = Utf8Hold::default();
        stop_filter.clear();
        let mut generated = 0;
        let mut at_start = self.tokenizer.adds_space_prefix();
        let began = Instant::now();
        let last = (tokens.len() - 1) % self.chunk;
        self.engine.head(last as u32, 1)?;
        self.counts.decode += began.elapsed();
        // The pass before evaluated `drafts[..drafted]` behind the last token;
        // what was sampled confirmed the first `confirmed` of them.
        let mut drafts = [0; DRAFT_MAX];
        let (mut drafted, mut confirmed) = (0, 0);
        let finish = loop {
            if generated == tokens_max {
                break Finish::TokensMax;
            }
            check_stop()?;
            let began = Instant::now();
            let logits = self.engine.head_logits_mut(confirmed as u32)?;
            let token = sampler.next(logits, tokens);
            self.counts.decode += began.elapsed();
            let started = self.started;
            self.counts
                .first_token
                .get_or_insert_with(|| started.elapsed());
            out.event(&Event::Token { id: token })?;
            if self
                .engine
                .plan()
                .model
                .end_tokens
                .binary_search(&token)
                .is_ok()
            {
                break Finish::EndToken;
            }
            tokens.push(token);
            generated += 1;
            self.counts.generated_tokens += 1;
            let bytes = self.text_of(token, &mut at_start);
            let stopped = stop_filter.push(bytes, stop, &mut |text| emit(&mut hold, text, out))?;
            if stopped {
                break Finish::StopText;
            }
            if confirmed < drafted && drafts[confirmed] == token {
                confirmed += 1;
                self.counts.accepted_tokens += 1;
            } else if generated < tokens_max || self.logits_file.is_some() {
                let began = Instant::now();
                let room = (tokens_max - generated).saturating_sub(1) as usize;
                let room = self.drafts_max.min(room);
                drafted = look_up(tokens, &mut drafts[..room]);
                drafted = self.verify(tokens, &drafts[..drafted])?;
                confirmed = 0;
                self.counts.decode += began.elapsed();
                self.counts.decode_passes += 1;
                self.counts.drafted_tokens += drafted as u64;
                if let Some(file) = &mut self.logits_file {
                    file.write(self.engine.head_logits_mut(0)?)?;
                }
            }
        };
        if finish != Finish::StopText {
            stop_filter.finish(&mut |text| emit(&mut hold, text, out))?;
        }
        let mut result = Ok(());
        hold.finish(&mut |bytes| result = out.text(bytes));
        result?;
        debug_assert_eq!(tokens.len() as u32, prompt_tokens + generated);
        Ok((generated, finish))
    }

    /// Evaluates the last of `tokens` and the draft behind it, with the logits
    /// of both. Returns how many drafted tokens were evaluated: none when they
    /// made a value that is not finite, which the true tokens may not.
    fn verify(&mut self, tokens: &[u32], draft: &[u32]) -> Result<usize, RunError> {
        let mut pass = [0; 1 + DRAFT_MAX];
        pass[0] = tokens[tokens.len() - 1];
        pass[1..=draft.len()].copy_from_slice(draft);
        let position = tokens.len() as u32 - 1;
        let mut evaluate = |count: usize| {
            self.engine.forward(&pass[..count], position)?;
            self.engine.head(0, count as u32)
        };
        match evaluate(1 + draft.len()) {
            Ok(()) => Ok(draft.len()),
            Err(RunError::NonFinite { .. }) if !draft.is_empty() => evaluate(1).map(|()| 0),
            Err(e) => Err(e),
        }
    }

    fn prefill(&mut self, tokens: &[u32], out: &mut dyn Receiver) -> Result<(), RunError> {
        let mut evaluated = 0;
        for chunk in tokens.chunks(self.chunk) {
            check_stop()?;
            let began = Instant::now();
            let last = evaluated as usize + chunk.len() == tokens.len();
            if last || self.logits_file.is_some() {
                self.engine.forward(chunk, evaluated)?;
            } else {
                self.engine.forward_only(chunk, evaluated)?;
            }
            self.counts.prefill += began.elapsed();
            evaluated += chunk.len() as u32;
            if let Some(file) = &mut self.logits_file {
                for column in 0..chunk.len() as u32 {
                    file.write(self.engine.logits(column)?)?;
                }
            }
            out.event(&Event::Prefill {
                evaluated,
                prompt_tokens: tokens.len() as u32,
            })?;
        }
        self.counts.prompt_tokens += tokens.len() as u64;
        Ok(())
    }

    /// The bytes that a generated token adds to the text: none for control
    /// tokens; the space that encoding would have put first is taken away.
    fn text_of(&self, token: u32, at_start: &mut bool) -> &[u8] {
        let kind = self.tokenizer.kind(token);
        if matches!(kind, Some(TokenKind::Control | TokenKind::Unused) | None) {
            return &[];
        }
        let bytes = self.tokenizer.decode(token).unwrap_or_default();
        let first = std::mem::replace(at_start, false);
        match bytes {
            [b' ', rest @ ..] if first && kind != Some(TokenKind::UserDefined) => rest,
            bytes => bytes,
        }
    }
}

fn emit(hold: &mut Utf8Hold, bytes: &[u8], out: &mut dyn Receiver) -> Result<(), RunError> {
    let mut result = Ok(());
    hold.push(bytes, &mut |bytes| {
        if result.is_ok() {
            result = out.text(bytes);
        }
    });
    result
}

/// Holds back text that may be the start of a stop text.
#[derive(Debug, Default)]
pub(super) struct StopFilter {
    held: Vec<u8>,
}

type Emit<'a> = dyn FnMut(&[u8]) -> Result<(), RunError> + 'a;

impl StopFilter {
    pub(super) fn with_capacity(bytes: usize) -> StopFilter {
        StopFilter {
            held: Vec::with_capacity(bytes),
        }
    }

    fn clear(&mut self) {
        self.held.clear();
    }

    /// Takes the next text and gives out what cannot be part of a stop text
    /// any more. Returns true when one appeared; it is not given out.
    fn push(
        &mut self,
        bytes: &[u8],
        stop: &[String],
        emit: &mut Emit<'_>,
    ) -> Result<bool, RunError> {
        self.held.extend_from_slice(bytes);
        let found = |at: &usize| {
            stop.iter()
                .any(|s| self.held[*at..].starts_with(s.as_bytes()))
        };
        if let Some(at) = (0..self.held.len()).find(found) {
            emit(&self.held[..at])?;
            self.held.clear();
            return Ok(true);
        }
        let may_start = |at: &usize| {
            let rest = &self.held[*at..];
            stop.iter().any(|s| s.as_bytes().starts_with(rest))
        };
        let keep = (0..self.held.len()).find(may_start);
        let keep = keep.unwrap_or(self.held.len());
        if keep > 0 {
            emit(&self.held[..keep])?;
            self.held.drain(..keep);
        }
        Ok(false)
    }

    fn finish(&mut self, emit: &mut Emit<'_>) -> Result<(), RunError> {
        if !self.held.is_empty() {
            emit(&self.held)?;
            self.held.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(stop: &[&str], parts: &[&str]) -> (String, bool) {
        let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
        let mut filter = StopFilter::default();
        let mut text = Vec::new();
        let mut emit = |bytes: &[u8]| {
            text.extend_from_slice(bytes);
            Ok(())
        };
        for part in parts {
            if filter.push(part.as_bytes(), &stop, &mut emit).unwrap() {
                return (String::from_utf8(text).unwrap(), true);
            }
        }
        filter.finish(&mut emit).unwrap();
        (String::from_utf8(text).unwrap(), false)
    }

    #[test]
    fn stop_texts_end_the_text_wherever_tokens_end() {
        let ended = |s: &str| (s.to_owned(), true);
        let whole = |s: &str| (s.to_owned(), false);
        assert_eq!(filter(&["END"], &["a E", "N", "D b"]), ended("a "));
        assert_eq!(filter(&["END"], &["a E", "N", "E"]), whole("a ENE"));
        assert_eq!(filter(&["END"], &["EEN", "END"]), ended("EEN"));
        assert_eq!(filter(&["aab", "b"], &["a", "a", "c", "b"]), ended("aac"));
        assert_eq!(filter(&["xyz"], &["x", "y"]), whole("xy"));
        assert_eq!(filter(&[], &["x", "y"]), whole("xy"));
        assert_eq!(filter(&["bc", "abcd"], &["abc"]), ended("a"));
    }
}
