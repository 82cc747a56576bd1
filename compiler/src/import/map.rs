//! Model files mapped read-only.
#![allow(unsafe_code, reason = "mapping a file is unsafe in memmap2")]

use std::fs::{File, OpenOptions};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rustix::fs::OFlags;

use super::ImportError;
use crate::diagnostic::Code;

/// A regular file, opened once and mapped read-only.
///
/// The map serves the header and the metadata, which the reader copies what it
/// needs from. Weights are read through [`MappedFile::file`], so that a file
/// truncated while it is imported is an error instead of a SIGBUS.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    /// None for an empty file, which cannot be mapped.
    map: Option<Mmap>,
}

impl MappedFile {
    /// Opens and maps the file, which must be a regular one.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let file = open_regular(path)?;
        let metadata = file
            .metadata()
            .map_err(|e| ImportError::io(Code::FileRead, "stat", path, &e))?;
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only, handed out only as `&[u8]`, and
            // unmapped when `self` is dropped. What no program can rule out is
            // another process writing to the file meanwhile; model files are
            // written once, and bytes read from here are bounds-checked where
            // they are used.
            let map = unsafe { Mmap::map(&file) };
            Some(map.map_err(|e| ImportError::io(Code::FileRead, "map", path, &e))?)
        };
        Ok(Self {
            path: path.to_path_buf(),
            file,
            map,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for positioned reads.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Opens a file for reading. Anything but a regular file (a directory, FIFO or
/// device) is refused without blocking on it.
pub(super) fn open_regular(path: &Path) -> Result<File, ImportError> {
    let file = OpenOptions::new()
        .read(true)
        // Opening a FIFO without a writer would block.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|e| ImportError::io(Code::FileRead, "open", path, &e))?;
    let metadata = file
        .metadata()
        .map_err(|e| ImportError::io(Code::FileRead, "stat", path, &e))?;
    if !metadata.is_file() {
        return Err(ImportError::new(Code::FileRead, "not a regular file").in_file(path));
    }
    Ok(file)
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        for path in ["/dev/zero", "/tmp", "/nonexistent/model.gguf"] {
            let error = MappedFile::open(Path::new(path)).unwrap_err();
            assert_eq!(error.code, Code::FileRead, "{path}");
            assert!(error.to_string().starts_with(path), "{error}");
        }
    }

    #[test]
    fn an_empty_file_is_an_empty_slice() {
        let path = std::env::temp_dir().join(format!("omex-empty-{}", std::process::id()));
        std::fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
    }
}
