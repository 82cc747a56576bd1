//! The flags of `omex run`, as one table.
//!
//! The full `omex` turns the table into a clap command; the small runtime reads
//! arguments with the parser at the end of this file. Both end in
//! [`RunArgs::set`].

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use omex_runtime::TO_THE_END;

/// One flag of `omex run`.
#[derive(Debug)]
pub struct Flag {
    pub long: &'static str,
    pub short: Option<char>,
    /// Name of the value; `None` for a switch.
    pub value: Option<&'static str>,
    pub help: &'static str,
}

const fn value(
    long: &'static str,
    short: Option<char>,
    value: &'static str,
    help: &'static str,
) -> Flag {
    Flag {
        long,
        short,
        value: Some(value),
        help,
    }
}

const fn switch(long: &'static str, help: &'static str) -> Flag {
    Flag {
        long,
        short: None,
        value: None,
        help,
    }
}

pub const RUN_FLAGS: &[Flag] = &[
    value(
        "input",
        Some('i'),
        "[NAME=]PATH",
        "Bind an input to a file, a folder or - (standard input)",
    ),
    value(
        "prompt",
        Some('p'),
        "TEXT",
        "Use TEXT as the plan's only input",
    ),
    switch(
        "raw",
        "Take inputs as they are, without the model's chat template",
    ),
    value(
        "predict",
        Some('n'),
        "N",
        "Generate at most N tokens for each window; -1: until the context is full",
    ),
    value("threads", Some('t'), "N", "Threads, up to the plan's limit"),
    value(
        "ubatch-size",
        None,
        "N",
        "Prompt tokens of one pass, up to the plan's limit",
    ),
    value("seed", Some('s'), "N", "Seed of the sampler"),
    value("temp", None, "T", "Temperature; 0 is greedy"),
    value("top-k", None, "K", "Keep the K best tokens; 0 keeps all"),
    value(
        "top-p",
        None,
        "P",
        "Keep the best tokens up to probability P",
    ),
    value(
        "min-p",
        None,
        "P",
        "Keep tokens of at least P times the best one's probability",
    ),
    value(
        "repeat-penalty",
        None,
        "X",
        "Penalty of tokens seen lately; 1 is none",
    ),
    value(
        "model-dir",
        None,
        "DIR",
        "Look for the packed model in DIR too",
    ),
    value(
        "sig",
        None,
        "FILE",
        "Signature of the plan, instead of PLAN.sig",
    ),
    switch(
        "no-allowance",
        "Start even if the runtime itself uses more than the plan allows it: emulators, debuggers",
    ),
    switch(
        "no-speculation",
        "Verify no drafts, even where waiting for pages would hide it",
    ),
    switch(
        "io-uring",
        "Read pages through io_uring where the system allows it, without threads for them",
    ),
    value(
        "parallel",
        None,
        "N",
        "Windows that go through each layer together, up to the plan's limit",
    ),
    switch("json", "Print one JSON object instead of the text"),
    value(
        "events",
        None,
        "jsonl",
        "Print one JSON object per event instead of the text",
    ),
    value(
        "trace",
        None,
        "FILE",
        "Write when pages were read, waited for and used, for Perfetto; takes 2 MiB more",
    ),
    value(
        "dump-logits",
        None,
        "FILE",
        "Write the logits of every position as raw f32",
    ),
];

/// What `omex run` was asked to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunArgs {
    pub plan: PathBuf,
    /// Name (empty for the only input) and path.
    pub inputs: Vec<(String, OsString)>,
    pub prompt: Option<String>,
    pub raw: bool,
    pub predict: Option<u32>,
    /// Files besides the plan that no output may replace.
    pub kept: Vec<PathBuf>,
    pub threads: Option<u32>,
    pub ubatch_size: Option<u32>,
    pub seed: Option<u64>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub model_dirs: Vec<PathBuf>,
    pub signature: Option<PathBuf>,
    pub no_allowance: bool,
    pub no_speculation: bool,
    pub io_uring: bool,
    pub parallel: Option<u32>,
    pub json: bool,
    pub events: bool,
    pub trace: Option<PathBuf>,
    pub dump_logits: Option<PathBuf>,
    /// The container came from there: no flag, and no input.
    pub standard_input_is_taken: bool,
}

/// A wrong command line: exit 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

fn text(flag: &str, value: &OsStr) -> Result<String, UsageError> {
    value
        .to_str()
        .map(str::to_owned)
        .ok_or_else(|| UsageError(format!("the value of --{flag} is not UTF-8")))
}

fn number<T: std::str::FromStr>(flag: &str, value: &OsStr) -> Result<T, UsageError> {
    let value = text(flag, value)?;
    value
        .parse()
        .map_err(|_| UsageError(format!("--{flag} takes a number, not '{value}'")))
}

/// A number in `low..=high`.
fn within(flag: &str, value: &OsStr, low: f32, high: f32) -> Result<f32, UsageError> {
    let number: f32 = number(flag, value)?;
    if (low..=high).contains(&number) {
        Ok(number)
    } else {
        Err(UsageError(format!(
            "--{flag} is {number}, not between {low} and {high}"
        )))
    }
}

impl RunArgs {
    /// Applies one flag of [`RUN_FLAGS`]; switches come with an empty value.
    pub fn set(&mut self, long: &str, value: &OsStr) -> Result<(), UsageError> {
        match long {
            "input" => {
                let whole = text(long, value)?;
                let (name, path) = whole.split_once('=').unwrap_or(("", &whole));
                self.inputs.push((name.to_owned(), path.into()));
            }
            "prompt" => self.prompt = Some(text(long, value)?),
            "raw" => self.raw = true,
            "predict" if value == "-1" => self.predict = Some(TO_THE_END),
            "predict" => self.predict = Some(number(long, value)?),
            "threads" => self.threads = Some(at_least_one(long, value)?),
            "ubatch-size" => self.ubatch_size = Some(at_least_one(long, value)?),
            "seed" => self.seed = Some(number(long, value)?),
            "temp" => self.temperature = Some(within(long, value, 0.0, 100.0)?),
            "top-k" => self.top_k = Some(number(long, value)?),
            "top-p" => self.top_p = Some(within(long, value, 0.0, 1.0)?),
            "min-p" => self.min_p = Some(within(long, value, 0.0, 1.0)?),
            "repeat-penalty" => self.repeat_penalty = Some(within(long, value, 0.01, 100.0)?),
            "model-dir" => self.model_dirs.push(value.into()),
            "sig" => self.signature = Some(value.into()),
            "no-allowance" => self.no_allowance = true,
            "no-speculation" => self.no_speculation = true,
            "io-uring" => self.io_uring = true,
            "parallel" => self.parallel = Some(at_least_one(long, value)?),
            "json" => self.json = true,
            "events" if value == "jsonl" => self.events = true,
            "events" => {
                return Err(UsageError("--events knows one format, jsonl".to_owned()));
            }
            "trace" => self.trace = Some(value.into()),
            "dump-logits" => self.dump_logits = Some(value.into()),
            other => unreachable!("--{other} is not in the table"),
        }
        Ok(())
    }

    /// Rules over several flags.
    pub fn validate(&self) -> Result<(), UsageError> {
        let rules = [
            (
                self.prompt.is_some() && !self.inputs.is_empty(),
                "-p and -i both bind the input: give one",
            ),
            (
                self.json && self.events,
                "--json and --events both replace the text: give one",
            ),
            (
                self.plan.as_os_str().is_empty(),
                "the plan is missing: omex run PLAN",
            ),
        ];
        match rules.into_iter().find(|(broken, _)| *broken) {
            Some((_, rule)) => Err(UsageError(rule.to_owned())),
            None => Ok(()),
        }
    }
}

fn at_least_one(flag: &str, value: &OsStr) -> Result<u32, UsageError> {
    match number(flag, value)? {
        0 => Err(UsageError(format!("--{flag} is at least 1"))),
        n => Ok(n),
    }
}

/// Reads the arguments behind `omex run`, the way getopt_long does: `--flag
/// VALUE`, `--flag=VALUE`, `-f VALUE`, `-fVALUE`, `--` ends the flags.
pub fn parse_run(arguments: impl IntoIterator<Item = OsString>) -> Result<RunArgs, UsageError> {
    let mut arguments = arguments.into_iter();
    let mut run = RunArgs::default();
    let mut plan: Option<OsString> = None;
    let mut flags_ended = false;
    while let Some(argument) = arguments.next() {
        let spelled = argument.to_str().unwrap_or("");
        if flags_ended || spelled == "-" || !spelled.starts_with('-') {
            if plan.replace(argument).is_some() {
                return Err(UsageError("omex run takes one plan".to_owned()));
            }
            continue;
        }
        if spelled == "--" {
            flags_ended = true;
            continue;
        }
        let (flag, inline) = find_flag(spelled)?;
        let value = match (flag.value, inline) {
            (None, None) => OsString::new(),
            (None, Some(_)) => {
                return Err(UsageError(format!("--{} takes no value", flag.long)));
            }
            (Some(_), Some(value)) => value.into(),
            (Some(name), None) => arguments
                .next()
                .ok_or_else(|| UsageError(format!("--{} needs a value: {name}", flag.long)))?,
        };
        run.set(flag.long, &value)?;
    }
    run.plan = plan.unwrap_or_default().into();
    run.validate()?;
    Ok(run)
}

/// The flag that an argument spells, and the value attached to it.
fn find_flag(spelled: &str) -> Result<(&'static Flag, Option<&str>), UsageError> {
    let found = if let Some(long) = spelled.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let flag = RUN_FLAGS.iter().find(|f| f.long == name);
        flag.map(|f| (f, value))
    } else {
        let mut rest = spelled[1..].chars();
        let short = rest.next();
        let flag = RUN_FLAGS
            .iter()
            .find(|f| f.short.is_some() && f.short == short);
        let value = Some(rest.as_str()).filter(|v| !v.is_empty());
        flag.map(|f| (f, value))
    };
    found.ok_or_else(|| UsageError(format!("unknown flag {spelled}; see omex run --help")))
}

/// The help text of `omex run` in the small runtime.
pub fn run_help() -> String {
    let mut help = String::from("Execute a plan\n\nUsage: omex run [FLAGS] PLAN\n\nFlags:\n");
    for flag in RUN_FLAGS {
        let short = flag.short.map_or("    ".to_owned(), |s| format!("-{s}, "));
        let value = flag.value.map_or(String::new(), |v| format!(" <{v}>"));
        let spelled = format!("{short}--{}{value}", flag.long);
        help.push_str(&format!("  {spelled:<30} {}\n", flag.help));
    }
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<RunArgs, UsageError> {
        parse_run(arguments.iter().map(OsString::from))
    }

    #[test]
    fn every_spelling_of_a_value_is_read() {
        let endless = parse(&["p.bin", "-n", "-1"]).unwrap();
        assert_eq!(endless.predict, Some(TO_THE_END));
        for spelling in [
            &["p.bin", "--predict", "5"][..],
            &["--predict=5", "p.bin"],
            &["-n", "5", "p.bin"],
            &["-n5", "--", "p.bin"],
        ] {
            let run = parse(spelling).unwrap();
            assert_eq!((run.predict, run.plan.to_str()), (Some(5), Some("p.bin")));
        }
        let run = parse(&["p.bin", "-i", "a=b=c", "-i", "-"]).unwrap();
        let pair = |n: &str, p: &str| (n.to_owned(), OsString::from(p));
        assert_eq!(run.inputs, [pair("a", "b=c"), pair("", "-")]);
    }

    #[test]
    fn wrong_command_lines_say_what_is_wrong() {
        for (arguments, message) in [
            (&[][..], "the plan is missing"),
            (&["a", "b"], "one plan"),
            (&["a", "--nope"], "unknown flag --nope"),
            (&["a", "-n"], "needs a value"),
            (&["a", "-n", "x"], "takes a number"),
            (&["a", "-t", "0"], "at least 1"),
            (&["a", "--temp", "NaN"], "not between"),
            (&["a", "--json=1"], "takes no value"),
            (&["a", "--json", "--events", "jsonl"], "give one"),
            (&["a", "-p", "x", "-i", "y"], "give one"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.0.contains(message), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn every_flag_of_the_table_can_be_set() {
        for flag in RUN_FLAGS {
            let mut run = RunArgs::default();
            let value = match flag.value {
                Some("jsonl") => "jsonl",
                Some(_) => "1",
                None => "",
            };
            run.set(flag.long, OsStr::new(value)).unwrap();
            assert_ne!(run, RunArgs::default(), "--{}", flag.long);
        }
    }
}
