//! `omexc`: compiles task containers into plans.

use std::process::ExitCode;

fn main() -> ExitCode {
    omex::commands::omexc()
}
