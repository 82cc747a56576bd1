//! Opening, reading and writing files.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Seek, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Advice, AtFlags, CWD, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

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

impl Stamp {
    /// The file's length and time of change.
    pub fn of(file: &File) -> io::Result<Stamp> {
        let metadata = file.metadata()?;
        Ok(Stamp {
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        })
    }
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
        let same = descriptor_path(&file);
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

    /// See [`Stamp::of`].
    pub fn stamp(&self) -> io::Result<Stamp> {
        Stamp::of(&self.file)
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
    name: Name,
}

/// What an [`AtomicFile`] is called until it is complete.
#[derive(Debug)]
enum Name {
    /// Nothing is left of it, however the process ends.
    Unnamed,
    /// Where the filesystem has no files without a name.
    Temporary(PathBuf),
    /// As it will be: nothing is left to be done.
    Final,
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
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        // A name that is too long, a loop of links: nothing could get that name.
        Err(e) => Err(e),
    }
}

/// Where links lead, whether that is there or not: writing to a link leaves it one.
///
/// Errors: more links than the system follows, besides the system's.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    /// See path_resolution(7).
    const LINKS_MAX: u32 = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match std::fs::read_link(&path) {
            // A relative link begins at its own folder.
            Ok(target) => path = folder_of(&path).join(target),
            // No link, or nothing.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(e) => return Err(e),
        }
    }
    Err(Errno::LOOP.into())
}

impl AtomicFile {
    /// Starts writing what will become `path`, or the file that a link of that name leads
    /// to, in the same folder.
    ///
    /// Errors: the folder is missing or takes no files, or `path` is a folder.
    pub fn create(path: &Path) -> io::Result<AtomicFile> {
        // A device may have a name that only the link knows.
        match is_special(path)? {
            true => AtomicFile::replace(path),
            false => AtomicFile::replace(&behind_links(path)?),
        }
    }

    /// As [`AtomicFile::create`], but a link of that name is replaced: who chose the name
    /// need not be allowed to write where it leads.
    pub fn replace(path: &Path) -> io::Result<AtomicFile> {
        let called = |file, name| AtomicFile {
            file,
            path: path.to_owned(),
            name,
        };
        if is_special(path)? {
            return Ok(called(open_special(path)?, Name::Final));
        }
        if path.file_name().is_none() {
            let what = "not a file name";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if let Some(file) = unnamed_to_be_linked(folder_of(path)) {
            return Ok(called(file, Name::Unnamed));
        }
        AtomicFile::create_named(path)
    }

    /// Starts writing a file of `folder` whose name is not known yet: see
    /// [`AtomicFile::finish_as`].
    ///
    /// Errors: the folder takes no files.
    pub fn unfinished(folder: &Path) -> io::Result<AtomicFile> {
        AtomicFile::replace(&folder.join(".unfinished"))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// As [`AtomicFile::finish`], under another name of the same folder.
    pub fn finish_as(mut self, path: &Path) -> io::Result<()> {
        self.path = path.to_owned();
        self.finish()
    }

    fn create_named(path: &Path) -> io::Result<AtomicFile> {
        let mut create = OpenOptions::new();
        create.write(true).create_new(true);
        let (file, temporary) = with_temporary_name(path, |name| create.open(name))?;
        Ok(AtomicFile {
            file,
            path: path.to_owned(),
            name: Name::Temporary(temporary),
        })
    }

    /// Makes the contents durable and gives the file its name.
    pub fn finish(mut self) -> io::Result<()> {
        if matches!(self.name, Name::Final) {
            return Ok(());
        }
        self.file.sync_all()?;
        if matches!(self.name, Name::Unnamed) {
            // A link replaces nothing, a name does.
            let from = descriptor_path(&self.file);
            let link = |name: &Path| {
                let flags = AtFlags::SYMLINK_FOLLOW;
                Ok(rustix::fs::linkat(CWD, &from, CWD, name, flags)?)
            };
            self.name = match with_temporary_name(&self.path, link) {
                Ok(((), temporary)) => Name::Temporary(temporary),
                // What was computed is not lost to a filesystem that has no links.
                Err(_) => self.copied()?,
            };
        }
        if let Name::Temporary(temporary) = &self.name {
            std::fs::rename(temporary, &self.path)?;
        }
        self.name = Name::Final;
        File::open(folder_of(&self.path))?.sync_all()
    }

    /// A durable copy of the file with a temporary name.
    fn copied(&self) -> io::Result<Name> {
        let mut copy = AtomicFile::create_named(&self.path)?;
        let mut from = &self.file;
        from.rewind()?;
        io::copy(&mut from, &mut copy.file)?;
        copy.file.sync_all()?;
        // The copy does not remove itself.
        Ok(std::mem::replace(&mut copy.name, Name::Final))
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Where the system shows an open file, whatever it is called.
fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// A file without a name in `folder`, that can get one; `None` where the system has
/// none, or could not name it.
fn unnamed_to_be_linked(folder: &Path) -> Option<File> {
    let file = nameless(folder).ok()?;
    descriptor_path(&file).exists().then_some(file)
}

/// A file of `folder` without a name.
///
/// Errors: the filesystem has none, besides the system's.
fn nameless(folder: &Path) -> io::Result<File> {
    let mut open = OpenOptions::new();
    open.read(true).write(true);
    open.custom_flags(OFlags::TMPFILE.bits() as i32);
    open.open(folder)
}

/// Whether a file of this name is an [`AtomicFile`] that was not finished, on a
/// filesystem where that has a name.
pub fn is_temporary(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(".omex-") && name.ends_with(".tmp")
}

/// Calls `make` with names in the folder of `path` until one is not taken.
fn with_temporary_name<T>(
    path: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Of any length that `path` has, this is a file name.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".omex-{}-{number}.tmp", std::process::id()));
        match make(&temporary) {
            Ok(made) => return Ok((made, temporary)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
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
        if let Name::Temporary(temporary) = &self.name {
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
    /// Errors: the file cannot be made, or is a pipe that nobody reads.
    pub fn acquire(path: &Path) -> io::Result<LockFile> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive) {
            // A filesystem without locks.
            Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL) => {
                Ok(LockFile(file))
            }
            Err(e) => Err(e.into()),
        }
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
    if let Ok(file) = nameless(folder) {
        return Ok(file);
    }
    // A name that is removed at once amounts to the same.
    let mut create = OpenOptions::new();
    create.read(true).write(true).create_new(true);
    let (file, name) = with_temporary_name(&folder.join("unnamed"), |name| create.open(name))?;
    std::fs::remove_file(name)?;
    Ok(file)
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
        let write = |mut file: AtomicFile, bytes: &[u8]| {
            file.write_all(bytes).unwrap();
            file.finish().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        };
        write(AtomicFile::create_named(&path).unwrap(), b"first");
        drop(AtomicFile::create_named(&path).unwrap());
        write(AtomicFile::create(&path).unwrap(), b"whole");
        let mut copied = AtomicFile::create(&path).unwrap();
        if matches!(copied.name, Name::Unnamed) {
            copied.write_all(b"copied").unwrap();
            copied.name = copied.copied().unwrap();
            copied.finish().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"copied");
            write_atomic(&path, b"whole").unwrap();
        }
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        let longest = folder.join("x".repeat(255));
        write_atomic(&longest, b"named").unwrap();
        std::fs::remove_file(longest).unwrap();
        assert!(open_regular(&folder).is_err());
        assert!(open_regular(Path::new("/dev/zero")).is_err());
        let long = folder.join("x".repeat(256));
        for wrong in [
            folder.clone(),
            folder.join("missing/x"),
            path.join("x"),
            long,
        ] {
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
    fn a_link_stays_one_and_what_it_leads_to_is_written() {
        let folder = std::env::temp_dir().join(format!("omex-links-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        let link = |name: &str, to: &str| {
            let path = folder.join(name);
            std::os::unix::fs::symlink(to, &path).unwrap();
            path
        };
        link("deep/second", "../file.txt");
        let first = link("first", "deep/second");
        // First the file is not there.
        for bytes in [b"one", b"two"] {
            write_atomic(&first, bytes).unwrap();
            assert_eq!(std::fs::read(folder.join("file.txt")).unwrap(), bytes);
        }
        assert!(first.is_symlink() && folder.join("deep/second").is_symlink());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
        for wrong in [link("circle", "circle"), link("astray", "missing/file")] {
            assert!(require_writable(&wrong).is_err(), "{wrong:?}");
        }
        write_atomic(&link("null", "/dev/null"), b"gone").unwrap();
        let mut instead = AtomicFile::replace(&first).unwrap();
        instead.write_all(b"three").unwrap();
        instead.finish().unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), b"three");
        assert_eq!(std::fs::read(folder.join("file.txt")).unwrap(), b"two");
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
