//! Models opened to be measured: a plan, or a GGUF file that is built into one first.

use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use omex_compiler::diagnostic::{Code, Diagnostic};
use omex_runtime::{LoadOptions, RunError, Session, TrustStore};

use super::child::{self, Container};
use super::output::{Failure, Output};

/// What a plan has to have room for, and how it is built.
#[derive(Debug, Default, clap::Args)]
pub struct PlanArgs {
    /// Prompt tokens of one pass, when a plan is built
    #[arg(long, visible_alias = "ub", value_parser = clap::value_parser!(u32).range(1..=65536))]
    ubatch_size: Option<u32>,
    /// RAM of the whole process, when a plan is built, e.g. 1200MiB
    #[arg(long)]
    ram: Option<OsString>,
    /// How keys and values are kept, when a plan is built: f16 or q8
    #[arg(long)]
    kv: Option<OsString>,
    /// The cache directory, instead of the user's
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<OsString>,
    /// Look for the packed model of a plan in DIR too
    #[arg(long, value_name = "DIR")]
    model_dir: Option<PathBuf>,
}

/// Why there is nothing to measure.
pub(super) enum Unopened {
    /// A child has said it.
    Exit(ExitCode),
    Failure(Failure),
}

impl<T: Into<Failure>> From<T> for Unopened {
    fn from(failure: T) -> Self {
        Self::Failure(failure.into())
    }
}

/// A plan file, and where its packed model may lie.
pub(super) struct PlanPath {
    path: PathBuf,
    model_folders: Vec<PathBuf>,
}

/// A task that evaluates plain text: its program is never run.
fn container() -> String {
    serde_json::json!({
        "omex_version": "0.3",
        "task_id": "evaluate",
        "task_type": "chat",
        "task_flow": [
            { "id": "tokenize", "type": "tokenize", "input": "-", "output": "tokens" },
            { "id": "forward", "type": "forward_pass", "input": "tokens", "output": "logits" },
            {
                "id": "sample", "type": "greedy_sample", "logits": "logits",
                "max_tokens": 1, "output": "ids"
            },
            { "id": "decode", "type": "decode", "input": "ids", "output": "text" }
        ]
    })
    .to_string()
}

impl PlanArgs {
    /// The plan of `model`, with `context` positions and memory for `threads`
    /// where it has to be built.
    pub(super) fn plan(
        &self,
        model: &Path,
        context: u32,
        threads: u32,
        output: &Output,
    ) -> Result<PlanPath, Unopened> {
        let mut folders: Vec<PathBuf> = self.model_dir.iter().cloned().collect();
        folders.extend(super::places().ok().map(|places| places.cache));
        if !is_gguf(model)? {
            return Ok(PlanPath {
                path: model.to_owned(),
                model_folders: folders,
            });
        }
        let mut flags: Vec<OsString> = ["--any-path", "--model"].map(OsString::from).into();
        flags.push(model.as_os_str().to_owned());
        for (flag, value) in [
            ("--ctx-size", Some(context.to_string().into())),
            ("--threads-max", Some(threads.to_string().into())),
            (
                "--ubatch-size",
                self.ubatch_size.map(|n| n.to_string().into()),
            ),
            ("--ram", self.ram.clone()),
            ("--kv", self.kv.clone()),
            ("--cache-dir", self.cache_dir.clone()),
        ] {
            if let Some(value) = value {
                flags.extend([OsString::from(flag), value]);
            }
        }
        let text = container();
        let built = child::build(Container::Text(text.as_bytes()), &flags, output)?;
        let path = built.map_err(Unopened::Exit)?;
        // Packed models lie in the cache, beside the folder of plans.
        folders.extend(
            path.parent()
                .and_then(|plans| plans.parent())
                .map(PathBuf::from),
        );
        Ok(PlanPath {
            path,
            model_folders: folders,
        })
    }
}

impl PlanPath {
    pub(super) fn load(&self, threads: Option<u32>) -> Result<Session, RunError> {
        let places = omex_runtime::Places::from_environment();
        let options = LoadOptions {
            threads,
            model_folders: self.model_folders.clone(),
            trust: places.map(|p| TrustStore::new(p.trust)),
            signature: None,
            enforce_allowance: false,
            trace: false,
            io_uring: false,
        };
        Session::load(&self.path, &options)
    }
}

fn is_gguf(path: &Path) -> Result<bool, Failure> {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read(&mut magic));
    let len = read.map_err(|e| {
        let message = format!("the model cannot be read: {e}");
        Diagnostic::error(Code::FileRead, message).in_file(path.to_string_lossy(), None)
    })?;
    Ok(&magic[..len] == b"GGUF")
}

/// A number list as `llama-bench` takes it: `1,2,4`, ranges `1-4`, `1-8*2`, `1-9+4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers(pub(super) Vec<u32>);

pub(super) fn numbers(text: &str) -> Result<Numbers, String> {
    let number = |text: &str| {
        text.parse::<u32>()
            .map_err(|_| format!("`{text}` is no number"))
    };
    let mut list = Vec::new();
    for part in text.split(',') {
        let Some((first, rest)) = part.split_once('-') else {
            list.push(number(part)?);
            continue;
        };
        let (last, step, multiplies) = match rest.split_once(['*', '+']) {
            Some((last, step)) => (last, number(step)?, rest.contains('*')),
            None => (rest, 1, false),
        };
        let (mut value, last) = (number(first)?, number(last)?);
        if step < 1 + u32::from(multiplies) || (multiplies && value == 0) {
            return Err(format!("`{part}` never ends"));
        }
        while value <= last {
            if list.len() == 1000 {
                return Err("a list has more than 1000 numbers".to_owned());
            }
            list.push(value);
            let next = if multiplies {
                value.checked_mul(step)
            } else {
                value.checked_add(step)
            };
            match next {
                Some(next) => value = next,
                None => break,
            }
        }
    }
    Ok(Numbers(list))
}

#[cfg(test)]
mod tests {
    use super::{Numbers, numbers};

    #[test]
    fn lists_are_those_of_llama_bench() {
        for (text, expected) in [
            ("512", &[512][..]),
            ("1,2,8", &[1, 2, 8]),
            ("1-4", &[1, 2, 3, 4]),
            ("1-8*2", &[1, 2, 4, 8]),
            ("0-10+5,3", &[0, 5, 10, 3]),
        ] {
            assert_eq!(numbers(text), Ok(Numbers(expected.to_vec())), "{text}");
        }
        for wrong in [
            "",
            "a",
            "1,",
            "1-8*1",
            "0-8*2",
            "1-8+0",
            "0-4000000000",
            "-1",
        ] {
            assert!(numbers(wrong).is_err(), "{wrong}");
        }
    }
}
