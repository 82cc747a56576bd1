//! The commands of the full `omex` and of `omexc`.

pub mod bench;
pub mod build;
pub mod cache;
mod child;
pub mod completions;
mod container;
mod emit;
pub mod evaluate;
pub mod execute;
pub mod explain;
pub mod inspect;
mod model;
pub mod output;
pub mod perplexity;
mod plan_file;
pub mod profile;
pub mod report;
mod sign;
pub mod synth;
pub mod targets;
mod timings;
pub mod tokenize;
pub mod validate;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand,
};

use crate::args::{RUN_FLAGS, RunArgs};
use output::{Failure, Output};

/// Compile task containers ahead of time.
#[derive(Debug, Parser)]
#[command(name = "omexc", version, about, propagate_version = true)]
struct Omexc {
    #[command(flatten)]
    output: output::OutputArgs,
    #[command(subcommand)]
    command: OmexcCommand,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "made once a process")]
enum OmexcCommand {
    /// Compile a container, its model and a target into a plan
    Build(build::BuildArgs),
    /// Write a model with random weights, of any shape
    Synth(synth::SynthArgs),
    /// List the device profiles, with the source of each figure
    Targets(targets::TargetsArgs),
    /// Tell the story of an error code
    Explain(explain::ExplainArgs),
    /// Write a script with which a shell completes command lines
    Completions(completions::CompletionsArgs),
}

/// Run plans and look into them.
#[derive(Debug, Parser)]
#[command(name = "omex", version, about, propagate_version = true)]
struct Omex {
    #[command(flatten)]
    output: output::OutputArgs,
    #[command(subcommand)]
    command: OmexCommand,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "made once a process")]
enum OmexCommand {
    /// Check a container without building it
    Validate(validate::ValidateArgs),
    /// Show what is in a model, a packed model or a plan
    Inspect(inspect::InspectArgs),
    /// Turn text into token ids and back
    Tokenize(tokenize::TokenizeArgs),
    /// Reports on plans and containers: `omex debug FILE` is one on memory
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Measure speed, with the rows of llama-bench
    Bench(bench::BenchArgs),
    /// Measure this machine and write a profile for --target
    Profile(profile::ProfileArgs),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::PerplexityArgs),
    /// Packed models and cached plans
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Tell the story of an error code
    Explain(explain::ExplainArgs),
    /// Write a script with which a shell completes command lines
    Completions(completions::CompletionsArgs),
    /// `omexc build`, for the child process of `omex execute`
    #[command(hide = true)]
    Build(build::BuildArgs),
}

#[derive(Debug, Subcommand)]
enum DebugCommand {
    /// Memory of a plan or container
    #[command(subcommand)]
    Memory(MemoryCommand),
}

#[derive(Debug, Subcommand)]
enum MemoryCommand {
    /// Where every byte goes, without a run
    Report(report::ReportArgs),
}

/// `omexc`.
pub fn omexc() -> ExitCode {
    let cli = Omexc::parse();
    let output = cli.output.output();
    finish(
        &output,
        match cli.command {
            OmexcCommand::Build(args) => build::build(&args, &output),
            OmexcCommand::Synth(args) => synth::synth(&args),
            OmexcCommand::Targets(args) => targets::targets(&args, &output),
            OmexcCommand::Explain(args) => explain::explain(&args),
            OmexcCommand::Completions(args) => completions::completions(&args, Omexc::command()),
        },
    )
}

fn omex_command() -> Command {
    Omex::command()
        .subcommand(run_command())
        .subcommand(execute_command())
        .subcommand(trust_command())
}

/// `omex` with all its commands.
pub fn omex() -> ExitCode {
    let mut matches = omex_command().get_matches_from(arguments());
    let name = matches.subcommand_name().map(str::to_owned);
    let inner = |matches: &mut ArgMatches| {
        let subcommand = matches.remove_subcommand();
        subcommand.expect("it has a name").1
    };
    // A run gets its arguments without clap's copies of them.
    match name.as_deref() {
        Some("run") => {
            let inner = inner(&mut matches);
            let plan = inner.get_one::<OsString>("plan").cloned();
            let args = run_args(&inner, plan.unwrap_or_default());
            let output = output::OutputArgs::from_arg_matches(&inner);
            let output = output.unwrap_or_else(|e| e.exit()).output();
            drop((inner, matches));
            return crate::run::main(args, |e| output.fail(e.into()));
        }
        Some("execute") => {
            let inner = inner(&mut matches);
            let parse = |e: clap::Error| -> ! { e.exit() };
            let args = execute::ExecuteArgs::from_arg_matches(&inner).unwrap_or_else(|e| parse(e));
            let output = output::OutputArgs::from_arg_matches(&inner).unwrap_or_else(|e| parse(e));
            // The plan's path comes from the build.
            let run = run_args(&inner, OsString::from("-"));
            drop((inner, matches));
            return execute::execute(&args, run, &output.output());
        }
        Some("trust") => {
            let inner = inner(&mut matches);
            let words = inner.get_many::<OsString>("arguments");
            return crate::trust::main(words.into_iter().flatten().cloned().collect());
        }
        _ => {}
    }
    let cli = Omex::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    let output = cli.output.output();
    let result = match cli.command {
        OmexCommand::Validate(args) => validate::validate(&args, &output),
        OmexCommand::Inspect(args) => inspect::inspect(&args, &output),
        OmexCommand::Tokenize(args) => tokenize::tokenize(&args),
        OmexCommand::Debug(DebugCommand::Memory(MemoryCommand::Report(args))) => {
            report::report(&args, &output)
        }
        OmexCommand::Bench(args) => return bench::bench(&args, &output),
        OmexCommand::Perplexity(args) => return perplexity::perplexity(&args, &output),
        OmexCommand::Profile(args) => profile::profile(&args),
        OmexCommand::Cache(command) => cache::cache(&command),
        OmexCommand::Explain(args) => explain::explain(&args),
        OmexCommand::Completions(args) => completions::completions(&args, omex_command()),
        OmexCommand::Build(args) => build::build(&args, &output),
    };
    finish(&output, result)
}

/// The command line. `omex bench` has llama-bench's flags of two letters, and `omex debug`
/// with a file is a report on its memory.
fn arguments() -> impl Iterator<Item = OsString> {
    const OF_DEBUG: [&str; 4] = ["memory", "help", "-h", "--help"];

    let words = || std::env::args_os();
    let is_bench = words().nth(1).is_some_and(|word| word == "bench");
    let is_report = words().nth(1).is_some_and(|word| word == "debug")
        && (words().nth(2)).is_some_and(|word| OF_DEBUG.iter().all(|known| word != *known));
    let report = ["memory", "report"].map(OsString::from).into_iter();
    let report = report.take(if is_report { 2 } else { 0 });
    let words = words().take(2).chain(report).chain(words().skip(2));
    words.map(move |word| match word.to_str() {
        Some("-pg") if is_bench => "--pg".into(),
        Some("-ub") if is_bench => "--ub".into(),
        _ => word,
    })
}

fn finish(output: &Output, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.fail(failure),
    }
}

/// `omex run`, from the table that the small runtime parses itself.
fn run_command() -> Command {
    let plan = Arg::new("plan")
        .value_name("PLAN")
        .required(true)
        .value_parser(clap::value_parser!(OsString))
        .help("The plan to execute");
    with_run_flags(Command::new("run").about("Execute a plan").arg(plan))
}

/// `omex execute`: its own flags and those of `omex run`.
fn execute_command() -> Command {
    let about = "Build a container (cached by its content) and run it";
    with_run_flags(execute::ExecuteArgs::augment_args(Command::new("execute")).about(about))
}

fn with_run_flags(command: Command) -> Command {
    RUN_FLAGS.iter().fold(command, |command, flag| {
        let arg = Arg::new(flag.long).long(flag.long).help(flag.help);
        let arg = match flag.short {
            Some(short) => arg.short(short),
            None => arg,
        };
        command.arg(match flag.value {
            Some(name) => arg
                .value_name(name)
                .value_parser(clap::value_parser!(OsString))
                .allow_hyphen_values(true)
                .action(ArgAction::Append),
            None => arg.action(ArgAction::SetTrue),
        })
    })
}

/// Turns clap's matches of `omex run` into the table's form; wrong values end
/// the process as usage errors.
fn run_args(matches: &ArgMatches, plan: OsString) -> RunArgs {
    let mut run = RunArgs {
        plan: plan.into(),
        ..RunArgs::default()
    };
    let mut apply = || {
        for flag in RUN_FLAGS {
            if flag.value.is_some() {
                let values = matches.get_many::<OsString>(flag.long);
                for value in values.into_iter().flatten() {
                    run.set(flag.long, value)?;
                }
            } else if matches.get_flag(flag.long) {
                run.set(flag.long, OsStr::new(""))?;
            }
        }
        run.validate()
    };
    match apply() {
        Ok(()) => run,
        Err(e) => run_command()
            .bin_name("omex run")
            .error(clap::error::ErrorKind::ValueValidation, e)
            .exit(),
    }
}

fn trust_command() -> Command {
    Command::new("trust")
        .about("List or extend what code this machine maps")
        .override_usage("omex trust list\n       omex trust add KEY")
        .arg(
            Arg::new("arguments")
                .value_name("list|add")
                .num_args(0..)
                .value_parser(clap::value_parser!(OsString)),
        )
}

/// The user's folders.
fn places() -> Result<omex_runtime::Places, Failure> {
    omex_runtime::Places::from_environment().ok_or_else(|| {
        let message = "neither OMEX_HOME nor HOME says where the cache and trust are kept";
        omex_compiler::diagnostic::Diagnostic::error(
            omex_compiler::diagnostic::Code::Usage,
            message,
        )
        .into()
    })
}
