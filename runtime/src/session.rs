//! A session: a loaded plan that runs its task.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use omex_plan::{Plan, WeightSource};

use crate::error::RunError;
use crate::events::Sink;
use crate::exec::{Engine, SessionMemory};
use crate::hex;
use crate::json::Object;
use crate::load::{self, LoadOptions};
use crate::memory::{Conditions, rss_peak_bytes};
use crate::os::file::AtomicFile;
use crate::os::memory::Frozen;
use crate::os::process;
use crate::program::{self, RunOptions};
use crate::tokenizer::Tokenizer;
use crate::transcript::Transcript;

/// A loaded plan.
#[derive(Debug)]
pub struct Session {
    engine: Engine,
    tables: Frozen,
    memory: SessionMemory,
}

/// What a run was, how fast and in how much memory.
#[derive(Clone, Debug)]
pub struct Report {
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Tokens that were looked up and verified beside others, and those of
    /// them that were right.
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
    /// Prompt tokens per second of passes over prompts alone.
    pub prefill_tps: f64,
    /// Tokens generated per second of the other passes and of sampling.
    pub decode_tps: f64,
    /// Both together.
    pub seconds: f64,
    /// From the start of the run to its first token.
    pub ttft_ms: f64,
    /// What the plan states for all runs of it.
    pub rss_peak_stated_bytes: u64,
    /// What it predicts for this one.
    pub rss_peak_predicted_bytes: u64,
    pub rss_peak_measured_bytes: u64,
    /// What files back of the resident set at the end: mapped weights, and the
    /// program itself.
    pub rss_file_bytes: u64,
    /// Bytes that the process caused to be read from storage.
    pub bytes_read: u64,
    /// Barriers that threads met at, in all passes together.
    pub barriers: u64,
    pub threads: u32,
    /// Equal ids mean equal results, bit by bit.
    pub result_id: [u8; 32],
}

impl Report {
    /// Writes the report as one JSON object, with the result's text and tokens, and how
    /// much of the files is now mapped in huge pages: finding that out goes through every
    /// page, so only who asks for it waits.
    pub fn write_json(&self, transcript: Transcript, out: &mut dyn Write) -> io::Result<()> {
        let fields = Object::new()
            .integer("prompt_tokens", self.prompt_tokens)
            .integer("generated_tokens", self.generated_tokens)
            .integer("drafted_tokens", self.drafted_tokens)
            .integer("accepted_tokens", self.accepted_tokens)
            .float("prefill_tps", self.prefill_tps)
            .float("decode_tps", self.decode_tps)
            .float("seconds", self.seconds)
            .float("ttft_ms", self.ttft_ms)
            .integer("rss_peak_stated_bytes", self.rss_peak_stated_bytes)
            .integer("rss_peak_predicted_bytes", self.rss_peak_predicted_bytes)
            .integer("rss_peak_measured_bytes", self.rss_peak_measured_bytes)
            .integer("rss_file_bytes", self.rss_file_bytes)
            .integer("rss_file_huge_bytes", process::rss_file_huge_bytes())
            .integer("bytes_read", self.bytes_read)
            .integer("barriers", self.barriers)
            .integer("threads", self.threads.into())
            .string("result_id", &hex::encode(&self.result_id))
            .finish();
        transcript.write("\"schema_version\":1", &fields, out)
    }
}

impl Session {
    /// Loads the plan at `path` and everything that it needs.
    ///
    /// Errors: see the exit codes of [`RunError`]; nothing has run then.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Session, RunError> {
        let loaded = load::load(path, options)?;
        Ok(Session {
            engine: loaded.engine,
            tables: loaded.tokenizer,
            memory: loaded.memory,
        })
    }

    pub fn plan(&self) -> &Plan {
        self.engine.plan()
    }

    /// The engine, for evaluations outside the plan's task.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    pub fn tokenizer(&self) -> Tokenizer<'_> {
        Tokenizer::from_checked(&self.tables)
    }

    /// Writes when pages were read, waited for and computed with, as a trace in
    /// the Trace Event Format: what was recorded since a load with
    /// [`LoadOptions::trace`].
    ///
    /// Errors: nothing was recorded, because the plan's pages all stay.
    pub fn write_trace(&self, path: &Path) -> Result<(), RunError> {
        let plan = self.engine.plan();
        let (Some(timeline), WeightSource::Paged(paged)) =
            (self.engine.timeline(), &plan.weights.source)
        else {
            return Err(load::nothing_to_trace());
        };
        let write = || -> io::Result<()> {
            let mut out = BufWriter::new(AtomicFile::create(path)?);
            timeline.write(plan, paged, &mut out)?;
            out.into_inner().map_err(|e| e.into_error())?.finish()
        };
        write().map_err(RunError::io("write the trace", path))
    }

    /// Runs the plan's task. The result's text goes to `sink`.
    pub fn run(&mut self, options: &RunOptions, sink: &mut dyn Sink) -> Result<Report, RunError> {
        let Session {
            engine,
            tables,
            memory,
        } = self;
        let tokenizer = Tokenizer::from_checked(tables);
        let plan = engine.shared_plan();
        let barriers = engine.barriers();
        let outcome = program::run(plan.plan(), engine, &tokenizer, memory, options, sink)?;
        let conditions = Conditions {
            code: engine.code_source(),
            threads: engine.threads(),
            start_text: process::start_text(),
        };
        let per_second = |count: u64, seconds: f64| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        Ok(Report {
            prompt_tokens: outcome.prompt_tokens,
            generated_tokens: outcome.generated_tokens,
            drafted_tokens: outcome.drafted_tokens,
            accepted_tokens: outcome.accepted_tokens,
            prefill_tps: per_second(outcome.prefill_tokens, outcome.prefill_seconds),
            decode_tps: per_second(outcome.generated_tokens, outcome.decode_seconds),
            seconds: outcome.prefill_seconds + outcome.decode_seconds,
            ttft_ms: outcome.first_token_seconds * 1e3,
            rss_peak_stated_bytes: engine.plan().memory.rss_peak_bytes(),
            rss_peak_predicted_bytes: rss_peak_bytes(engine.plan(), conditions),
            rss_peak_measured_bytes: process::rss_peak_bytes(),
            rss_file_bytes: process::rss_file_bytes(),
            bytes_read: process::bytes_read(),
            barriers: engine.barriers() - barriers,
            threads: engine.threads(),
            result_id: outcome.result_id,
        })
    }
}
