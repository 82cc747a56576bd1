//! `omex execute`: build in a child process, then run.
//!
//! The child keeps the compiler's memory out of the run's, and its plan in the
//! cache under the hash of all that the plan depends on.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use omex_compiler::diagnostic::{Code, Diagnostic};

use super::child::{self, Container};
use super::container;
use super::output::{Failure, Output};
use crate::args::RunArgs;

#[derive(Debug, Args)]
pub struct ExecuteArgs {
    /// The container; standard input without it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Device to compile for
    #[arg(long)]
    target: Option<OsString>,
    /// RAM of the whole process, e.g. 1200MiB
    #[arg(long)]
    ram: Option<OsString>,
    /// Positions of the KV cache
    #[arg(short, long)]
    ctx_size: Option<OsString>,
    /// The model, when the container names none
    #[arg(short, long)]
    model: Option<OsString>,
    /// Registry of zsei:// names
    #[arg(long)]
    registry: Option<OsString>,
    /// The cache directory, instead of the container's or the user's
    #[arg(long)]
    cache_dir: Option<OsString>,
    /// Unknown fields and replaced runners are errors
    #[arg(long)]
    strict: bool,
    /// Paths may leave the working directory
    #[arg(long)]
    any_path: bool,
}

/// Builds and runs; `run` holds the flags of `omex run`.
pub fn execute(args: &ExecuteArgs, mut run: RunArgs, output: &Output) -> ExitCode {
    let plan = crate::run::require_outputs(&run)
        .map_err(Failure::from)
        .and_then(|()| build(args, output));
    match plan {
        Ok(Ok(plan)) => {
            // Packed models lie in the cache, beside the folder of plans.
            let cache = plan.parent().and_then(|plans| plans.parent());
            run.model_dirs.extend(cache.map(PathBuf::from));
            run.plan = plan;
            run.kept.extend(args.file.clone());
            run.kept.extend(args.model.as_ref().map(PathBuf::from));
            run.standard_input_is_taken = !matches!(&args.file, Some(file) if file != "-");
            crate::run::main(run, |e| output.fail(e.into()))
        }
        Ok(Err(code)) => code,
        Err(failure) => output.fail(failure),
    }
}

/// The path of the plan, or the exit code of a child that has said why.
fn build(args: &ExecuteArgs, output: &Output) -> Result<Result<PathBuf, ExitCode>, Failure> {
    let mut words = Vec::new();
    let flags = [
        ("--target", &args.target),
        ("--ram", &args.ram),
        ("--ctx-size", &args.ctx_size),
        ("--model", &args.model),
        ("--registry", &args.registry),
        ("--cache-dir", &args.cache_dir),
    ];
    for (flag, value) in flags {
        if let Some(value) = value {
            words.extend([OsString::from(flag), value.clone()]);
        }
    }
    for (flag, set) in [("--strict", args.strict), ("--any-path", args.any_path)] {
        if set {
            words.push(OsString::from(flag));
        }
    }
    match args.file.as_ref().filter(|f| f.as_os_str() != "-") {
        Some(file) => child::build(Container::File(file), &words, output),
        None if std::io::stdin().is_terminal() => {
            let message = "no container: standard input is a terminal";
            Err(Diagnostic::error(Code::Usage, message)
                .help("name one with --file, or pipe it in")
                .into())
        }
        None => {
            let text = container::read(std::path::Path::new("-"))?;
            child::build(Container::Text(&text.bytes), &words, output)
        }
    }
}
