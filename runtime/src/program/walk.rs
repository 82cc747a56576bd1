//! Finds the files below a folder, in memory that does not grow with their
//! number.
//!
//! Files come in the order of their paths, compared name by name. Of a folder
//! the first names are kept that are still to come; behind the last of them
//! the folder is listed again. Folders above a few are forgotten, and listed
//! again from the one on that the walk comes back from.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, RawDir};

use super::pattern::{Pattern, States};
use crate::error::RunError;

/// What the names of one folder take at most, and how many folders have some.
const NAMES_BYTES: usize = 16 << 10;
const LISTED_MAX: usize = 4;
const DEPTH_MAX: usize = 256;
/// The longest path that the system takes.
const PATH_BYTES_MAX: usize = 4096;
/// On the stack while a folder is listed.
const LIST_BYTES: usize = 8 << 10;

/// What a walk takes of memory.
pub const WALK_BYTES: usize =
    LISTED_MAX * NAMES_BYTES + DEPTH_MAX * size_of::<Level>() + 2 * PATH_BYTES_MAX;

#[derive(Debug)]
struct Name {
    bytes: Box<[u8]>,
    kind: Kind,
}

impl Name {
    /// Its place in the list and the block of its bytes, as malloc rounds it.
    fn memory_bytes(&self) -> usize {
        size_of::<Name>() + (self.bytes.len() + 8).next_multiple_of(16).max(32)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Folder {
        is_link: bool,
    },
    /// No text: a pipe, a link that leads nowhere or is not followed.
    Other,
}

/// What a walk comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'p> {
    File(&'p Path),
    /// What matches and is neither a file nor a folder.
    Other(&'p Path),
}

/// A folder on the way.
#[derive(Debug)]
struct Level {
    /// Bytes of its path.
    path_bytes: usize,
    /// What its path leaves of the pattern.
    states: States,
    /// Names that are still to come, in order.
    names: VecDeque<Name>,
    /// None comes behind them.
    is_complete: bool,
}

impl Level {
    fn new(path: &[u8], states: States) -> Level {
        Level {
            path_bytes: path.len(),
            states,
            names: VecDeque::new(),
            is_complete: false,
        }
    }

    /// What `path`, which is below this folder, names in it.
    fn name_in<'p>(&self, path: &'p [u8]) -> &'p [u8] {
        let name = &path[self.path_bytes..];
        name.strip_prefix(b"/").unwrap_or(name)
    }
}

/// The files below a folder that match a pattern.
#[derive(Debug)]
pub(super) struct Walk {
    root_bytes: usize,
    pattern: Pattern,
    /// Links lead on; otherwise they are not files.
    follows_links: bool,
    levels: Vec<Level>,
    /// The innermost level's folder, with the name of it that came last.
    path: Vec<u8>,
}

impl Walk {
    pub(super) fn new(root: &Path, pattern: Pattern, follows_links: bool) -> Walk {
        let path = root.as_os_str().as_bytes().to_vec();
        let mut walk = Walk {
            root_bytes: path.len(),
            pattern,
            follows_links,
            levels: Vec::new(),
            path,
        };
        walk.rewind();
        walk
    }

    /// Starts again.
    pub(super) fn rewind(&mut self) {
        self.path.truncate(self.root_bytes);
        self.levels.clear();
        self.levels
            .push(Level::new(&self.path, self.pattern.start()));
    }

    /// The next file, or what might be taken for one.
    ///
    /// Errors: a folder cannot be listed.
    pub(super) fn next(&mut self) -> Result<Option<Found<'_>>, RunError> {
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop_front() else {
                if level.is_complete {
                    self.path.truncate(level.path_bytes);
                    self.levels.pop();
                } else {
                    self.list()?;
                }
                continue;
            };
            self.path.truncate(level.path_bytes);
            if !matches!(self.path.last(), None | Some(b'/')) {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name.bytes);
            match name.kind {
                Kind::File => return Ok(Some(Found::File(path_of(&self.path)))),
                Kind::Other => return Ok(Some(Found::Other(path_of(&self.path)))),
                Kind::Folder { is_link } => {
                    let states = self.pattern.step(level.states, &name.bytes, is_link);
                    self.enter(states)?;
                }
            }
        }
        Ok(None)
    }

    fn enter(&mut self, states: States) -> Result<(), RunError> {
        if self.levels.len() == DEPTH_MAX {
            return Err(RunError::Input {
                path: path_of(&self.path).to_owned(),
                byte: None,
                what: format!("more than {DEPTH_MAX} folders lie in each other"),
            });
        }
        let listed = |level: &&mut Level| !level.names.is_empty();
        let mut listed: Vec<_> = self.levels.iter_mut().filter(listed).collect();
        if listed.len() == LISTED_MAX {
            listed[0].names = VecDeque::new();
            listed[0].is_complete = false;
        }
        self.levels.push(Level::new(&self.path, states));
        Ok(())
    }

    /// Fills the innermost level with the names that follow.
    fn list(&mut self) -> Result<(), RunError> {
        let level = self.levels.last_mut().expect("a walk is in a folder");
        let folder = &self.path[..level.path_bytes];
        let after = level.name_in(&self.path);
        let (pattern, states) = (&self.pattern, level.states);
        let follows_links = self.follows_links;
        // The least name that there is no room for: what comes behind it is
        // left for the next time, too.
        let mut first_left: Option<Name> = None;
        let mut bytes = 0;
        let mut take = |name: &[u8], file_type: FileType| {
            let is_left = first_left.as_ref().is_some_and(|left| *left.bytes <= *name);
            if name <= after || is_left {
                return;
            }
            let kind = kind(folder, name, file_type, follows_links);
            let is_wanted = match kind {
                Kind::File | Kind::Other => pattern.accepts(pattern.step(states, name, false)),
                Kind::Folder { is_link } => pattern.goes_on(pattern.step(states, name, is_link)),
            };
            if !is_wanted {
                return;
            }
            let at = level.names.partition_point(|n| *n.bytes < *name);
            let name = Name {
                bytes: name.into(),
                kind,
            };
            bytes += name.memory_bytes();
            level.names.insert(at, name);
            if bytes > NAMES_BYTES {
                first_left = level.names.pop_back();
                bytes -= first_left.as_ref().map_or(0, Name::memory_bytes);
            }
        };
        each_entry(folder, &mut take).map_err(RunError::io("list the folder", path_of(folder)))?;
        level.is_complete = first_left.is_none();
        Ok(())
    }
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn kind(folder: &[u8], name: &[u8], file_type: FileType, follows_links: bool) -> Kind {
    match file_type {
        FileType::RegularFile => return Kind::File,
        FileType::Directory => return Kind::Folder { is_link: false },
        FileType::Symlink | FileType::Unknown => {}
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            return Kind::Other;
        }
    }
    let path = path_of(folder).join(path_of(name));
    let is_link = path.is_symlink();
    let metadata = match is_link && !follows_links {
        true => None,
        false => std::fs::metadata(&path).ok(),
    };
    match metadata {
        Some(metadata) if metadata.is_dir() => Kind::Folder { is_link },
        Some(metadata) if metadata.is_file() => Kind::File,
        Some(_) | None => Kind::Other,
    }
}

/// Calls `take` with each name in a folder, the empty path being the working
/// directory.
fn each_entry(folder: &[u8], take: &mut dyn FnMut(&[u8], FileType)) -> io::Result<()> {
    let folder = if folder.is_empty() { b"." } else { folder };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); LIST_BYTES];
    let mut entries = RawDir::new(folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            take(name, entry.file_type());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("omex-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        root
    }

    fn found(root: &Path, pattern: &str) -> Vec<String> {
        let mut walk = Walk::new(
            root,
            Pattern::new(&pattern.split('/').collect::<Vec<_>>()),
            true,
        );
        let mut names = Vec::new();
        while let Some(found) = walk.next().unwrap() {
            let (path, mark) = match found {
                Found::File(path) => (path, ""),
                Found::Other(path) => (path, "?"),
            };
            let path = path.strip_prefix(root).unwrap();
            names.push(path.to_str().unwrap().to_owned() + mark);
            let listed = walk.levels.iter().filter(|l| !l.names.is_empty());
            assert!(listed.clone().count() <= LISTED_MAX);
            for level in listed {
                let bytes: usize = level.names.iter().map(Name::memory_bytes).sum();
                assert!(bytes <= NAMES_BYTES, "{bytes}");
            }
        }
        names
    }

    #[test]
    fn folders_of_any_size_and_depth_come_in_order() {
        let root = scratch("walk");
        // More names than are kept, of very different lengths, and at every
        // depth files before and behind the folder that goes on.
        let mut paths = Vec::new();
        for n in 0..2500u32 {
            let length = (n * 7919 % 200) as usize;
            paths.push(format!("many/{}{n}", "x".repeat(length)));
        }
        for depth in 0..12 {
            for name in ["a", "n", "z"] {
                paths.push(format!("{}{name}", "m/".repeat(depth)));
            }
        }
        for path in &paths {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        paths.sort_unstable_by(|a, b| a.split('/').cmp(b.split('/')));
        assert_eq!(found(&root, "**/*"), paths);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn links_to_files_are_files_and_links_to_folders_end_no_walk() {
        let root = scratch("links");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/f.rs"), "").unwrap();
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, root.join(at)).unwrap();
        link("b/f.rs", "a/g.rs");
        link("..", "a/up");
        link("nowhere", "a/lost");
        assert_eq!(found(&root, "**/*"), ["a/b/f.rs", "a/g.rs", "a/lost?"]);
        assert_eq!(found(&root, "a/up/a/g.rs"), ["a/up/a/g.rs"]);
        let through = ["a/up/a/b/f.rs", "a/up/a/g.rs", "a/up/a/lost?"];
        assert_eq!(found(&root, "**/up/**"), through);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
