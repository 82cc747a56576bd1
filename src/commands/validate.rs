//! `omex validate`: a container without its model and inputs.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use omex_compiler::container::{self, ValidateOptions};
use omex_compiler::diagnostic::Severity;

use super::container::read;
use super::output::{Failure, Output};

#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// The container, or - for standard input
    file: PathBuf,
    /// Unknown fields and replaced runners are errors
    #[arg(long)]
    strict: bool,
    /// Paths may leave the working directory
    #[arg(long)]
    any_path: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn validate(args: &ValidateArgs, output: &Output) -> Result<(), Failure> {
    let text = read(&args.file)?;
    let options = ValidateOptions {
        strict: args.strict,
        any_path: args.any_path,
    };
    let (task, findings) = container::validate(&text.name, text.bytes, &options);
    let Some(task) = task else {
        return Err(findings.into());
    };
    output.diagnostics(&findings);
    let mut missing = task.require_supported();
    // A build may name another target.
    missing.extend(task.unknown_device(Severity::Warning));
    output.diagnostics(&missing);
    let warnings = findings.iter().chain(&missing);
    let warnings = warnings.filter(|d| d.severity() != Severity::Note).count();
    let is_buildable = missing.iter().all(|d| !d.is_error());
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let nodes: Vec<_> = task.nodes.iter().map(|n| n.id.value.as_str()).collect();
        let object = serde_json::json!({
            "schema_version": 1,
            "valid": true,
            "buildable": is_buildable,
            "task_id": task.id.value,
            "nodes": nodes,
            "warnings": warnings,
        });
        writeln!(stdout, "{object}")?;
    } else {
        writeln!(
            stdout,
            "{}: valid{} (task {}, {} nodes, {warnings} warnings)",
            text.name,
            if is_buildable {
                ""
            } else {
                ", but cannot be built yet"
            },
            task.id.value,
            task.nodes.len(),
        )?;
    }
    Ok(())
}
