//! `omex run`: loads a plan and streams its result.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use omex_runtime::events::{Event, JsonLines, Sink};
use omex_runtime::os::file::{is_same, require_writable, waiting_folder};
use omex_runtime::os::memory::unify_heap;
use omex_runtime::os::signal;
use omex_runtime::transcript::Transcript;
use omex_runtime::{
    Bindings, LoadOptions, Places, Report, RunError, RunOptions, SamplingChanges, Session,
    TrustStore,
};

use crate::args::RunArgs;

/// What errors of the runtime call it.
const STDOUT: &str = "standard output";

/// Runs a plan and returns the process's exit code; `fail` tells an error.
pub fn main(args: RunArgs, fail: impl FnOnce(RunError) -> ExitCode) -> ExitCode {
    unify_heap();
    signal::install();
    match require_outputs(&args).and_then(|()| run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever closed the pipe has seen enough.
        Err(RunError::Io { error, path, .. })
            if error.kind() == io::ErrorKind::BrokenPipe && path == Path::new(STDOUT) =>
        {
            ExitCode::from(128 + 13)
        }
        Err(e) => fail(e),
    }
}

/// Checks that the files can be written that the flags name, before anything
/// is done for them.
pub(crate) fn require_outputs(args: &RunArgs) -> Result<(), RunError> {
    for path in [&args.trace, &args.dump_logits].into_iter().flatten() {
        require_writable(path).map_err(|error| RunError::Io {
            doing: "write the output",
            path: path.clone(),
            error,
        })?;
        if is_same(path, &args.plan) {
            return Err(RunError::Input {
                path: path.clone(),
                byte: None,
                what: "this output would replace the plan".to_owned(),
            });
        }
    }
    Ok(())
}

fn run(mut args: RunArgs) -> Result<(), RunError> {
    let places = Places::from_environment();
    let mut model_folders = std::mem::take(&mut args.model_dirs);
    model_folders.extend(places.iter().map(|p| p.cache.clone()));
    let load = LoadOptions {
        threads: args.threads,
        model_folders,
        trust: places.map(|p| TrustStore::new(p.trust)),
        signature: args.signature.clone(),
        enforce_allowance: !args.no_allowance,
        trace: args.trace.is_some(),
        io_uring: args.io_uring,
    };
    let mut session = Session::load(&args.plan, &load)?;
    let bindings = bindings(&mut args);
    let result = run_session(&mut session, &args, bindings);
    // A run that failed has a trace, too.
    match &args.trace {
        Some(path) => result.and(session.write_trace(path)),
        None => result,
    }
}

fn run_session(session: &mut Session, args: &RunArgs, bindings: Bindings) -> Result<(), RunError> {
    let options = RunOptions {
        bindings,
        raw: args.raw,
        predict: args.predict,
        sampling: SamplingChanges {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repeat_penalty: args.repeat_penalty,
            repeat_last: None,
            seed: args.seed,
        },
        prefill_chunk: args.ubatch_size,
        no_speculation: args.no_speculation,
        parallel: args.parallel,
        kept: [args.kept.as_slice(), std::slice::from_ref(&args.plan)].concat(),
        dump_logits: args.dump_logits.clone(),
        output_folder: PathBuf::new(),
        waiting_folder: PathBuf::new(),
    };
    if args.json {
        let folder = waiting_folder();
        let transcript = Transcript::new(&folder);
        let transcript = transcript.map_err(|error| RunError::Io {
            doing: "keep the result until its end",
            path: folder,
            error,
        })?;
        let mut noted = Noted(transcript);
        let report = session.run(&options, &mut noted)?;
        return stdout_written(report.write_json(noted.0, &mut io::stdout().lock()));
    }
    if args.events {
        let mut lines = JsonLines::new(io::stdout().lock());
        let report = session.run(&options, &mut lines)?;
        summarize(&report);
        return Ok(());
    }
    let mut noted = Noted(Terminal::default());
    let report = session.run(&options, &mut noted)?;
    noted.0.end_line()?;
    summarize(&report);
    Ok(())
}

/// Takes the prompt along, which may be long.
fn bindings(args: &mut RunArgs) -> Bindings {
    let inputs = args.inputs.iter();
    // The container's own paths start from the working directory, else from
    // the plan's folder.
    let beside = args.plan.parent().map(PathBuf::from);
    Bindings {
        inputs: inputs.map(|(n, p)| (n.clone(), p.into())).collect(),
        prompt: args.prompt.take(),
        standard_input_is_taken: args.standard_input_is_taken,
        folders: [PathBuf::new()].into_iter().chain(beside).collect(),
    }
}

fn stdout_written(result: io::Result<()>) -> Result<(), RunError> {
    result.map_err(|error| RunError::Io {
        doing: "write the result",
        path: PathBuf::from(STDOUT),
        error,
    })
}

/// Tells notes on standard error, and passes all else on.
struct Noted<S>(S);

impl<S: Sink> Sink for Noted<S> {
    fn text(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.text(bytes)
    }

    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Note { what } => {
                crate::tell!("note: {what}");
                Ok(())
            }
            _ => self.0.event(event),
        }
    }
}

/// Text on standard output as it comes.
#[derive(Debug, Default)]
struct Terminal {
    /// The last byte written was no line's end.
    line_open: bool,
}

impl Terminal {
    /// Ends the last line, as text files end.
    fn end_line(&mut self) -> Result<(), RunError> {
        if std::mem::take(&mut self.line_open) {
            let mut stdout = io::stdout().lock();
            stdout_written(stdout.write_all(b"\n").and_then(|()| stdout.flush()))?;
        }
        Ok(())
    }
}

impl Sink for Terminal {
    fn text(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(last) = bytes.last() {
            self.line_open = *last != b'\n';
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }
}

/// Speed and memory, after the result.
fn summarize(report: &Report) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    crate::tell!(
        "prompt {} tokens, {:.1} tokens/s; generated {} tokens, {:.1} tokens/s; \
         first after {:.0} ms; {} threads",
        report.prompt_tokens,
        report.prefill_tps,
        report.generated_tokens,
        report.decode_tps,
        report.ttft_ms,
        report.threads,
    );
    if report.drafted_tokens > 0 {
        crate::tell!(
            "speculation: {} of {} drafted tokens accepted",
            report.accepted_tokens,
            report.drafted_tokens
        );
    }
    crate::tell!(
        "peak memory {:.1} MiB predicted, {:.1} MiB measured; {:.1} MiB read; result {}",
        mib(report.rss_peak_predicted_bytes),
        mib(report.rss_peak_measured_bytes),
        mib(report.bytes_read),
        blake3::Hash::from(report.result_id).to_hex(),
    );
}
