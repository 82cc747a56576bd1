//! What all commands print the same way: diagnostics, progress, failures.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use omex_compiler::diagnostic::{Code, Diagnostic, RenderOptions, exit_status, render_json};
use omex_runtime::RunError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MessageFormat {
    Human,
    Json,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Colour of diagnostics
    #[arg(long, global = true, value_enum, default_value = "auto")]
    color: Color,
    /// Form of diagnostics
    #[arg(long, global = true, value_enum, default_value = "human")]
    message_format: MessageFormat,
}

/// Where and how a command speaks.
#[derive(Debug)]
pub struct Output {
    color: bool,
    json: bool,
}

/// Why a command ends without its result.
#[derive(Debug)]
pub enum Failure {
    /// At least one is an error.
    Diagnostics(Vec<Diagnostic>),
    /// A failure of the runtime, with its exit code.
    Run(RunError),
    /// Standard output cannot be written.
    Stdout(std::io::Error),
}

impl From<Diagnostic> for Failure {
    fn from(d: Diagnostic) -> Failure {
        Failure::Diagnostics(vec![d])
    }
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(d: Vec<Diagnostic>) -> Failure {
        Failure::Diagnostics(d)
    }
}

impl From<omex_compiler::import::ImportError> for Failure {
    fn from(e: omex_compiler::import::ImportError) -> Failure {
        Failure::Diagnostics(vec![e.into()])
    }
}

impl From<RunError> for Failure {
    fn from(e: RunError) -> Failure {
        Failure::Run(e)
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::Stdout(e)
    }
}

impl OutputArgs {
    pub fn output(&self) -> Output {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let color = match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto if set("NO_COLOR") => false,
            Color::Auto if set("CLICOLOR_FORCE") => true,
            Color::Auto => std::io::stderr().is_terminal() && !dumb,
        };
        Output {
            color,
            json: self.message_format == MessageFormat::Json,
        }
    }
}

impl Output {
    /// The flags with which another command speaks in the same way.
    pub fn flags(&self) -> [&'static str; 4] {
        let color = if self.color { "always" } else { "never" };
        let format = if self.json { "json" } else { "human" };
        ["--color", color, "--message-format", format]
    }

    /// Prints diagnostics on standard error.
    pub fn diagnostics(&self, diagnostics: &[Diagnostic]) {
        let options = RenderOptions {
            colour: self.color,
            ..RenderOptions::default()
        };
        for d in diagnostics {
            let text = if self.json {
                render_json(d)
            } else {
                d.render(&options)
            };
            crate::tell!("{text}");
        }
    }

    /// Prints a failure and returns the exit code that it stands for.
    pub fn fail(&self, failure: Failure) -> ExitCode {
        match failure {
            Failure::Diagnostics(list) => {
                self.diagnostics(&list);
                ExitCode::from(exit_status(&list).as_u8())
            }
            Failure::Run(e) => {
                match diagnostic_of(&e) {
                    Some(diagnostic) => self.diagnostics(&[diagnostic]),
                    None => crate::tell!("error: {e}"),
                }
                ExitCode::from(e.exit_code())
            }
            // Whoever closed the pipe has seen enough.
            Failure::Stdout(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
                ExitCode::from(128 + 13)
            }
            Failure::Stdout(e) => {
                crate::tell!("error: standard output cannot be written: {e}");
                ExitCode::from(5)
            }
        }
    }
}

/// What a failure of the runtime is among the codes; a signal has none.
fn diagnostic_of(e: &RunError) -> Option<Diagnostic> {
    let code = match e {
        RunError::Usage(_) => Code::Usage,
        RunError::Input { .. } => Code::InputUnusable,
        RunError::Context { .. } => Code::PromptTooLong,
        RunError::Memory(_) => Code::OutOfMemory,
        RunError::Io { error, .. } => match error.kind() {
            std::io::ErrorKind::StorageFull => Code::NoSpace,
            _ => Code::FileAccess,
        },
        RunError::PackedModelMissing { .. } => Code::ModelMissing,
        RunError::Integrity { .. } => Code::PlanInvalid,
        RunError::Machine { .. } => Code::FeatureMissing,
        RunError::Untrusted { .. } => Code::Untrusted,
        RunError::NonFinite { .. } => Code::NotFinite,
        RunError::Stopped { .. } => return None,
    };
    let text = e.to_string();
    let mut lines = text.lines();
    let message = Diagnostic::error(code, lines.next().unwrap_or_default());
    Some(lines.fold(message, |d, line| d.note(line.trim())))
}

/// A file that cannot be written: `what` it would have been.
pub fn cannot_write(what: &str, path: &Path, e: std::io::Error) -> Failure {
    let code = match e.kind() {
        std::io::ErrorKind::StorageFull => Code::NoSpace,
        _ => Code::FileWrite,
    };
    Diagnostic::error(code, format!("the {what} cannot be written: {e}"))
        .in_file(path.to_string_lossy(), None)
        .into()
}

/// Prints a line of progress on standard error, redrawn in place on a
/// terminal and at most every two seconds elsewhere. What is over sooner shows
/// nothing.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    last: std::sync::Mutex<std::time::Instant>,
}

impl Progress {
    pub fn new() -> Progress {
        Progress {
            terminal: std::io::stderr().is_terminal(),
            last: std::sync::Mutex::new(std::time::Instant::now()),
        }
    }

    /// Shows `text` if it is time for a new line.
    pub fn show(&self, text: impl FnOnce() -> String) {
        let pause = std::time::Duration::from_millis(if self.terminal { 100 } else { 2000 });
        let mut last = self.last.lock().unwrap_or_else(|e| e.into_inner());
        if last.elapsed() < pause {
            return;
        }
        *last = std::time::Instant::now();
        let mut stderr = std::io::stderr().lock();
        // Progress that cannot be shown is no reason to stop.
        let _ = if self.terminal {
            write!(stderr, "\r\x1b[K{}", text())
        } else {
            writeln!(stderr, "{}", text())
        };
    }

    /// Removes the line from a terminal.
    pub fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Default for Progress {
    fn default() -> Progress {
        Progress::new()
    }
}

/// `12.3 MiB`, with the unit that keeps one to three digits before the point.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn failures_of_the_runtime_keep_their_exit_codes() {
        let path = || PathBuf::from("plan.bin");
        let what = || "it is so".to_owned();
        let byte = None;
        let errors = [
            RunError::Usage(what()),
            RunError::Input {
                path: path(),
                byte,
                what: what(),
            },
            RunError::Context {
                prompt_tokens: 1,
                and_more: false,
                tokens_max: 2,
                context: 2,
            },
            RunError::Memory(what()),
            RunError::Io {
                doing: "read the plan",
                path: path(),
                error: std::io::ErrorKind::NotFound.into(),
            },
            RunError::Io {
                doing: "write the output",
                path: path(),
                error: std::io::ErrorKind::StorageFull.into(),
            },
            RunError::PackedModelMissing {
                name: what(),
                tried: vec![path()],
            },
            RunError::Integrity {
                path: path(),
                byte,
                what: what(),
            },
            RunError::Machine {
                path: path(),
                what: what(),
            },
            RunError::Untrusted { path: path() },
            RunError::NonFinite {
                step: what(),
                layer: Some(1),
                position: 0,
            },
        ];
        for e in errors {
            let diagnostic = diagnostic_of(&e).expect("it has a code");
            assert_eq!(diagnostic.exit_status().as_u8(), e.exit_code(), "{e}");
            assert!(e.to_string().starts_with(diagnostic.message()), "{e}");
        }
    }
}
