//! What can go wrong, and the exit code that says so.

use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};

/// Why a load or a run ended without its result.
#[derive(Debug)]
pub enum RunError {
    /// Contradictory or impossible wishes of the caller.
    Usage(String),
    /// An input that cannot be processed.
    Input {
        path: PathBuf,
        /// Where in the input, when a place is to blame.
        byte: Option<u64>,
        what: String,
    },
    /// A prompt that leaves no room for what is to be generated.
    Context {
        prompt_tokens: u64,
        /// The prompt has more tokens, which were not counted: none, where what is
        /// to be generated takes all room.
        and_more: bool,
        tokens_max: u64,
        context: u64,
    },
    /// More memory is needed than is allowed or there.
    Memory(String),
    /// The system failed to read or write a file.
    Io {
        doing: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    /// No file holds the packed model that the plan names.
    PackedModelMissing { name: String, tried: Vec<PathBuf> },
    /// A file is not what its digests, versions or the plan say.
    Integrity {
        path: PathBuf,
        byte: Option<u64>,
        what: String,
    },
    /// The plan is sound but not for this machine.
    Machine { path: PathBuf, what: String },
    /// Code that nobody here vouches for.
    Untrusted { path: PathBuf },
    /// An activation, score or logit was NaN or infinite.
    NonFinite {
        step: String,
        layer: Option<u32>,
        position: u32,
    },
    /// A signal asked to stop; the exit code is the signal's.
    Stopped { exit_code: u8 },
}

/// Text from outside with terminal controls made harmless.
pub struct Plain<T>(pub T);

impl<T: Display> Display for Plain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

fn shown(path: &Path) -> Plain<std::path::Display<'_>> {
    Plain(path.display())
}

impl RunError {
    /// Exit codes: 1 task failed, 2 usage, 3 invalid input, 4 memory, 5 I/O or
    /// missing model, 6 integrity or machine mismatch, 7 policy, 130 and 143 signals.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::NonFinite { .. } => 1,
            RunError::Usage(_) => 2,
            RunError::Input { .. } | RunError::Context { .. } => 3,
            RunError::Memory(_) => 4,
            RunError::Io { .. } | RunError::PackedModelMissing { .. } => 5,
            RunError::Integrity { .. } | RunError::Machine { .. } => 6,
            RunError::Untrusted { .. } => 7,
            RunError::Stopped { exit_code } => *exit_code,
        }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunError {
        move |error| match error.kind() {
            io::ErrorKind::OutOfMemory => {
                RunError::Memory(format!("{}: cannot {doing}: {error}", shown(path)))
            }
            _ => RunError::Io {
                doing,
                path: path.to_owned(),
                error,
            },
        }
    }

    pub(crate) fn integrity(path: &Path, byte: Option<u64>, what: impl Display) -> RunError {
        RunError::Integrity {
            path: path.to_owned(),
            byte,
            what: what.to_string(),
        }
    }
}

impl Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |f: &mut fmt::Formatter<'_>, path: &Path, byte: Option<u64>| match byte {
            Some(byte) => write!(f, "{}: byte {byte}: ", shown(path)),
            None => write!(f, "{}: ", shown(path)),
        };
        match self {
            RunError::Usage(what) | RunError::Memory(what) => write!(f, "{}", Plain(what)),
            RunError::Input { path, byte, what } | RunError::Integrity { path, byte, what } => {
                place(f, path, *byte)?;
                write!(f, "{}", Plain(what))
            }
            RunError::Context {
                prompt_tokens: 0,
                tokens_max,
                context,
                ..
            } => write!(
                f,
                "up to {tokens_max} tokens are to be generated, but the plan's context holds \
                 {context}; generate less (-n), or rebuild with a larger context"
            ),
            RunError::Context {
                prompt_tokens,
                and_more,
                tokens_max,
                context,
            } => write!(
                f,
                "the prompt has {}{prompt_tokens} tokens and up to {tokens_max} are to be generated, \
                 but the plan's context holds {context}; shorten the prompt, generate less (-n), \
                 or rebuild with a larger context",
                if *and_more { "more than " } else { "" }
            ),
            RunError::Io { doing, path, error } => {
                write!(f, "{}: cannot {doing}: {error}", shown(path))
            }
            RunError::PackedModelMissing { name, tried } => {
                write!(
                    f,
                    "the plan's packed model {name} is in none of these places:"
                )?;
                for path in tried {
                    write!(f, "\n  {}", shown(path))?;
                }
                Ok(())
            }
            RunError::Machine { path, what } => write!(f, "{}: {}", shown(path), Plain(what)),
            RunError::Untrusted { path } => write!(
                f,
                "{}: the plan was not built here and carries no signature of a trusted key, so \
                 its code is not run; build the plan on this machine, or trust its \
                 signer with `omex trust add KEY`",
                shown(path)
            ),
            RunError::NonFinite {
                step,
                layer,
                position,
            } => {
                write!(f, "`{}`", Plain(step))?;
                if let Some(layer) = layer {
                    write!(f, " of layer {layer}")?;
                }
                write!(
                    f,
                    " met a value that is NaN or infinite in a pass from position {position} on"
                )
            }
            RunError::Stopped { .. } => write!(f, "stopped by a signal"),
        }
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RunError::Io { error, .. } => Some(error),
            RunError::Usage(_)
            | RunError::Input { .. }
            | RunError::Context { .. }
            | RunError::Memory(_)
            | RunError::PackedModelMissing { .. }
            | RunError::Integrity { .. }
            | RunError::Machine { .. }
            | RunError::Untrusted { .. }
            | RunError::NonFinite { .. }
            | RunError::Stopped { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_cannot_move_the_cursor() {
        let error = RunError::integrity(Path::new("a\x1b[2Jb\n.bin"), Some(7), "bad");
        assert_eq!(error.to_string(), "a\\u{1b}[2Jb\\n.bin: byte 7: bad");
    }
}
