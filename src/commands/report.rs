//! `omex debug memory report`.
use clap::Args;
use super::output::{Failure, Output};
#[derive(Debug, Args)]
pub struct ReportArgs { file: std::path::PathBuf }
pub fn report(_args: &ReportArgs, _output: &Output) -> Result<(), Failure> { Ok(()) }
