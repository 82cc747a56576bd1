//! The cache of packed models: finding one, and adding one so that a crash, a
//! full disk or a second builder never leaves a mixed file under a final name.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use omex_plan::packed::{
    Digest, PACKED_HEADER_BYTES, PACKED_MAGIC, PACKED_VERSION, PackedIndex, packed_header,
};
use omex_runtime::os::file::{AtomicFile, Stamp, is_temporary};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::Part;
use super::layout::{FileLayout, lay_out};
use super::write::{Output, write_pages};
use super::{PackedModel, Progress, Source};
use crate::diagnostic::Code;
use crate::import::ImportError;

/// Largest index that is read: far above any real model's.
const INDEX_BYTES_MAX: u64 = 256 << 20;

/// The name of a packed model in a cache: its digest.
pub fn file_name(digest: &Digest) -> String {
    format!("{}.omex", blake3::Hash::from(*digest).to_hex())
}

/// Finds the packed model of `source` in `cache_dir`, or packs it there.
///
/// The file gets its name when it is complete and synced. Builders on one cache
/// take turns by a lock that dies with its holder; where the filesystem has no
/// locks, both write the same bytes and the last rename wins.
///
/// # Errors
///
/// A weight that is NaN or infinite, a source that changes meanwhile, too
/// little free space, or a failed system call; nothing is left behind.
pub fn pack_into_cache(
    source: &Source<'_>,
    order: &[Part],
    cache_dir: &Path,
    threads: usize,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<PackedModel, ImportError> {
    let path = source.file.path();
    let before = stamp(source)?;
    let mut layout = lay_out(source.gguf, order).map_err(|e| e.in_file(path))?;
    layout.index.source_digest = hash_source(source, progress)?;
    if let Some(found) = find(cache_dir, &layout) {
        return Ok(found);
    }

    fs::create_dir_all(cache_dir)
        .map_err(|e| ImportError::io(Code::FileWrite, "create", cache_dir, &e))?;
    let lock = Lock::take(cache_dir, progress)?;
    if let Some(found) = find(cache_dir, &layout) {
        return Ok(found);
    }
    if lock.is_exclusive {
        remove_abandoned(cache_dir);
    }
    check_free_space(cache_dir, layout.file_bytes)?;

    let write_error = |what: &str, e| ImportError::io(Code::FileWrite, what, cache_dir, &e);
    let unfinished = AtomicFile::unfinished(cache_dir).map_err(|e| write_error("create", e))?;
    let output = Output {
        file: unfinished.file(),
        folder: cache_dir,
    };
    unfinished
        .file()
        .set_len(layout.file_bytes)
        .map_err(|e| write_error("extend", e))?;
    let digests = write_pages(source, order, &layout, &output, threads, progress)
        .map_err(|e| e.in_file(path))?;
    for (page, digest) in layout.index.pages.iter_mut().zip(digests) {
        page.digest = digest;
    }
    if stamp(source)? != before {
        return Err(
            ImportError::new(Code::FileRead, "the file changed while it was packed").in_file(path),
        );
    }
    let index = layout.index.encode();
    let mut head = packed_header(&index, layout.file_bytes).to_vec();
    head.extend_from_slice(&index);
    output.write_up_to_next(&mut head, 0)?;
    unfinished
        .file()
        .sync_all()
        .map_err(|e| write_error("fsync", e))?;
    // Written pages lie in small folios of the page cache. Runtimes that map the file
    // read it again, in huge pages; others read past the cache.
    let _ = rustix::fs::fadvise(unfinished.file(), 0, None, rustix::fs::Advice::DontNeed);
    let digest = *blake3::hash(&index).as_bytes();
    let path = cache_dir.join(file_name(&digest));
    unfinished
        .finish_as(&path)
        .map_err(|e| ImportError::io(Code::FileWrite, "give its name to", &path, &e))?;
    Ok(PackedModel {
        path,
        digest,
        file_bytes: layout.file_bytes,
        index: layout.index,
    })
}

/// Opens a packed model: checks header, index and length, not the pages.
///
/// # Errors
///
/// A damaged file or one of another version ([`Code::ModelDigest`],
/// [`Code::PlanVersion`]), or a failed system call.
pub fn open(path: &Path) -> Result<PackedModel, ImportError> {
    let damaged = |what: String| ImportError::new(Code::ModelDigest, what).in_file(path);
    let read_error = |what: &str, e| ImportError::io(Code::FileRead, what, path, &e);
    let file = crate::import::map::open_regular(path)?;
    let file_bytes = file.metadata().map_err(|e| read_error("stat", e))?.len();
    let mut header = [0; PACKED_HEADER_BYTES as usize];
    if file_bytes < PACKED_HEADER_BYTES {
        return Err(damaged(format!(
            "a packed model has a header of {PACKED_HEADER_BYTES} bytes; the file has {file_bytes}"
        )));
    }
    file.read_exact_at(&mut header, 0)
        .map_err(|e| read_error("read", e))?;
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    if header[..8] != PACKED_MAGIC {
        return Err(damaged("not a packed model".to_owned()).at(0));
    }
    let version = word(8) as u32;
    if version != PACKED_VERSION {
        return Err(ImportError::new(
            Code::PlanVersion,
            format!("packed model of version {version}; this build reads version {PACKED_VERSION}"),
        )
        .in_file(path)
        .at(8)
        .help("rebuild with `omexc build`"));
    }
    let (index_bytes, stated_bytes) = (word(16), word(24));
    if stated_bytes != file_bytes {
        return Err(damaged(format!(
            "the header states {stated_bytes} bytes; the file has {file_bytes}"
        ))
        .at(24));
    }
    if index_bytes > INDEX_BYTES_MAX.min(file_bytes - PACKED_HEADER_BYTES) {
        return Err(damaged(format!(
            "an index of {index_bytes} bytes does not fit the file"
        ))
        .at(16));
    }
    let mut index = vec![0; index_bytes as usize];
    file.read_exact_at(&mut index, PACKED_HEADER_BYTES)
        .map_err(|e| read_error("read", e))?;
    let digest = *blake3::hash(&index).as_bytes();
    if digest != header[32..64] || word(8) >> 32 != 0 {
        return Err(damaged("the index is damaged".to_owned()).at(PACKED_HEADER_BYTES));
    }
    let index = PackedIndex::decode(&index)
        .map_err(|e| damaged(format!("the index cannot be decoded: {}", e.0)))?;
    Ok(PackedModel {
        path: path.to_path_buf(),
        digest,
        file_bytes,
        index,
    })
}

/// A packed model of the same source and layout. Files that cannot be opened
/// are no hits.
fn find(cache_dir: &Path, layout: &FileLayout) -> Option<PackedModel> {
    let mut paths: Vec<PathBuf> = fs::read_dir(cache_dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "omex"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .filter_map(|path| open(&path).ok())
        .find(|found| {
            let (index, wanted) = (&found.index, &layout.index);
            index.source_digest == wanted.source_digest
                && index.model_name == wanted.model_name
                && index.tensors == wanted.tensors
                && found.path.file_name() == Some(file_name(&found.digest).as_ref())
        })
}

fn hash_source(
    source: &Source<'_>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Digest, ImportError> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let total_bytes = source.file.len() as u64;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES.min(total_bytes) as usize];
    let mut done_bytes = 0;
    while done_bytes < total_bytes {
        let len = CHUNK_BYTES.min(total_bytes - done_bytes);
        let chunk = &mut chunk[..len as usize];
        source.read_exact_at(chunk, done_bytes)?;
        hasher.update(chunk);
        done_bytes += len;
        progress(Progress::Hashing {
            done_bytes,
            total_bytes,
        });
    }
    Ok(*hasher.finalize().as_bytes())
}

/// What changes when somebody writes to the source.
fn stamp(source: &Source<'_>) -> Result<Stamp, ImportError> {
    let path = source.file.path();
    Stamp::of(source.file.file()).map_err(|e| ImportError::io(Code::FileRead, "stat", path, &e))
}

pub(super) fn check_free_space(cache_dir: &Path, needed_bytes: u64) -> Result<(), ImportError> {
    let stat = rustix::fs::statvfs(cache_dir)
        .map_err(|e| ImportError::io(Code::FileWrite, "statvfs", cache_dir, &e.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(ImportError::new(
        Code::NoSpace,
        format!(
            "the packed model needs {} MiB, and {} MiB are free",
            mib(needed_bytes),
            free_bytes >> 20
        ),
    )
    .in_file(cache_dir)
    .help("free some space, or choose another cache directory"))
}

/// Removes what builders that were killed have left. Only for the holder of
/// the lock: no one else is writing.
fn remove_abandoned(cache_dir: &Path) {
    let Ok(entries) = fs::read_dir(cache_dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if is_temporary(&name) {
            // Failing to remove it costs disk space only.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The right to write into a cache, given up when dropped or when the process
/// dies.
pub(super) struct Lock {
    _file: File,
    /// False where the filesystem has no locks.
    is_exclusive: bool,
}

impl Lock {
    pub(super) fn take(
        cache_dir: &Path,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Lock, ImportError> {
        let path = cache_dir.join(".lock");
        let error = |what: &str, e| ImportError::io(Code::FileWrite, what, &path, &e);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            // A pipe that nobody reads would be waited for without an end.
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(&path)
            .map_err(|e| error("create", e))?;
        let mut operation = FlockOperation::NonBlockingLockExclusive;
        let is_exclusive = loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => break true,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => {
                    progress(Progress::Waiting);
                    operation = FlockOperation::LockExclusive;
                }
                Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL) => break false,
                Err(e) => return Err(error("lock", e.into())),
            }
        };
        Ok(Lock {
            _file: file,
            is_exclusive,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_refused_before_anything_is_written() {
        let dir = std::env::temp_dir();
        check_free_space(&dir, 0).unwrap();
        let error = check_free_space(&dir, u64::MAX).unwrap_err();
        assert_eq!(error.code, Code::NoSpace);
        assert!(
            error.message.contains("needs 17592186044416 MiB"),
            "{error}"
        );
    }
}
