//! Compressed copies of a packed model's pages, in a file beside it.
//!
//! The file's format is that of [`omex_plan::frames`]. Which pages have a frame
//! depends on the packed model alone, so all plans share the file; each plan
//! says which frames its device gains by.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use omex_plan::frames::{FRAME_ALIGN, FRAMES_HEADER_BYTES, Frame, frames_header, frames_start};
use omex_plan::packed::Page;
use omex_runtime::frames_file_name;
use omex_runtime::os::file::AtomicFile;

use super::cache::{Lock, check_free_space};
use super::{PackedModel, Progress};
use crate::diagnostic::Code;
use crate::import::ImportError;

/// Decompresses at the speed of higher levels; these gain little on weights.
const LEVEL: i32 = 3;
/// A frame saves at least this share of its page.
const SAVED_SHARE_MIN: u64 = 16;

/// Compressed pages in the cache, complete and under their final name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FramesFile {
    pub path: PathBuf,
    pub file_bytes: u64,
    /// Per page of the packed model.
    pub frames: Vec<Frame>,
}

/// Finds the compressed pages of `packed` in `cache_dir`, or makes them.
///
/// # Errors
///
/// Too little free space, a packed model that is damaged, or a failed system
/// call; nothing is left behind.
pub fn compress_into_cache(
    packed: &PackedModel,
    cache_dir: &Path,
    threads: usize,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<FramesFile, ImportError> {
    let path = cache_dir.join(frames_file_name(&packed.digest));
    if let Some(found) = find(&path, packed) {
        return Ok(found);
    }
    let _lock = Lock::take(cache_dir, progress)?;
    if let Some(found) = find(&path, packed) {
        return Ok(found);
    }
    check_free_space(cache_dir, packed.file_bytes)?;
    let source = File::open(&packed.path)
        .map_err(|e| ImportError::io(Code::FileRead, "open", &packed.path, &e))?;
    let write_error = |e| ImportError::io(Code::FileWrite, "write", cache_dir, &e);
    let unfinished = AtomicFile::unfinished(cache_dir).map_err(write_error)?;

    let pages = &packed.index.pages;
    let total_bytes = pages.iter().map(|page| page.bytes).sum();
    let (mut end, mut done_bytes) = (frames_start(pages.len()), 0);
    let mut frames = Vec::with_capacity(pages.len());
    for batch in pages.chunks(threads.max(1)) {
        let compressed: Vec<_> = std::thread::scope(|scope| {
            let work = |page| {
                let source = &source;
                scope.spawn(move || compress(source, page))
            };
            let workers: Vec<_> = batch.iter().map(work).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, _>| worker.join();
            workers.into_iter().map(join).collect()
        });
        for (page, compressed) in batch.iter().zip(compressed) {
            let compressed = compressed.expect("compressing does not panic");
            let content = compressed.map_err(|e| e.in_file(&packed.path))?;
            let bytes = content.len() as u64;
            let stored = bytes.next_multiple_of(FRAME_ALIGN);
            let frame = if stored <= page.bytes - page.bytes / SAVED_SHARE_MIN {
                let file_offset = end;
                end += stored;
                unfinished
                    .file()
                    .write_all_at(&content, file_offset)
                    .map_err(write_error)?;
                Frame { file_offset, bytes }
            } else {
                Frame::default()
            };
            frames.push(frame);
            done_bytes += page.bytes;
        }
        progress(Progress::Compressing {
            done_bytes,
            total_bytes,
        });
    }
    let file = unfinished.file();
    file.set_len(end)
        .and_then(|()| file.write_all_at(&start(packed, &frames, end), 0))
        .map_err(write_error)?;
    unfinished
        .finish_as(&path)
        .map_err(|e| ImportError::io(Code::FileWrite, "give its name to", &path, &e))?;
    Ok(FramesFile {
        path,
        file_bytes: end,
        frames,
    })
}

fn compress(source: &File, page: &Page) -> Result<Vec<u8>, ImportError> {
    let failed = |what: String| ImportError::new(Code::FileRead, what).at(page.file_offset);
    let mut content = vec![0; page.bytes as usize];
    source
        .read_exact_at(&mut content, page.file_offset)
        .map_err(|e| failed(format!("a page cannot be read: {e}")))?;
    if blake3::hash(&content).as_bytes() != &page.digest {
        return Err(ImportError::new(Code::ModelDigest, "a page is damaged").at(page.file_offset));
    }
    zstd::bulk::compress(&content, LEVEL)
        .map_err(|e| failed(format!("a page cannot be compressed: {e}")))
}

/// Header and table.
fn start(packed: &PackedModel, frames: &[Frame], file_bytes: u64) -> Vec<u8> {
    let header = frames_header(&packed.digest, frames.len() as u32, file_bytes);
    let mut start = header.to_vec();
    for frame in frames {
        start.extend(frame.file_offset.to_le_bytes());
        start.extend(frame.bytes.to_le_bytes());
    }
    start
}

/// Compressed pages of this packed model. A file that says otherwise is no hit.
fn find(path: &Path, packed: &PackedModel) -> Option<FramesFile> {
    let file = crate::import::map::open_regular(path).ok()?;
    let file_bytes = file.metadata().ok()?.len();
    let pages = packed.index.pages.len();
    let mut found = vec![0; FRAMES_HEADER_BYTES as usize + 16 * pages];
    file.read_exact_at(&mut found, 0).ok()?;
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let table = found[FRAMES_HEADER_BYTES as usize..].chunks_exact(16);
    let frames: Vec<Frame> = table
        .map(|entry| Frame {
            file_offset: word(&entry[..8]),
            bytes: word(&entry[8..]),
        })
        .collect();
    let inside = |frame: &Frame| {
        let end = frame.file_offset.checked_add(frame.bytes);
        end.is_some_and(|end| end <= file_bytes)
    };
    let sound = found == start(packed, &frames, file_bytes) && frames.iter().all(inside);
    sound.then(|| FramesFile {
        path: path.to_owned(),
        file_bytes,
        frames,
    })
}
