//! The command lines of OMEX: `omexc`, which compiles, and `omex`, which runs.
//!
//! Without the feature `compiler` only [`run`] and [`trust`] are left, and
//! their flags are read without clap: that is the small runtime.
#![forbid(unsafe_code)]

/// Writes a line to standard error. One that cannot be written is no reason to fail: what
/// it tells about is done, or has an exit code.
macro_rules! tell {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}
pub(crate) use tell;

pub mod args;
pub mod run;
pub mod trust;

#[cfg(feature = "compiler")]
pub mod commands;

use std::process::ExitCode;

use omex_runtime::os::{process, signal};

/// Stack of the first thread, which reads the command line, loads the plan and computes
/// with the others. Twice what was measured.
const STACK_BYTES: u64 = 384 << 10;

/// Runs a program, if the stack is large enough that it cannot overflow.
pub fn start(program: impl FnOnce() -> ExitCode) -> ExitCode {
    signal::ignore_file_size_limit();
    match process::stack_limit_bytes() {
        Some(bytes) if bytes < STACK_BYTES => {
            tell!(
                "error: the stack is limited to {bytes} bytes, {STACK_BYTES} are needed: raise \
                 it with `ulimit -s`"
            );
            ExitCode::from(4)
        }
        Some(_) | None => program(),
    }
}

/// The commands of the runtime without a compiler.
#[cfg(not(feature = "compiler"))]
pub fn small() -> ExitCode {
    const HELP: &str = "\
Run OMEX plans

Usage: omex run [FLAGS] PLAN
       omex trust list|add KEY
       omex --version
";
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next();
    let rest: Vec<_> = arguments.collect();
    let asks_help = rest.iter().any(|a| a == "--help" || a == "-h");
    match command.as_deref().and_then(|c| c.to_str()) {
        Some("run") if asks_help => {
            trust::print(&args::run_help());
            ExitCode::SUCCESS
        }
        Some("run") => match args::parse_run(rest) {
            Ok(run) => run::main(run, |e| {
                crate::tell!("error: {e}");
                ExitCode::from(e.exit_code())
            }),
            Err(e) => {
                crate::tell!("error: {e}");
                ExitCode::from(2)
            }
        },
        Some("trust") => trust::main(rest),
        Some("-V" | "--version") => {
            trust::print(concat!("omex ", env!("CARGO_PKG_VERSION"), "\n"));
            ExitCode::SUCCESS
        }
        Some("-h" | "--help") => {
            trust::print(HELP);
            ExitCode::SUCCESS
        }
        _ => {
            crate::tell!("{}", HELP.trim_end());
            ExitCode::from(2)
        }
    }
}
