//! `completions SHELL` of both programs.

use std::io::Write;

use clap::{Args, Command};
use clap_complete::Shell;

use super::output::Failure;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that is to complete command lines
    shell: Shell,
}

pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(())
}
