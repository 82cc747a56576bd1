//! `omexc explain CODE`.

use std::io::Write;

use clap::Args;
use omex_compiler::diagnostic::{self, Code, Diagnostic, quoted};

use super::output::Failure;

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// An error code, e.g. OMX0012
    code: String,
}

pub fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let Some(story) = diagnostic::explain(&args.code) else {
        let message = format!("there is no code {}", quoted(&args.code));
        return Err(Diagnostic::error(Code::Usage, message)
            .help("codes look like OMX0012 and stand in brackets behind `error`")
            .into());
    };
    writeln!(std::io::stdout(), "{story}")?;
    Ok(())
}
