//! Which texts a run reads: files, folders, globs, standard input, a prompt.

use std::io;
use std::path::{Path, PathBuf};

use omex_plan::InputId;
use omex_plan::task::{Input, Program};

use super::pattern::{PARTS_MAX, Pattern};
use super::walk::{Found, Walk};
use crate::error::RunError;
use crate::os::file::is_same;

/// A text before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source<'a> {
    /// A file that the user or the container names.
    File(&'a Path),
    /// A file that a folder or a glob led to: passed over when it is empty or not text.
    Found(&'a Path),
    /// What a folder or a glob led to and is no file.
    Other(&'a Path),
    StandardInput,
    /// The text itself.
    Text(&'a str),
}

/// The texts of an input, in order.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    place: Place<'a>,
    is_taken: bool,
}

#[derive(Debug)]
enum Place<'a> {
    File(PathBuf),
    StandardInput,
    Text(&'a str),
    Files(Walk),
}

impl<'a> Sources<'a> {
    fn new(place: Place<'a>) -> Sources<'a> {
        Sources {
            place,
            is_taken: false,
        }
    }

    /// Errors: a folder cannot be listed.
    pub(super) fn next(&mut self) -> Result<Option<Source<'_>>, RunError> {
        let is_first = !std::mem::replace(&mut self.is_taken, true);
        Ok(match &mut self.place {
            Place::Files(walk) => walk.next()?.map(|found| match found {
                Found::File(path) => Source::Found(path),
                Found::Other(path) => Source::Other(path),
            }),
            Place::File(path) => is_first.then_some(Source::File(path)),
            Place::StandardInput => is_first.then_some(Source::StandardInput),
            Place::Text(text) => is_first.then_some(Source::Text(text)),
        })
    }
}

/// What a run binds to the program's inputs.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    /// Name of an input, empty for the only one, and where its text is.
    pub inputs: Vec<(String, PathBuf)>,
    /// The text of the only input.
    pub prompt: Option<String>,
    /// Standard input was read for something else: no input can come from there.
    pub standard_input_is_taken: bool,
    /// Where relative paths of the container are looked for, in this order.
    pub folders: Vec<PathBuf>,
}

impl Bindings {
    /// Checks that every binding has an input to bind.
    pub(super) fn check(&self, program: &Program) -> Result<(), RunError> {
        let names: Vec<&str> = program.inputs.iter().map(|i| i.name.as_str()).collect();
        let only = self.prompt.is_some() || self.inputs.iter().any(|(name, _)| name.is_empty());
        if only && names.len() != 1 {
            return Err(RunError::Usage(format!(
                "the plan has {} inputs ({}): name one with -i NAME=PATH",
                names.len(),
                names.join(", ")
            )));
        }
        if self.prompt.is_some() && !self.inputs.is_empty() {
            return Err(RunError::Usage(
                "a prompt and a path are given for the same input".to_owned(),
            ));
        }
        for (name, _) in &self.inputs {
            if !name.is_empty() && !names.contains(&name.as_str()) {
                return Err(RunError::Usage(format!(
                    "the plan has no input named '{name}'; its inputs are: {}",
                    names.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// The texts of an input, in order.
    ///
    /// Errors: nothing is there.
    pub(super) fn sources(
        &self,
        program: &Program,
        input: InputId,
    ) -> Result<Sources<'_>, RunError> {
        if let Some(prompt) = &self.prompt {
            return Ok(Sources::new(Place::Text(prompt)));
        }
        let input = &program.inputs[input.index()];
        let place = match self.bound(input) {
            // Whoever runs the task may name any file.
            Some(path) => find(path, &[], true),
            None => find(Path::new(&input.path), &self.folders, input.anywhere),
        };
        match place? {
            Place::StandardInput if self.standard_input_is_taken => Err(RunError::Usage(format!(
                "the input '{}' is standard input, which the container came from: bind another \
                 with -p or -i",
                input.name
            ))),
            place => Ok(Sources::new(place)),
        }
    }

    fn bound(&self, input: &Input) -> Option<&Path> {
        let mut bindings = self.inputs.iter().rev();
        let bound = bindings.find(|(name, _)| *name == input.name || name.is_empty());
        bound.map(|(_, path)| path.as_path())
    }

    /// Checks that no input is read from the file that `output` would replace.
    pub(super) fn require_apart(&self, program: &Program, output: &Path) -> Result<(), RunError> {
        if self.prompt.is_some() {
            return Ok(());
        }
        let is_replaced = |input: &&Input| match self.bound(input) {
            Some(path) => is_same(path, output),
            None => {
                let mut folders = self.folders.iter();
                folders.any(|folder| is_same(&folder.join(&input.path), output))
            }
        };
        match program.inputs.iter().find(is_replaced) {
            None => Ok(()),
            Some(input) => Err(replaces(output, &format!("input '{}'", input.name))),
        }
    }
}

/// What is said of an output that would destroy `what`.
pub(super) fn replaces(output: &Path, what: &str) -> RunError {
    RunError::Input {
        path: output.to_owned(),
        byte: None,
        what: format!("this output would replace the {what}"),
    }
}

/// Whether a path that is there leads out of the folder that it was looked for in.
fn leaves(folder: &Path, path: &Path) -> io::Result<bool> {
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    Ok(!path.canonicalize()?.starts_with(folder.canonicalize()?))
}

fn find<'a>(path: &Path, folders: &[PathBuf], anywhere: bool) -> Result<Place<'a>, RunError> {
    if path == Path::new("-") {
        return Ok(Place::StandardInput);
    }
    let here = [PathBuf::new()];
    let folders = if folders.is_empty() || path.is_absolute() {
        &here
    } else {
        folders
    };
    let require_beneath = |folder: &Path, path: &Path| {
        let leaves =
            !anywhere && leaves(folder, path).map_err(RunError::io("find the input", path))?;
        if leaves {
            return Err(RunError::Input {
                path: path.to_owned(),
                byte: None,
                what: "a link leads out of the task's folder; bind the file with -i, or build \
                       with --any-path"
                    .to_owned(),
            });
        }
        Ok(())
    };
    for folder in folders {
        let path = folder.join(path);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                require_beneath(folder, &path)?;
                let files = files(&path, Pattern::all(), anywhere)?;
                return files.ok_or_else(|| RunError::Input {
                    path,
                    byte: None,
                    what: "the folder holds no files".to_owned(),
                });
            }
            Ok(_) => {
                require_beneath(folder, &path)?;
                return Ok(Place::File(path));
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(e) => return Err(RunError::io("open the input", &path)(e)),
        }
    }
    let text = path.to_string_lossy();
    let is_wild = |part: &&str| part.contains(['*', '?', '[']);
    let parts: Vec<&str> = text.split('/').collect();
    let wild = parts.iter().position(is_wild);
    if let Some((start, parts)) = wild.map(|wild| parts.split_at(wild)) {
        if parts.len() > PARTS_MAX {
            return Err(RunError::Usage(format!(
                "a pattern has at most {PARTS_MAX} parts behind its first wildcard: {text}"
            )));
        }
        let start = match start {
            [""] => "/".to_owned(),
            start => start.join("/"),
        };
        for folder in folders {
            let root = folder.join(&start);
            if !root.as_os_str().is_empty() {
                if !root.is_dir() {
                    continue;
                }
                require_beneath(folder, &root)?;
            }
            if let Some(files) = files(&root, Pattern::new(parts), anywhere)? {
                return Ok(files);
            }
        }
    }
    Err(RunError::io("open the input", path)(
        io::Error::from_raw_os_error(libc::ENOENT),
    ))
}

/// The files below a folder that match, if there are any.
fn files<'a>(
    folder: &Path,
    pattern: Pattern,
    follows_links: bool,
) -> Result<Option<Place<'a>>, RunError> {
    let mut walk = Walk::new(folder, pattern, follows_links);
    while let Some(found) = walk.next()? {
        if let Found::File(_) = found {
            walk.rewind();
            return Ok(Some(Place::Files(walk)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_globs_are_sorted_and_skip_hidden_files() {
        let root = std::env::temp_dir().join(format!("omex-inputs-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for file in ["b.rs", "a/z.rs", "a/y.txt", ".git/c.rs", "c/d/e.rs"] {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            let place = find(Path::new(pattern), std::slice::from_ref(&root), true).unwrap();
            let mut sources = Sources::new(place);
            let mut names = Vec::new();
            while let Some(source) = sources.next().unwrap() {
                names.push(match source {
                    Source::File(path) | Source::Found(path) | Source::Other(path) => {
                        let relative = path.strip_prefix(&root).unwrap();
                        relative.to_string_lossy().into_owned()
                    }
                    Source::StandardInput | Source::Text(_) => "-".to_owned(),
                });
            }
            names
        };
        assert_eq!(names("."), ["a/y.txt", "a/z.rs", "b.rs", "c/d/e.rs"]);
        assert_eq!(names("**/*.rs"), ["a/z.rs", "b.rs", "c/d/e.rs"]);
        assert_eq!(names("a/*"), ["a/y.txt", "a/z.rs"]);
        assert_eq!(names("c/../a/[x-z]*"), ["c/../a/y.txt", "c/../a/z.rs"]);
        assert_eq!(names(".git/*"), [".git/c.rs"]);
        assert_eq!(names("b.rs"), ["b.rs"]);
        assert_eq!(names("-"), ["-"]);
        let absolute = root.join("*/*.rs");
        assert_eq!(names(absolute.to_str().unwrap()), ["a/z.rs"]);
        let code = |pattern: &str| {
            let missing = find(Path::new(pattern), std::slice::from_ref(&root), true);
            missing.unwrap_err().exit_code()
        };
        assert_eq!(code("*.zip"), 5);
        assert_eq!(code(&"*/".repeat(PARTS_MAX + 1)), 2);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
