//! `omex debug memory report`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use omex_compiler::diagnostic::{Code, Diagnostic};
use omex_compiler::import::MappedFile;
use omex_compiler::report::{Measured, MemoryReport};
use omex_plan::Plan;
use omex_plan::file::PLAN_MAGIC;
use omex_runtime::os::file::{is_same, read_small, require_writable, write_atomic};

use super::build::{self, CompileArgs};
use super::output::{Failure, Output, cannot_write};
use super::plan_file::PlanFile;

/// A report of a run is its text and tokens: far below this.
const RUN_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// A plan, or a container, which is compiled but not written
    file: PathBuf,
    #[command(flatten)]
    compile: CompileArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Draw the arena, addresses over time, to an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write a page with the picture and the totals
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a trace for Perfetto
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// The output of `omex run --json`, to be put beside the prediction
    #[arg(long, value_name = "RUN")]
    measured: Option<PathBuf>,
}

pub fn report(args: &ReportArgs, output: &Output) -> Result<(), Failure> {
    type Drawing = fn(&MemoryReport<'_>) -> String;
    let drawings: [(&Option<PathBuf>, Drawing); 3] = [
        (&args.svg, |report| report.svg()),
        (&args.html, |report| report.html()),
        (&args.trace, |report| report.trace().to_string()),
    ];
    let drawings = drawings
        .iter()
        .filter_map(|(path, draw)| Some((path.as_deref()?, draw)));
    let cannot = |path: &Path, e| cannot_write("file", path, e);
    let mut sources = vec![args.file.as_path()];
    sources.extend(args.measured.as_deref());
    for (path, _) in drawings.clone() {
        require_writable(path).map_err(|e| cannot(path, e))?;
        if let Some(source) = sources.iter().find(|source| is_same(path, source)) {
            return Err(build::would_replace("file", path, &source.to_string_lossy()).into());
        }
    }
    let paths: Vec<&Path> = drawings.clone().map(|(path, _)| path).collect();
    let twice = (1..paths.len()).find(|&n| paths[..n].contains(&paths[n]));
    if let Some(n) = twice {
        return Err(build::would_replace("file", paths[n], "one before it").into());
    }
    let measured = args.measured.as_deref().map(measured).transpose()?;
    let mut stdout = std::io::stdout().lock();
    let mut print = |plan: &Plan| -> Result<(), Failure> {
        let mut report = MemoryReport::new(plan);
        if let Some(measured) = &measured {
            require_run_of(plan, measured)?;
            report = report.with_measured(measured.clone());
        }
        for (path, draw) in drawings.clone() {
            write_atomic(path, draw(&report).as_bytes()).map_err(|e| cannot(path, e))?;
        }
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
            &build::compile(&args.file, &args.compile, &paths, output)?
                .compiled
                .plan,
        )
    }
}

fn measured(path: &Path) -> Result<Measured, Failure> {
    let refuse =
        |code, what: String| Diagnostic::error(code, what).in_file(path.to_string_lossy(), None);
    let bytes = read_small(path, RUN_BYTES_MAX).map_err(|e| {
        refuse(
            Code::FileRead,
            format!("the run's report cannot be read: {e}"),
        )
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let measured = Measured::parse(&text);
    Ok(
        measured
            .map_err(|e| refuse(Code::Usage, format!("no output of `omex run --json`: {e}")))?,
    )
}

/// A run's report does not name its plan, but has the peak that it states.
fn require_run_of(plan: &Plan, measured: &Measured) -> Result<(), Failure> {
    let (peak, stated) = (plan.memory.rss_peak_bytes(), measured.rss_peak_stated_bytes);
    if stated == peak {
        return Ok(());
    }
    let what = format!(
        "this is a run of another plan: that one states a peak of {stated} bytes, this one \
         {peak}"
    );
    Err(Diagnostic::error(Code::Usage, what).into())
}

/// True for a plan; a container may come from standard input.
fn is_plan(path: &Path) -> Result<bool, Failure> {
    Ok(path.as_os_str() != "-" && MappedFile::open(path)?.starts_with(&PLAN_MAGIC))
}
