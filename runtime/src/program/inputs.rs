//! Which texts a run reads: files, folders, globs, standard input, a prompt.

use std::io;
use std::path::{Path, PathBuf};

use omex_plan::InputId;
use omex_plan::task::Program;

use crate::error::RunError;

/// A text before it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file that the user or the container names.
    File(PathBuf),
    /// A file that a folder or a glob led to: passed over when it is not text.
    Found(PathBuf),
    StandardInput,
    /// The text itself.
    Text(String),
}

/// What a run binds to the program's inputs.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    /// Name of an input, empty for the only one, and where its text is.
    pub inputs: Vec<(String, PathBuf)>,
    /// The text of the only input.
    pub prompt: Option<String>,
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
    ) -> Result<Vec<Source>, RunError> {
        if let Some(prompt) = &self.prompt {
            return Ok(vec![Source::Text(prompt.clone())]);
        }
        let input = &program.inputs[input.index()];
        let bound = self
            .inputs
            .iter()
            .rev()
            .find(|(name, _)| *name == input.name || name.is_empty());
        match bound {
            Some((_, path)) => expand(path, &[]),
            None => expand(Path::new(&input.path), &self.folders),
        }
    }
}

fn expand(path: &Path, folders: &[PathBuf]) -> Result<Vec<Source>, RunError> {
    if path == Path::new("-") {
        return Ok(vec![Source::StandardInput]);
    }
    let here = [PathBuf::new()];
    let folders = if folders.is_empty() || path.is_absolute() {
        &here
    } else {
        folders
    };
    for folder in folders {
        let path = folder.join(path);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                let mut found = Vec::new();
                walk(&path, &mut found)?;
                return non_empty(found, &path);
            }
            Ok(_) => return Ok(vec![Source::File(path)]),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(e) => return Err(RunError::io("open the input", &path)(e)),
        }
    }
    let text = path.to_string_lossy();
    if text.contains(['*', '?', '[']) {
        for folder in folders {
            let mut found = Vec::new();
            let parts: Vec<&str> = text.split('/').collect();
            let (start, parts) = match parts[..] {
                ["", ref rest @ ..] => (PathBuf::from("/"), rest),
                ref all => (folder.clone(), all),
            };
            glob(&start, parts, &mut found)?;
            if !found.is_empty() {
                found.dedup();
                return Ok(found);
            }
        }
    }
    Err(RunError::io("open the input", path)(
        io::ErrorKind::NotFound.into(),
    ))
}

fn non_empty(found: Vec<Source>, path: &Path) -> Result<Vec<Source>, RunError> {
    if found.is_empty() {
        return Err(RunError::Input {
            path: path.to_owned(),
            byte: None,
            what: "the folder holds no files".to_owned(),
        });
    }
    Ok(found)
}

/// The visible entries of a folder, sorted by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, RunError> {
    let listed = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(listed)? {
            let name = entry?.file_name();
            if !name.as_encoded_bytes().starts_with(b".") {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names.into_iter().map(|name| folder.join(name)).collect())
    };
    list().map_err(RunError::io("list the folder", listed))
}

/// Whether a path is a folder; a link to one is not, so walks end.
fn is_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// The regular files below a folder, depth first, hidden ones left out.
fn walk(folder: &Path, found: &mut Vec<Source>) -> Result<(), RunError> {
    for path in entries(folder)? {
        if is_folder(&path) {
            walk(&path, found)?;
        } else if path.is_file() {
            found.push(Source::Found(path));
        }
    }
    Ok(())
}

/// The files that match a pattern, part by part: `*`, `?` and `[a-z]` within
/// a name, `**` for any number of folders.
fn glob(folder: &Path, parts: &[&str], found: &mut Vec<Source>) -> Result<(), RunError> {
    let Some((&part, rest)) = parts.split_first() else {
        if folder.is_file() {
            found.push(Source::Found(folder.to_owned()));
        }
        return Ok(());
    };
    if part == "**" {
        glob(folder, rest, found)?;
        for path in entries(folder)? {
            if is_folder(&path) {
                glob(&path, parts, found)?;
            }
        }
        return Ok(());
    }
    if matches!(part, "" | "." | "..") {
        return glob(&folder.join(part), rest, found);
    }
    if !folder.as_os_str().is_empty() && !folder.is_dir() {
        return Ok(());
    }
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if matches_name(part.as_bytes(), name.as_bytes()) {
            glob(&path, rest, found)?;
        }
    }
    Ok(())
}

/// Whether one name matches a pattern without separators.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    // Where to try again when a character does not match: behind the last
    // star, one character of the name further on.
    let mut retry: Option<(usize, usize)> = None;
    let (mut p, mut n) = (0, 0);
    while n < name.len() {
        let matched = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => match class(&pattern[p + 1..], name[n]) {
                Some((true, len)) => Some(p + 1 + len),
                Some((false, _)) => None,
                None => (name[n] == b'[').then_some(p + 1),
            },
            Some(&c) => (c == name[n]).then_some(p + 1),
            None => None,
        };
        match (matched, retry) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((star, at))) => {
                (p, n) = (star, at + 1);
                retry = Some((star, at + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Whether a class such as `a-z]` or `!0-9]` contains `c`, and its length;
/// `None` when it never ends.
fn class(pattern: &[u8], c: u8) -> Option<(bool, usize)> {
    let (negated, start) = match pattern.first() {
        Some(b'!' | b'^') => (true, 1),
        _ => (false, 0),
    };
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|&c| c == b']')?;
    let mut contains = false;
    let mut at = start;
    while at < end {
        if at + 2 < end && pattern[at + 1] == b'-' {
            contains |= (pattern[at]..=pattern[at + 2]).contains(&c);
            at += 3;
        } else {
            contains |= pattern[at] == c;
            at += 1;
        }
    }
    Some((contains != negated, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_patterns() {
        let yes = [
            ("*.rs", "a.rs"),
            ("*", ""),
            ("a*b*c", "axxbxbc"),
            ("?[a-c]x", "zbx"),
            ("[!a-c]", "d"),
            ("[]]", "]"),
            ("[", "["),
        ];
        let no = [
            ("*.rs", "a.rss"),
            ("?", ""),
            ("[a-c]", "d"),
            ("[!a-c]", "a"),
            ("a*b", "ac"),
        ];
        for (pattern, name) in yes {
            assert!(
                matches_name(pattern.as_bytes(), name.as_bytes()),
                "{pattern} {name}"
            );
        }
        for (pattern, name) in no {
            assert!(
                !matches_name(pattern.as_bytes(), name.as_bytes()),
                "{pattern} {name}"
            );
        }
    }

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
            let sources = expand(Path::new(pattern), std::slice::from_ref(&root)).unwrap();
            let name = |source: &Source| match source {
                Source::File(path) | Source::Found(path) => {
                    let relative = path.strip_prefix(&root).unwrap();
                    relative.to_string_lossy().into_owned()
                }
                Source::StandardInput | Source::Text(_) => "-".to_owned(),
            };
            sources.iter().map(name).collect()
        };
        assert_eq!(names("."), ["a/y.txt", "a/z.rs", "b.rs", "c/d/e.rs"]);
        assert_eq!(names("**/*.rs"), ["b.rs", "a/z.rs", "c/d/e.rs"]);
        assert_eq!(names("a/*"), ["a/y.txt", "a/z.rs"]);
        assert_eq!(names("b.rs"), ["b.rs"]);
        assert_eq!(names("-"), ["-"]);
        let missing = expand(Path::new("*.zip"), std::slice::from_ref(&root));
        assert_eq!(missing.unwrap_err().exit_code(), 5);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
