//! Takes windows through the model, pass by pass.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use omex_plan::task::Sampling;

use super::draft::{DRAFT_MAX, look_up};
use super::lanes::Lanes;
use crate::error::RunError;
use crate::events::{Event, Finish, Sink};
use crate::exec::{Engine, Span};
use crate::os::file::AtomicFile;
use crate::os::signal;
use crate::sample::sample;
use crate::tokenizer::Tokenizer;

/// Counts over a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
    pub(super) drafted_tokens: u64,
    pub(super) accepted_tokens: u64,
    /// Passes over prompts alone: their tokens and time.
    pub(super) prefill_tokens: u64,
    pub(super) prefill: Duration,
    pub(super) decode: Duration,
    pub(super) first_token: Option<Duration>,
}

/// Receives the logits of every evaluated position as little-endian f32.
pub(super) struct LogitsFile<'a> {
    pub(super) path: &'a Path,
    pub(super) file: BufWriter<AtomicFile>,
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
    /// Prompt tokens of a pass.
    pub(super) chunk: usize,
    /// Whether tokens are drafted where the head has columns to spare.
    pub(super) drafts: bool,
    pub(super) logits_file: Option<LogitsFile<'a>>,
    pub(super) counts: Counts,
    pub(super) started: Instant,
}

/// What the windows of one node have in common.
pub(super) struct Request<'a> {
    pub(super) stop: &'a [String],
    pub(super) sampling: Sampling,
    /// The next pass takes the oldest window alone and without a draft: others
    /// made a value that is not finite, which the oldest may not.
    pub(super) alone: bool,
}

/// Where a node's text and events go.
pub(super) trait Receiver {
    fn text(&mut self, bytes: &[u8]) -> Result<(), RunError>;

    /// A window's text is complete.
    fn end(&mut self, window: u64, tokens: u32, finish: Finish) -> Result<(), RunError>;

    fn sink(&mut self) -> &mut dyn Sink;

    fn event(&mut self, event: &Event<'_>) -> Result<(), RunError> {
        let failed = RunError::io("report progress", Path::new("the event stream"));
        self.sink().event(event).map_err(failed)
    }
}

/// The columns of a pass.
#[derive(Debug)]
pub(super) struct Columns {
    tokens: Vec<u32>,
    /// Those whose last columns' logits are wanted come first.
    spans: Vec<Span>,
    /// The window of each span.
    windows: Vec<u64>,
    /// First column and number of the columns whose logits are wanted.
    head: (u32, u32),
    /// Some of the spans are of windows that generate.
    generates: bool,
}

impl Columns {
    fn clear(&mut self) {
        self.tokens.clear();
        self.spans.clear();
        self.windows.clear();
        self.head = (0, 0);
    }

    /// Room for the largest pass of a plan.
    pub(super) fn new(columns_max: usize, windows_max: usize) -> Columns {
        Columns {
            tokens: Vec::with_capacity(columns_max),
            spans: Vec::with_capacity(windows_max),
            windows: Vec::with_capacity(windows_max),
            head: (0, 0),
            generates: false,
        }
    }

    /// Adds the next `count` waiting tokens of a window and its draft.
    fn push(&mut self, lanes: &Lanes<'_>, window: u64, count: usize) {
        let lane = lanes.lane(window);
        let at = lane.evaluated;
        self.tokens.extend_from_slice(&lane.tokens[at..at + count]);
        self.tokens.extend_from_slice(&lane.draft[..lane.drafted]);
        self.windows.push(window);
        self.spans.push(Span {
            sequence: lanes.sequence(window),
            position: at as u32,
            columns: (count + lane.drafted) as u32,
        });
    }
}

fn check_stop() -> Result<(), RunError> {
    match signal::stop_requested() {
        Some(exit_code) => Err(RunError::Stopped { exit_code }),
        None => Ok(()),
    }
}

impl Generator<'_> {
    /// One pass over the windows on their way: each generates a token or more,
    /// or has a part of its prompt evaluated.
    pub(super) fn step(
        &mut self,
        lanes: &mut Lanes<'_>,
        request: &mut Request<'_>,
        columns: &mut Columns,
        out: &mut dyn Receiver,
    ) -> Result<(), RunError> {
        check_stop()?;
        self.compose(lanes, request, columns);
        let mut windows = columns.windows.iter().map(|&w| lanes.lane(w));
        let may_retry = columns.spans.len() > 1 || windows.any(|lane| lane.drafted > 0);
        let generates = columns.generates;
        let began = Instant::now();
        let evaluated = self.evaluate(columns);
        let spent = began.elapsed();
        if generates {
            self.counts.decode += spent;
        } else {
            self.counts.prefill += spent;
            self.counts.prefill_tokens += columns.tokens.len() as u64;
        }
        let began = Instant::now();
        let sampled = evaluated.and_then(|()| self.sample(lanes, request, columns));
        self.counts.decode += began.elapsed();
        match sampled {
            Ok(()) => request.alone = false,
            Err(RunError::NonFinite { .. }) if may_retry && !request.alone => {
                request.alone = true;
            }
            Err(e) => return Err(e),
        }
        for (span, &window) in columns.spans.iter().zip(&columns.windows) {
            let lane = lanes.lane(window);
            let prompt_tokens = lane.prompt_tokens as u32;
            // Not those of a pass that has to be done again.
            if span.position < prompt_tokens.min(lane.evaluated as u32) {
                out.event(&Event::Prefill {
                    window,
                    evaluated: (span.position + span.columns).min(prompt_tokens),
                    prompt_tokens,
                })?;
            }
        }
        lanes.tell(self.tokenizer, request.stop, out)
    }

    /// Chooses the columns of the next pass. Logits are computed of consecutive
    /// columns: first comes the prompt that ends in this pass, if one does, then
    /// the windows that generate, then prompts that go on. Of a second prompt
    /// that could end, the last token waits for the next pass.
    fn compose(&self, lanes: &mut Lanes<'_>, request: &Request<'_>, columns: &mut Columns) {
        columns.clear();
        let plan = self.engine.plan();
        let (columns_max, head_max) = (plan.columns_max as usize, plan.head_columns_max as usize);
        let unfinished = |lanes: &Lanes<'_>, w: &u64| lanes.lane(*w).finish.is_none();
        let windows = lanes.windows();
        let oldest = windows.clone().find(|w| unfinished(lanes, w));
        let taking_part = |lanes: &Lanes<'_>, w: &u64| {
            unfinished(lanes, w) && (!request.alone || Some(*w) == oldest)
        };
        let generates = |lanes: &Lanes<'_>, w: &u64| {
            let lane = lanes.lane(*w);
            taking_part(lanes, w) && lane.waiting() == 1 && lane.evaluated > 0
        };
        let prompted = |lanes: &Lanes<'_>, w: &u64| taking_part(lanes, w) && !generates(lanes, w);
        let generating = windows.clone().filter(|w| generates(lanes, w)).count();
        let first_prompt = windows.clone().find(|w| prompted(lanes, w));
        let drafts_max = match self.drafts && !request.alone && generating > 0 {
            true => ((head_max - generating) / generating).min(DRAFT_MAX),
            false => 0,
        };
        columns.generates = generating > 0;
        let mut taken = generating;
        for window in windows.clone() {
            if !generates(lanes, &window) {
                continue;
            }
            let lane = lanes.lane_mut(window);
            let left = (lane.tokens_max - lane.generated()).saturating_sub(1);
            let room = drafts_max.min(left);
            lane.drafted = look_up(&lane.tokens, &mut lane.draft[..room]);
            taken += lane.drafted;
        }
        let mut room = self.chunk.min(columns_max - taken);
        let ends = first_prompt.filter(|&w| {
            // Its logits need a column of the head.
            lanes.lane(w).waiting() <= room && taken < head_max
        });
        if let Some(window) = ends {
            let waiting = lanes.lane(window).waiting();
            columns.push(lanes, window, waiting);
            columns.head = (waiting as u32 - 1, 1);
            room -= waiting;
        }
        for window in windows.clone().filter(|w| generates(lanes, w)) {
            columns.push(lanes, window, 1);
        }
        columns.head.1 += taken as u32;
        for window in windows.filter(|w| prompted(lanes, w) && Some(*w) != ends) {
            let count = room.min(lanes.lane(window).waiting() - 1);
            if count > 0 {
                columns.push(lanes, window, count);
                room -= count;
            }
        }
    }

    fn evaluate(&mut self, columns: &Columns) -> Result<(), RunError> {
        let head_follows = columns.head.1 > 0 || self.logits_file.is_some();
        self.engine
            .forward_spans(&columns.tokens, &columns.spans, head_follows)
    }

    /// Chooses the next tokens of the windows whose logits were computed.
    fn sample(
        &mut self,
        lanes: &mut Lanes<'_>,
        request: &mut Request<'_>,
        columns: &Columns,
    ) -> Result<(), RunError> {
        let (first, count) = columns.head;
        if let Some(file) = &mut self.logits_file {
            // The last column, whose logits stay, is the one that is wanted.
            for column in 0..columns.tokens.len() as u32 {
                file.write(self.engine.logits(column)?)?;
            }
        } else if count > 0 {
            self.engine.head(first, count)?;
        }
        let mut column = 0;
        for (span, &window) in columns.spans.iter().zip(&columns.windows) {
            let end = column + span.columns;
            let lane = lanes.lane_mut(window);
            let drafted = std::mem::take(&mut lane.drafted);
            let tokens = span.columns as usize - drafted;
            lane.evaluated += tokens;
            self.counts.drafted_tokens += drafted as u64;
            // The first column whose logits say what comes next.
            let mut wanted = column + tokens as u32 - 1;
            let mut confirmed = 0;
            while (first..first + count).contains(&wanted) {
                if lane.generated() == lane.tokens_max {
                    lane.finish = Some(Finish::TokensMax);
                    break;
                }
                // One is there where the logits of all columns were written.
                let index = match self.logits_file {
                    Some(_) => 0,
                    None => wanted - first,
                };
                let memory = self.engine.sampling_memory(index);
                let (logits, memory) = memory.inspect_err(|_| lane.evaluated -= 1)?;
                let token = sample(&request.sampling, logits, memory, &lane.tokens);
                let started = self.started;
                (self.counts.first_token).get_or_insert_with(|| started.elapsed());
                let ends = &self.engine.plan().model.end_tokens;
                let is_end = ends.binary_search(&token).is_ok();
                // The logits of the last token are written, too: it is evaluated first.
                let ends_at = match self.logits_file {
                    Some(_) => usize::MAX,
                    None => lane.tokens_max,
                };
                lane.take(token, is_end, ends_at, self.tokenizer, request.stop)?;
                self.counts.generated_tokens += u64::from(!is_end);
                if lane.finish.is_some() || confirmed == drafted || lane.draft[confirmed] != token {
                    break;
                }
                confirmed += 1;
                wanted += 1;
                lane.evaluated += 1;
                self.counts.accepted_tokens += 1;
            }
            column = end;
        }
        Ok(())
    }
}
