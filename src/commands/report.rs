//! `omex debug memory report`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use omex_compiler::import::MappedFile;
use omex_compiler::report::MemoryReport;
use omex_plan::Plan;
use omex_plan::file::PLAN_MAGIC;

use super::build::{self, CompileArgs};
use super::output::{Failure, Output};
use super::plan_file::PlanFile;

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A plan, or a container, which is compiled but not written
    file: PathBuf,
    #[command(flatten)]
    compile: CompileArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn report(args: &ReportArgs, output: &Output) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let mut print = |plan: &Plan| -> Result<(), Failure> {
        let report = MemoryReport::new(plan);
        if args.json {
            writeln!(stdout, "{}", report.json())?;
        } else {
            write!(stdout, "{}", report.text())?;
        }
        Ok(())
    };
    if is_plan(&args.file)? {
        print(PlanFile::open(&args.file)?.plan.plan())
    } else {
        print(
            &build::compile(&args.file, &args.compile, output)?
                .compiled
                .plan,
        )
    }
}

/// True for a plan; a container may come from standard input.
fn is_plan(path: &Path) -> Result<bool, Failure> {
    Ok(path.as_os_str() != "-" && MappedFile::open(path)?.starts_with(&PLAN_MAGIC))
}
