//! `omex execute`: build in a child process, then run.
//!
//! The child keeps the compiler's memory out of the run's, and its plan in the
//! cache under the hash of all that the plan depends on.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use omex_compiler::diagnostic::{Code, Diagnostic};

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
    match build(args) {
        Ok(Ok(plan)) => {
            // Packed models lie in the cache, beside the folder of plans.
            let cache = plan.parent().and_then(|plans| plans.parent());
            run.model_dir = run.model_dir.or(cache.map(PathBuf::from));
            run.plan = plan;
            crate::run::main(run)
        }
        Ok(Err(code)) => code,
        Err(failure) => output.fail(failure),
    }
}

/// The path of the plan, or the exit code of a child that has said why.
fn build(args: &ExecuteArgs) -> Result<Result<PathBuf, ExitCode>, Failure> {
    let cannot = |e: std::io::Error| -> Failure {
        let message = format!("the compiler cannot be started: {e}");
        Diagnostic::error(Code::FileRead, message).into()
    };
    let program = std::env::current_exe().map_err(cannot)?;
    let mut command = Command::new(program);
    command.args(["build", "--cached"]);
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
            command.arg(flag).arg(value);
        }
    }
    if args.strict {
        command.arg("--strict");
    }
    if args.any_path {
        command.arg("--any-path");
    }
    command.stdout(Stdio::piped());
    let file = args.file.as_ref().filter(|f| f.as_os_str() != "-");
    let text = match file {
        Some(file) => {
            command.arg("--").arg(file).stdin(Stdio::null());
            None
        }
        None if std::io::stdin().is_terminal() => {
            let message = "no container: standard input is a terminal";
            return Err(Diagnostic::error(Code::Usage, message)
                .help("name one with --file, or pipe it in")
                .into());
        }
        None => {
            command.arg("-").stdin(Stdio::piped());
            Some(container::read(std::path::Path::new("-"))?.bytes)
        }
    };
    let mut child = command.spawn().map_err(cannot)?;
    if let (Some(text), Some(mut stdin)) = (text, child.stdin.take()) {
        // A child that stopped reading says why by its exit code.
        let _ = stdin.write_all(&text);
    }
    let result = child.wait_with_output().map_err(cannot)?;
    if !result.status.success() {
        let code = result.status.code().and_then(|c| u8::try_from(c).ok());
        return Ok(Err(ExitCode::from(code.unwrap_or(1))));
    }
    use std::os::unix::ffi::OsStringExt;
    let mut path = result.stdout;
    path.truncate(path.trim_ascii_end().len());
    Ok(Ok(PathBuf::from(OsString::from_vec(path))))
}
