//! Builds in a child process, so that the compiler's memory never counts to a run's.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use omex_compiler::diagnostic::{Code, Diagnostic};

use super::output::{Failure, Output};

/// What the child compiles.
pub(super) enum Container<'a> {
    File(&'a Path),
    Text(&'a [u8]),
}

/// The path of the plan in the cache, or the exit code of a child that has said why there
/// is none. `flags` are those of `omexc build`; it speaks as `output` does.
pub(super) fn build(
    container: Container<'_>,
    flags: &[OsString],
    output: &Output,
) -> Result<Result<PathBuf, ExitCode>, Failure> {
    let cannot = |e: std::io::Error| -> Failure {
        let message = format!("the compiler cannot be started: {e}");
        Diagnostic::error(Code::FileRead, message).into()
    };
    let program = std::env::current_exe().map_err(cannot)?;
    let mut command = Command::new(program);
    command.args(["build", "--cached"]).args(flags);
    command.args(output.flags());
    command.stdout(Stdio::piped());
    let text = match container {
        Container::File(file) => {
            command.arg("--").arg(file).stdin(Stdio::null());
            None
        }
        Container::Text(text) => {
            command.arg("-").stdin(Stdio::piped());
            Some(text)
        }
    };
    let mut child = command.spawn().map_err(cannot)?;
    if let (Some(text), Some(mut stdin)) = (text, child.stdin.take()) {
        // A child that stopped reading says why by its exit code.
        let _ = stdin.write_all(text);
    }
    let result = child.wait_with_output().map_err(cannot)?;
    if let Some(signal) = result.status.signal() {
        let message = format!("the compiler was ended by signal {signal}");
        return Err(Diagnostic::error(Code::BuildEnded, message).into());
    }
    if !result.status.success() {
        let code = result.status.code().and_then(|c| u8::try_from(c).ok());
        return Ok(Err(ExitCode::from(code.unwrap_or(1))));
    }
    let mut path = result.stdout;
    path.truncate(path.trim_ascii_end().len());
    Ok(Ok(PathBuf::from(OsString::from_vec(path))))
}
