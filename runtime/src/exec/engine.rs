//! Passes over a machine, on a pool of threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use omex_plan::{CheckedPlan, Phase, Plan};

use super::machine::Machine;
use super::pass::{Pass, Span, columns};
use super::tile::Tiles;
use crate::error::RunError;
use crate::memory::CodeSource;
use crate::pager::timeline::Timeline;
use crate::pool::Pool;

/// Evaluates tokens.
#[derive(Debug)]
pub struct Engine {
    machine: Machine,
    tiles: Tiles,
    pool: Pool,
    /// The spans of the last pass, whose columns the head can select; none after
    /// a pass that failed.
    spans: Vec<Span>,
    /// First column and number of the columns whose logits are there.
    head: Option<(u32, u32)>,
    /// The head's input is still where the last pass has put it.
    is_selectable: bool,
    barriers: u64,
}

impl Engine {
    /// `pool` has at most the plan's `threads_max` threads.
    pub fn new(machine: Machine, pool: Pool) -> Engine {
        assert!(
            pool.threads() <= machine.plan().threads_max,
            "more threads than the plan has stacks for"
        );
        Engine {
            tiles: Tiles::new(machine.plan(), pool.threads()),
            spans: Vec::with_capacity(machine.plan().sequences_max as usize),
            machine,
            pool,
            head: None,
            is_selectable: false,
            barriers: 0,
        }
    }

    pub fn plan(&self) -> &Plan {
        self.machine.plan()
    }

    /// Where the code of the plan's kernels is from.
    pub fn code_source(&self) -> CodeSource {
        self.machine.code_source()
    }

    /// The plan, to be kept while the engine works.
    pub fn shared_plan(&self) -> Arc<CheckedPlan> {
        Arc::clone(&self.machine.plan)
    }

    pub fn threads(&self) -> u32 {
        self.pool.threads()
    }

    /// Barriers passed since the load.
    pub fn barriers(&self) -> u64 {
        self.barriers
    }

    /// Evaluates `tokens`, at most `columns_max`, of sequence 0 at positions
    /// from `position` on. All positions before must have been evaluated.
    ///
    /// Errors: an activation or score that is NaN or infinite.
    /// Panics: a token outside the vocabulary, or a position outside the
    /// context: the caller counts both.
    pub fn forward(&mut self, tokens: &[u32], position: u32) -> Result<(), RunError> {
        self.forward_spans(tokens, &[Engine::alone(tokens, position)], true)
    }

    /// As [`Engine::forward`], for tokens whose logits are probably not asked
    /// for: no pages of the head are read ahead.
    pub fn forward_only(&mut self, tokens: &[u32], position: u32) -> Result<(), RunError> {
        self.forward_spans(tokens, &[Engine::alone(tokens, position)], false)
    }

    fn alone(tokens: &[u32], position: u32) -> Span {
        Span {
            sequence: 0,
            position,
            columns: tokens.len() as u32,
        }
    }

    /// Evaluates the tokens of several sequences, at most `columns_max`, span
    /// by span. `head_follows` says whether logits will probably be asked for.
    ///
    /// Errors and panics: those of [`Engine::forward`]; panics, too, for a
    /// sequence that is not below the plan's `sequences_max` or has two spans,
    /// and for spans that do not have as many columns as there are tokens.
    pub fn forward_spans(
        &mut self,
        tokens: &[u32],
        spans: &[Span],
        head_follows: bool,
    ) -> Result<(), RunError> {
        let plan = self.machine.plan();
        assert!(
            (1..=plan.columns_max as usize).contains(&tokens.len()),
            "a pass of {} columns, the plan allows {}",
            tokens.len(),
            plan.columns_max
        );
        for (i, span) in spans.iter().enumerate() {
            let Span {
                sequence,
                position,
                columns,
            } = *span;
            assert!(
                u64::from(position) + u64::from(columns) <= u64::from(plan.model.context),
                "positions {position}..+{columns} outside the context of {}",
                plan.model.context
            );
            assert!(
                columns > 0
                    && sequence < plan.sequences_max
                    && spans[..i].iter().all(|s| s.sequence != sequence),
                "sequence {sequence} of {} has one span with columns",
                plan.sequences_max
            );
        }
        assert_eq!(
            columns(spans) as usize,
            tokens.len(),
            "columns of the spans"
        );
        let vocabulary = plan.model.vocabulary;
        assert!(
            tokens.iter().all(|&token| token < vocabulary),
            "a token outside the vocabulary of {vocabulary}"
        );
        self.machine.put_tokens(tokens);
        self.spans.clear();
        self.head = None;
        self.machine.pages.begin_body(head_follows);
        let body = self.plan().body_phases as usize;
        self.run_phases(0, body, Pass::body(spans))?;
        self.spans.extend_from_slice(spans);
        self.is_selectable = true;
        Ok(())
    }

    /// Logits of one column of the last pass, one per token of the vocabulary.
    ///
    /// Errors: a logit that is NaN or infinite.
    /// Panics: no pass before, or a column outside it.
    pub fn logits(&mut self, column: u32) -> Result<&[f32], RunError> {
        self.logits_mut(column).map(|logits| &*logits)
    }

    /// As [`Engine::logits`], to be changed by a sampler.
    pub fn logits_mut(&mut self, column: u32) -> Result<&mut [f32], RunError> {
        self.head(column, 1)?;
        self.head_logits_mut(0)
    }

    /// Computes the logits of `count` columns of the last pass from `first`
    /// on, at most the plan's `head_columns_max`.
    ///
    /// Panics: no pass before, or columns outside it.
    pub fn head(&mut self, first: u32, count: u32) -> Result<(), RunError> {
        let plan = self.plan();
        let last = columns(&self.spans);
        assert!(last > 0 && self.is_selectable, "logits follow a pass");
        assert!(
            (1..=plan.head_columns_max).contains(&count) && first < last && count <= last - first,
            "columns of the last pass"
        );
        let (body, end) = (plan.body_phases as usize, plan.phases.len());
        self.head = None;
        self.machine.pages.begin_head();
        // Taken for the time of the run, which borrows the engine as a whole.
        let spans = std::mem::take(&mut self.spans);
        let pass = Pass {
            spans: &spans,
            columns: count,
            selected: first,
        };
        let result = self.run_phases(body, end, pass);
        self.spans = spans;
        result?;
        self.head = Some((first, count));
        Ok(())
    }

    /// Logits of the column `index` of those that the head computed last.
    ///
    /// Errors: a logit that is NaN or infinite.
    /// Panics: no such column.
    pub fn head_logits_mut(&mut self, index: u32) -> Result<&mut [f32], RunError> {
        let (first, count) = self.head.expect("logits follow a head");
        assert!(index < count, "a column of the last head");
        let position = Pass::body(&self.spans).position(first + index);
        let logits = self.machine.logits_mut(index);
        // Without an early end, which would take one at a time.
        if logits.iter().fold(true, |ok, x| ok & x.is_finite()) {
            Ok(logits)
        } else {
            Err(RunError::NonFinite {
                step: "logits".to_owned(),
                layer: None,
                position,
            })
        }
    }

    /// As [`Engine::head_logits_mut`], with working memory for a sampler. The
    /// head cannot select other columns of the pass any more.
    pub fn sampling_memory(&mut self, index: u32) -> Result<(&mut [f32], &mut [u32]), RunError> {
        self.head_logits_mut(index)?;
        self.is_selectable = false;
        Ok(self.machine.sampling_memory(index))
    }

    /// Working memory of the tokenizer. The last pass's logits are lost; so are
    /// its keys and values, where the plan has one sequence.
    pub fn tokenizer_memory(&mut self) -> &mut [u32] {
        self.spans.clear();
        self.head = None;
        self.machine.tokenizer_memory()
    }

    /// As [`Engine::forward`] with the last column's logits, but one step after
    /// the other, each alone on all threads: how long each took.
    ///
    /// Errors and panics: those of [`Engine::forward`].
    pub fn time_steps(&mut self, tokens: &[u32], position: u32) -> Result<Vec<Duration>, RunError> {
        self.forward(tokens, position)?;
        let columns = tokens.len() as u32;
        let spans = [Engine::alone(tokens, position)];
        let shared = self.shared_plan();
        let plan = shared.plan();
        let mut times = Vec::with_capacity(plan.steps.len());
        self.machine.pages.begin_body(true);
        for (index, phase) in plan.phases.iter().enumerate() {
            if index == plan.body_phases as usize {
                self.machine.pages.begin_head();
            }
            let whole = Pass::body(&spans);
            let pass = if index < plan.body_phases as usize {
                whole
            } else {
                Pass {
                    columns: 1,
                    selected: columns - 1,
                    ..whole
                }
            };
            for step in phase.first_step..phase.first_step + phase.steps {
                let alone = Phase {
                    first_step: step,
                    steps: 1,
                };
                let began = Instant::now();
                let failed = self
                    .machine
                    .run(&mut self.pool, &self.tiles, index, &[alone], pass);
                times.push(began.elapsed());
                self.outcome(failed, pass)?;
            }
        }
        Ok(times)
    }

    fn run_phases(&mut self, first: usize, end: usize, pass: Pass<'_>) -> Result<(), RunError> {
        self.barriers += self.plan().barriers(first..end, pass.columns);
        let shared = self.shared_plan();
        let phases = &shared.plan().phases[first..end];
        let failed = self
            .machine
            .run(&mut self.pool, &self.tiles, first, phases, pass);
        self.machine.pages.leave();
        self.outcome(failed, pass)
    }

    /// What was recorded, where the load asked for it and pages come and go.
    pub(crate) fn timeline(&self) -> Option<&Timeline> {
        self.machine.pages.timeline()
    }

    /// Why a run stopped early: pages that cannot be brought, or the first
    /// step that met a value that is not finite.
    fn outcome(&self, failed: Option<usize>, pass: Pass<'_>) -> Result<(), RunError> {
        if let Some(fault) = self.machine.pages.fault() {
            return Err(fault);
        }
        match failed {
            None => Ok(()),
            Some(index) => {
                let step = &self.plan().steps[index];
                Err(RunError::NonFinite {
                    step: step.name.clone(),
                    layer: step.layer,
                    position: pass.position(0),
                })
            }
        }
    }
}
