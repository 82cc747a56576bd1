//! `omex run`.
use std::process::ExitCode;
use crate::args::RunArgs;
pub fn main(_run: RunArgs) -> ExitCode { ExitCode::SUCCESS }
