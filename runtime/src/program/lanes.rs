//! Windows on their way through the model, several at a time.
//!
//! Windows enter and leave in order. Each has a lane: its tokens, and a sequence
//! of the engine that holds their keys and values. What a window says is told
//! when all windows before it have left; until then its tokens wait.

use super::draft::DRAFT_MAX;
use super::generate::Receiver;
use super::history::History;
use super::stops::{Emit, StopFilter};
use crate::error::RunError;
use crate::events::{Event, Finish};
use crate::tokenizer::stream::Utf8Hold;
use crate::tokenizer::{TokenKind, Tokenizer};

/// A generation's tokens as text, up to a stop text.
#[derive(Debug)]
struct Speech {
    at_start: bool,
    hold: Utf8Hold,
    filter: StopFilter,
}

impl Speech {
    fn new() -> Speech {
        Speech {
            at_start: false,
            hold: Utf8Hold::default(),
            filter: StopFilter::with_capacity(super::STOP_BUFFER_BYTES),
        }
    }

    fn start(&mut self, tokenizer: &Tokenizer<'_>) {
        self.at_start = tokenizer.adds_space_prefix();
        self.hold = Utf8Hold::default();
        self.filter.clear();
    }

    /// Takes the next token. Returns true when a stop text appeared.
    fn push(
        &mut self,
        token: u32,
        tokenizer: &Tokenizer<'_>,
        stop: &[String],
        emit: &mut Emit<'_>,
    ) -> Result<bool, RunError> {
        let bytes = text_of(tokenizer, token, &mut self.at_start);
        let hold = &mut self.hold;
        let emit = &mut |text: &[u8]| whole_characters(hold, text, emit);
        self.filter.push(bytes, stop, emit)
    }

    /// Gives out what still waits; behind a stop text, nothing does but the
    /// start of a character.
    fn finish(&mut self, stopped: bool, emit: &mut Emit<'_>) -> Result<(), RunError> {
        if !stopped {
            let hold = &mut self.hold;
            self.filter
                .finish(&mut |text| whole_characters(hold, text, emit))?;
        }
        let mut result = Ok(());
        self.hold.finish(&mut |bytes| result = emit(bytes));
        result
    }
}

fn whole_characters(
    hold: &mut Utf8Hold,
    bytes: &[u8],
    emit: &mut Emit<'_>,
) -> Result<(), RunError> {
    let mut result = Ok(());
    hold.push(bytes, &mut |bytes| {
        if result.is_ok() {
            result = emit(bytes);
        }
    });
    result
}

/// The bytes that a generated token adds to the text: none for control tokens;
/// the space that encoding would have put first is taken away.
fn text_of<'a>(tokenizer: &'a Tokenizer<'_>, token: u32, at_start: &mut bool) -> &'a [u8] {
    let kind = tokenizer.kind(token);
    if matches!(kind, Some(TokenKind::Control | TokenKind::Unused) | None) {
        return &[];
    }
    let bytes = tokenizer.decode(token).unwrap_or_default();
    let first = std::mem::replace(at_start, false);
    match bytes {
        [b' ', rest @ ..] if first && kind != Some(TokenKind::UserDefined) => rest,
        bytes => bytes,
    }
}

/// One window on its way.
#[derive(Debug)]
pub(super) struct Lane<'m> {
    /// Of the node, counted from 0.
    pub(super) window: u64,
    /// The prompt, then what was generated.
    pub(super) tokens: History<'m>,
    pub(super) prompt_tokens: usize,
    /// To generate, at most.
    pub(super) tokens_max: usize,
    /// The first so many tokens have their keys and values in the rings.
    pub(super) evaluated: usize,
    /// What the pass evaluates behind the last token.
    pub(super) draft: [u32; DRAFT_MAX],
    pub(super) drafted: usize,
    pub(super) finish: Option<Finish>,
    /// What ended the generation, when a token did.
    end_token: Option<u32>,
    /// Finds stop texts before the window's turn to be told.
    ahead: Speech,
    told: Speech,
    told_tokens: usize,
}

impl<'m> Lane<'m> {
    fn new(memory: &'m mut [u32]) -> Lane<'m> {
        Lane {
            window: 0,
            tokens: History::new(memory),
            prompt_tokens: 0,
            tokens_max: 0,
            evaluated: 0,
            draft: [0; DRAFT_MAX],
            drafted: 0,
            finish: None,
            end_token: None,
            ahead: Speech::new(),
            told: Speech::new(),
            told_tokens: 0,
        }
    }

    fn start(&mut self, window: u64, tokens_max: usize, tokenizer: &Tokenizer<'_>) {
        self.window = window;
        self.prompt_tokens = self.tokens.len();
        self.tokens_max = tokens_max;
        self.evaluated = 0;
        self.drafted = 0;
        self.finish = None;
        self.end_token = None;
        self.ahead.start(tokenizer);
        self.told.start(tokenizer);
        self.told_tokens = 0;
    }

    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens that no pass has evaluated.
    pub(super) fn waiting(&self) -> usize {
        self.tokens.len() - self.evaluated
    }

    /// Takes the token that was sampled behind the others.
    pub(super) fn take(
        &mut self,
        token: u32,
        is_end: bool,
        tokens_max: usize,
        tokenizer: &Tokenizer<'_>,
        stop: &[String],
    ) -> Result<(), RunError> {
        if is_end {
            self.end_token = Some(token);
            self.finish = Some(Finish::EndToken);
            return Ok(());
        }
        self.tokens.push(token);
        let stopped =
            !stop.is_empty() && self.ahead.push(token, tokenizer, stop, &mut |_| Ok(()))?;
        if stopped {
            self.finish = Some(Finish::StopText);
        } else if self.generated() == tokens_max {
            self.finish = Some(Finish::TokensMax);
        }
        Ok(())
    }

    /// Tells what was generated since; everything, when the generation ended.
    fn tell(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        stop: &[String],
        out: &mut dyn Receiver,
    ) -> Result<(), RunError> {
        while self.told_tokens < self.generated() {
            let token = self.tokens[self.prompt_tokens + self.told_tokens];
            self.told_tokens += 1;
            out.event(&Event::Token { id: token })?;
            self.told
                .push(token, tokenizer, stop, &mut |text| out.text(text))?;
        }
        if let Some(finish) = self.finish {
            if let Some(id) = self.end_token {
                out.event(&Event::Token { id })?;
            }
            let stopped = finish == Finish::StopText;
            self.told.finish(stopped, &mut |text| out.text(text))?;
        }
        Ok(())
    }
}

/// Bytes that a lane takes beside its tokens.
pub(crate) const LANE_BYTES: usize = size_of::<Lane<'_>>() + 2 * super::STOP_BUFFER_BYTES;

/// The lanes of a plan. A window's lane, and its sequence, is its number modulo
/// the number of lanes in use.
#[derive(Debug)]
pub(super) struct Lanes<'m> {
    lanes: Vec<Lane<'m>>,
    /// Windows from `first` to `next` are on their way.
    first: u64,
    next: u64,
}

impl<'m> Lanes<'m> {
    /// `count` lanes for tokens of `context` positions, in `memory`.
    pub(super) fn new(memory: &'m mut [u32], count: usize, context: usize) -> Lanes<'m> {
        let memory = memory.chunks_exact_mut(context);
        let lanes: Vec<Lane<'m>> = memory.take(count).map(Lane::new).collect();
        assert_eq!(lanes.len(), count, "memory of the lanes");
        Lanes {
            lanes,
            first: 0,
            next: 0,
        }
    }

    /// Counts windows from 0 again. None is on its way.
    pub(super) fn reset(&mut self) {
        (self.first, self.next) = (0, 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first == self.next
    }

    pub(super) fn is_full(&self) -> bool {
        self.next - self.first == self.lanes.len() as u64
    }

    /// The sequence of a window's lane.
    pub(super) fn sequence(&self, window: u64) -> u32 {
        (window % self.lanes.len() as u64) as u32
    }

    /// The windows on their way, in order.
    pub(super) fn windows(&self) -> std::ops::Range<u64> {
        self.first..self.next
    }

    pub(super) fn lane(&self, window: u64) -> &Lane<'m> {
        &self.lanes[self.sequence(window) as usize]
    }

    pub(super) fn lane_mut(&mut self, window: u64) -> &mut Lane<'m> {
        let sequence = self.sequence(window);
        &mut self.lanes[sequence as usize]
    }

    /// The tokens of the lane that the next window will take.
    ///
    /// Panics when all are taken.
    pub(super) fn free_tokens(&mut self) -> &mut History<'m> {
        assert!(!self.is_full(), "a lane is free");
        &mut self.lane_mut(self.next).tokens
    }

    /// The next window starts with what is in its lane's tokens. Returns its number.
    pub(super) fn start(&mut self, tokens_max: usize, tokenizer: &Tokenizer<'_>) -> u64 {
        let window = self.next;
        self.lane_mut(window).start(window, tokens_max, tokenizer);
        self.next += 1;
        window
    }

    /// Tells what the oldest window has to say, and lets those leave that ended.
    pub(super) fn tell(
        &mut self,
        tokenizer: &Tokenizer<'_>,
        stop: &[String],
        out: &mut dyn Receiver,
    ) -> Result<(), RunError> {
        while !self.is_empty() {
            let window = self.first;
            let lane = self.lane_mut(window);
            lane.tell(tokenizer, stop, out)?;
            let Some(finish) = lane.finish else {
                break;
            };
            out.end(window, lane.generated() as u32, finish)?;
            self.first += 1;
        }
        Ok(())
    }
}
