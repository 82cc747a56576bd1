//! Opening, reading and writing files.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags};
use rustix::io::ReadWriteFlags;

pub use omex_plan::paging::DIRECT_ALIGN;

/// Opens a regular file for reading and says how long it is.
///
/// Errors: anything but a regular file (a pipe would block, a device has no
/// length), besides the system's.
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new()
        .read(true)
        // A FIFO without a writer would block the open itself.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok((file, metadata.len()))
}

/// Reads a file that must not be longer than `bytes_max`.
pub fn read_small(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let (file, len) = open_regular(path)?;
    if len > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{len} bytes long, at most {bytes_max} are expected"),
        ));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A file as reads see it: the system's, or one that fails as a test wishes.
pub trait ReadAt: std::fmt::Debug + Send + Sync {
    /// As `pread`: may read less than the buffer holds, 0 bytes at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// What a [`Ring`](super::uring::Ring) may read instead.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// What a ring's read of this to `buffer` gave, when the ring says `result`.
    fn completed(
        &self,
        _buffer: &mut [u8],
        _offset: u64,
        result: io::Result<usize>,
    ) -> io::Result<usize> {
        result
    }
}

impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

/// What changes when somebody writes to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

/// A file that is read past the page cache where the filesystem allows it.
#[derive(Debug)]
pub struct UncachedFile {
    /// Opened with O_DIRECT, unless the filesystem refuses it.
    direct: Option<Box<dyn ReadAt>>,
    buffered: Box<dyn ReadAt>,
    file: File,
}

impl UncachedFile {
    /// `file` is the same file, opened normally.
    ///
    /// Errors: the system refuses a second handle.
    pub fn new(file: File) -> io::Result<UncachedFile> {
        // Opening through /proc reaches the very file that was checked, even
        // when its name means another one by now.
        use std::os::fd::AsRawFd;
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(same)
            .ok();
        Ok(UncachedFile {
            direct: direct.map(|file| Box::new(file) as Box<dyn ReadAt>),
            buffered: Box::new(file.try_clone()?),
            file,
        })
    }

    /// The same file with other reads.
    #[cfg(test)]
    pub(crate) fn with_reads(
        file: File,
        direct: Option<Box<dyn ReadAt>>,
        buffered: Box<dyn ReadAt>,
    ) -> UncachedFile {
        UncachedFile {
            direct,
            buffered,
            file,
        }
    }

    /// The file's length and time of change.
    pub fn stamp(&self) -> io::Result<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let metadata = self.file.metadata()?;
        Ok(Stamp {
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        })
    }

    /// The file of direct reads, and how long the one is that reads `wanted`
    /// bytes from `offset` on to `buffer`'s start, where there can be one.
    pub fn direct(
        &self,
        buffer: &[u8],
        wanted: usize,
        offset: u64,
    ) -> Option<(&dyn ReadAt, usize)> {
        let aligned = wanted.next_multiple_of(DIRECT_ALIGN as usize);
        let fits = offset.is_multiple_of(DIRECT_ALIGN)
            && (buffer.as_ptr() as u64).is_multiple_of(DIRECT_ALIGN)
            && aligned <= buffer.len();
        let direct = self.direct.as_deref().filter(|_| fits)?;
        Some((direct, aligned))
    }

    /// Reads `wanted` bytes from `offset` on to `buffer`'s start. Direct reads
    /// take whole blocks, so the rest of `buffer` may be overwritten too.
    ///
    /// Errors: the file ends early, or the system's.
    pub fn read_at(&self, buffer: &mut [u8], wanted: usize, offset: u64) -> io::Result<()> {
        assert!(wanted <= buffer.len(), "the buffer holds the wanted bytes");
        let mut done = 0;
        if let Some((direct, aligned)) = self.direct(buffer, wanted, offset) {
            while done < wanted {
                match direct.read_at(&mut buffer[done..aligned], offset + done as u64) {
                    Ok(0) => break,
                    Ok(n) => {
                        done += n;
                        // A short read leaves an unaligned rest, except at the
                        // file's end; the buffered path completes it.
                        if !n.is_multiple_of(DIRECT_ALIGN as usize) {
                            break;
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
                    Err(e) => return Err(e),
                }
            }
        }
        if done < wanted {
            while done < wanted {
                match self
                    .buffered
                    .read_at(&mut buffer[done..wanted], offset + done as u64)
                {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            let length = std::num::NonZeroU64::new(wanted as u64);
            // The cache gives way by itself where the advice is refused.
            let _ = rustix::fs::fadvise(&self.file, offset, length, Advice::DontNeed);
        }
        Ok(())
    }
}

/// Takes a file's clean pages out of the page cache.
pub fn forget(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

/// Whether the page cache has this part of a file, as far as a sample shows.
///
/// The system may read ahead what it does not have, and a fast disk may have it
/// there before the call returns: one byte alone shows nothing.
pub fn is_cached(file: &File, part: &Range<u64>) -> bool {
    const SAMPLES: u64 = 16;
    let step = (part.end - part.start).div_ceil(SAMPLES).max(1);
    let mut offsets = part.clone().step_by(step as usize);
    offsets.all(|offset| {
        let mut byte = [0];
        let mut buffer = [IoSliceMut::new(&mut byte)];
        rustix::io::preadv2(file, &mut buffer, offset, ReadWriteFlags::NOWAIT).is_ok()
    })
}

/// A file that appears under its name only when it is complete. A device or
/// pipe of that name is written as it is.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    path: PathBuf,
    /// The name until then; absent when the file has its own.
    temporary: Option<PathBuf>,
}

/// Whether a file can become `path`, so that nobody works for one that cannot.
///
/// Errors: as [`AtomicFile::create`].
pub fn require_writable(path: &Path) -> io::Result<()> {
    // Opening a pipe and closing it again would be its end.
    if is_special(path)? {
        return Ok(());
    }
    AtomicFile::create(path).map(drop)
}

/// Whether two paths name one file that is there.
pub fn is_same(a: &Path, b: &Path) -> bool {
    let identity = |path| {
        let metadata = std::fs::metadata(path).ok();
        metadata.map(|m| (m.dev(), m.ino(), m.is_file()))
    };
    identity(a).is_some_and(|a| a.2 && Some(a) == identity(b))
}

/// Opens a device or a pipe to write to.
///
/// Errors: nobody reads the pipe, which would otherwise be waited for without an end.
fn open_special(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)?;
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    Ok(file)
}

/// A device or a pipe, which nothing replaces.
fn is_special(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(metadata) => Ok(!metadata.is_file()),
        Err(_) => Ok(false),
    }
}

impl AtomicFile {
    /// Starts writing what will become `path`, in the same folder.
    ///
    /// Errors: the folder is missing or takes no files, or `path` is a folder.
    pub fn create(path: &Path) -> io::Result<AtomicFile> {
        if is_special(path)? {
            return Ok(AtomicFile {
                file: open_special(path)?,
                path: path.to_owned(),
                temporary: None,
            });
        }
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
        let mut attempt = 0u32;
        loop {
            let mut hidden = std::ffi::OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{}.{attempt}.tmp", std::process::id()));
            let temporary = path.with_file_name(hidden);
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&temporary)
            {
                Ok(file) => {
                    return Ok(AtomicFile {
                        file,
                        path: path.to_owned(),
                        temporary: Some(temporary),
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// Makes the contents durable and gives the file its name.
    pub fn finish(mut self) -> io::Result<()> {
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        self.file.sync_all()?;
        std::fs::rename(temporary, &self.path)?;
        self.temporary = None;
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Writes `bytes` as the whole content of `path`, atomically.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.finish()
}

/// Holds an exclusive lock on a file until dropped; creates the file.
#[derive(Debug)]
pub struct LockFile(#[expect(dead_code, reason = "closing it releases the lock")] File);

impl LockFile {
    pub fn acquire(path: &Path) -> io::Result<LockFile> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(LockFile(file))
    }
}

/// The folder for data that memory is not budgeted for: `$TMPDIR`, else
/// `/var/tmp`, which is on disk where `/tmp` may be memory.
pub fn waiting_folder() -> PathBuf {
    let disk = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && disk.is_dir() {
        disk.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// An unnamed file in `folder`, for data that memory is not budgeted for.
pub fn unnamed(folder: &Path) -> io::Result<File> {
    let anonymous = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(folder);
    match anonymous {
        Ok(file) => Ok(file),
        // Not every filesystem has O_TMPFILE; a name that is removed at once
        // amounts to the same.
        Err(_) => {
            let path = folder.join(format!(".omex-{}.tmp", std::process::id()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_file_leaves_nothing_behind() {
        let folder = std::env::temp_dir().join(format!("omex-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("out.txt");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        write_atomic(&path, b"whole").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        assert!(open_regular(&folder).is_err());
        assert!(open_regular(Path::new("/dev/zero")).is_err());
        for wrong in [folder.clone(), folder.join("missing/x"), path.join("x")] {
            assert!(require_writable(&wrong).is_err(), "{wrong:?}");
            assert!(AtomicFile::create(&wrong).is_err(), "{wrong:?}");
        }
        require_writable(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        // A device is written, not replaced.
        let null = std::fs::canonicalize("/dev/null").unwrap();
        write_atomic(&null, b"gone").unwrap();
        assert!(!std::fs::metadata(&null).unwrap().is_file());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn uncached_reads_give_the_files_bytes_at_any_length() {
        let path = std::env::temp_dir().join(format!("omex-direct-{}", std::process::id()));
        let bytes: Vec<u8> = (0..20_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let (file, _) = open_regular(&path).unwrap();
        let file = UncachedFile::new(file).unwrap();
        let mut region = crate::os::memory::Region::zeroed(24_576).unwrap();
        for (offset, wanted) in [(0, 1), (4096, 4096), (8192, 11_808), (1, 77)] {
            let buffer = region.bytes_mut();
            file.read_at(buffer, wanted, offset).unwrap();
            assert_eq!(buffer[..wanted], bytes[offset as usize..][..wanted]);
        }
        assert!(file.read_at(region.bytes_mut(), 16_384, 8192).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
