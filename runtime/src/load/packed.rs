//! Finds a plan's packed model, verifies it and brings its pages to memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use omex_plan::frames::{FRAMES_HEADER_BYTES, Frame, frames_header};
use omex_plan::packed::{Digest, PACKED_HEADER_BYTES, PACKED_MAGIC, PACKED_VERSION, Page};
use omex_plan::{BufferId, Plan, WeightSource};

use crate::error::RunError;
use crate::exec::PageTable;
use crate::hex;
use crate::load::LoadOptions;
use crate::os::file::{UncachedFile, forget, is_cached, open_regular};
use crate::os::memory::{FileMapping, Region};
use crate::pager::{Pager, Source};
use crate::pool::Pool;

/// Bytes hashed at once when a digest is computed from a file.
const HASH_BUFFER_BYTES: usize = 64 << 10;

/// The file name of the packed model with this digest.
pub fn packed_file_name(digest: &Digest) -> String {
    format!("{}.omex", hex::encode(digest))
}

/// The file name of the compressed pages of the packed model with this digest.
pub fn frames_file_name(digest: &Digest) -> String {
    format!("{}.zst", hex::encode(digest))
}

/// The file of this name in the first of `folders` that has it, and its length.
fn find_file(name: String, folders: &[&Path]) -> Result<(PathBuf, File, u64), RunError> {
    let mut tried = Vec::new();
    for folder in folders {
        let path = folder.join(&name);
        if tried.contains(&path) {
            continue;
        }
        match open_regular(&path) {
            Ok((file, bytes)) => return Ok((path, file, bytes)),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                tried.push(path);
            }
            Err(e) => return Err(RunError::io("open a file of weights", &path)(e)),
        }
    }
    Err(RunError::PackedModelMissing { name, tried })
}

/// The compressed pages that a plan reads, if it reads any: a file whose header
/// and table are what the plan says.
///
/// Errors: it is missing, or another one.
pub(super) fn find_frames(plan: &Plan, folders: &[&Path]) -> Result<Option<Source>, RunError> {
    let WeightSource::Paged(paged) = &plan.weights.source else {
        return Ok(None);
    };
    if paged.stages.is_none() {
        return Ok(None);
    }
    let (path, file, bytes) = find_file(frames_file_name(&plan.weights.packed_digest), folders)?;
    let pages = paged.frames.len();
    let wanted = frames_header(
        &plan.weights.packed_digest,
        pages as u32,
        paged.frames_file_bytes,
    );
    let mut found = vec![0; FRAMES_HEADER_BYTES as usize + 16 * pages];
    let is_long = bytes == paged.frames_file_bytes && bytes >= found.len() as u64;
    if is_long {
        let read = file.read_exact_at(&mut found, 0);
        read.map_err(RunError::io("read the compressed pages", &path))?;
    }
    let (header, table) = found.split_at(FRAMES_HEADER_BYTES as usize);
    let same = |(entry, frame): (&[u8], &Frame)| {
        entry[..8] == frame.file_offset.to_le_bytes() && entry[8..] == frame.bytes.to_le_bytes()
    };
    let mut entries = table.chunks_exact(16).zip(&paged.frames);
    if !is_long || header != wanted || !entries.all(same) {
        return Err(RunError::integrity(
            &path,
            None,
            "not the compressed pages that the plan was built with; rebuild with `omexc build`",
        ));
    }
    // Whatever is refused here is only cached for longer.
    let _ = forget(&file);
    let file = UncachedFile::new(file);
    let file = file.map_err(RunError::io("reopen the compressed pages", &path))?;
    Ok(Some(Source {
        file,
        path,
        offset: 0,
    }))
}

/// What is said of a page that does not match its digest.
pub(crate) fn damaged_page(page: impl std::fmt::Display) -> String {
    format!(
        "page {page} of the packed model does not match its digest; remove the file and build \
         the plan again"
    )
}

/// A packed model within an open file.
pub(super) struct PackedModel {
    path: PathBuf,
    file: File,
    /// Where the model starts: 0, or the pages section of a bundled plan.
    offset: u64,
    bytes: u64,
    /// The page cache had it before its index was verified.
    was_cached: bool,
}

impl PackedModel {
    /// The model in this part of a bundled plan.
    pub(super) fn bundled(path: &Path, file: File, part: Range<u64>) -> PackedModel {
        PackedModel {
            path: path.to_owned(),
            was_cached: is_cached(&file, &part),
            file,
            offset: part.start,
            bytes: part.end - part.start,
        }
    }

    /// The model's file in the first of `folders` that has it.
    ///
    /// Errors: none has it, or a file of its name cannot be opened.
    pub(super) fn find(digest: &Digest, folders: &[&Path]) -> Result<PackedModel, RunError> {
        let (path, file, bytes) = find_file(packed_file_name(digest), folders)?;
        Ok(PackedModel {
            path,
            was_cached: is_cached(&file, &(0..bytes)),
            file,
            offset: 0,
            bytes,
        })
    }

    /// Checks that this is the model that the plan names: header, length, and
    /// the index, whose digest is the model's.
    pub(super) fn verify(&self, plan: &Plan) -> Result<(), RunError> {
        let wrong = |byte: u64, what: String| {
            Err(RunError::integrity(
                &self.path,
                Some(self.offset + byte),
                what,
            ))
        };
        let (bytes, wanted) = (self.bytes, plan.weights.packed_file_bytes);
        if bytes != wanted {
            return wrong(
                bytes,
                format!("the packed model has {bytes} bytes where the plan says {wanted}"),
            );
        }
        let mut header = [0; PACKED_HEADER_BYTES as usize];
        if bytes < PACKED_HEADER_BYTES {
            return wrong(bytes, "too short for a packed model".to_owned());
        }
        self.read(&mut header, 0)?;
        if header[..8] != PACKED_MAGIC {
            return wrong(0, "not a packed model: the magic is missing".to_owned());
        }
        let version = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
        if version != PACKED_VERSION {
            return wrong(
                8,
                format!(
                    "packed-model version {version}, this runtime has {PACKED_VERSION}; \
                     rebuild with `omexc build`"
                ),
            );
        }
        let index_bytes = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
        if index_bytes > bytes - PACKED_HEADER_BYTES {
            return wrong(16, format!("the index would have {index_bytes} bytes"));
        }
        if header[24..32] != bytes.to_le_bytes() {
            return wrong(24, "the file's length is not the header's".to_owned());
        }
        if header[32..64] != plan.weights.packed_digest {
            return wrong(
                32,
                "the digest is not the one that the plan names".to_owned(),
            );
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASH_BUFFER_BYTES];
        let mut done = 0;
        while done < index_bytes {
            let size = (index_bytes - done).min(buffer.len() as u64) as usize;
            self.read(&mut buffer[..size], PACKED_HEADER_BYTES + done)?;
            hasher.update(&buffer[..size]);
            done += size as u64;
        }
        if hasher.finalize().as_bytes() != &plan.weights.packed_digest {
            return wrong(
                PACKED_HEADER_BYTES,
                "the index does not match its digest".to_owned(),
            );
        }
        Ok(())
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), RunError> {
        self.file
            .read_exact_at(buffer, self.offset + offset)
            .map_err(RunError::io("read the packed model", &self.path))
    }

    /// Brings every page to memory as the plan says, and verifies each. One
    /// thread does the work `beside` it.
    pub(super) fn load(
        self,
        plan: &Plan,
        arena: &mut Region,
        pool: &mut Pool,
        frames: Option<Source>,
        options: &LoadOptions,
        beside: &(dyn Fn() + Sync),
    ) -> Result<PageTable, RunError> {
        let pages = &plan.weights.pages;
        match &plan.weights.source {
            WeightSource::Mapped => {
                let bytes = plan.weights.packed_file_bytes as usize;
                let mapping = (self.file.try_clone())
                    .and_then(|file| FileMapping::new(file, self.offset, bytes))
                    .map_err(RunError::io("map the packed model", &self.path))?;
                let range = |page: &Page| {
                    page.file_offset as usize..(page.file_offset + page.bytes) as usize
                };
                // Two threads that read ahead, or one in two places, may both bring
                // the same part of the file, and are charged for both.
                let populate = |page: &Page| mapping.populate(range(page));
                let sound = |_, page: &Page| {
                    Ok(blake3::hash(&mapping[range(page)]).as_bytes() == &page.digest)
                };
                self.for_each_page(pages, pool, beside, populate, sound)?;
                Ok(PageTable::mapped(pages, mapping, self.path))
            }
            WeightSource::Read { slots } => {
                let slots: Vec<_> = slots.iter().copied().map(Some).collect();
                let (starts, _) = self.read_resident(plan, &slots, arena, pool, beside)?;
                Ok(PageTable::resident(starts))
            }
            WeightSource::Paged(paged) => {
                let (mut starts, file) =
                    self.read_resident(plan, &paged.resident, arena, pool, beside)?;
                for read in &paged.reads {
                    let slot = plan.buffers[read.slot.index()].offset;
                    let first = pages[read.first_page.index()].file_offset;
                    for page in read.page_ids() {
                        let offset = slot + (pages[page.index()].file_offset - first);
                        starts[page.index()] = arena.base().wrapping_add(offset as usize);
                    }
                }
                let source = Source {
                    file,
                    path: self.path,
                    offset: self.offset,
                };
                let pager = Pager::start(plan, paged, source, frames, arena, options)?;
                Ok(PageTable::paged(starts, pager))
            }
        }
    }

    /// Reads the pages that have a slot for good. Returns where each is, null
    /// for the others, and the file.
    fn read_resident(
        &self,
        plan: &Plan,
        slots: &[Option<BufferId>],
        arena: &mut Region,
        pool: &mut Pool,
        beside: &(dyn Fn() + Sync),
    ) -> Result<(Vec<*const u8>, UncachedFile), RunError> {
        let starts = slots.iter().map(|slot| match slot {
            Some(slot) => {
                let offset = plan.buffers[slot.index()].offset as usize;
                arena.base().wrapping_add(offset).cast_const()
            }
            None => std::ptr::null(),
        });
        let starts = starts.collect();
        let targets = page_slots(plan, slots, arena.bytes_mut());
        let reopen = || RunError::io("reopen the packed model", &self.path);
        if !self.was_cached {
            // Verifying the index brought it to the page cache, with what the system
            // reads ahead. Whatever is refused here is only cached for longer.
            let _ = forget(&self.file);
        }
        let file = self.file.try_clone().map_err(reopen())?;
        let file = UncachedFile::new(file).map_err(reopen())?;
        let read = |index: usize, page: &Page| {
            if slots[index].is_none() {
                return Ok(true);
            }
            let mut target = targets[index].lock().expect("no page panicked");
            let wanted = page.bytes as usize;
            file.read_at(&mut target, wanted, self.offset + page.file_offset)?;
            Ok(blake3::hash(&target[..wanted]).as_bytes() == &page.digest)
        };
        self.for_each_page(&plan.weights.pages, pool, beside, |_| {}, read)?;
        Ok((starts, file))
    }

    /// Calls `prepare` for one page after the other, in their order, then `load`
    /// for each, on all threads, and `beside` on one; `load` says whether the
    /// page matches its digest.
    ///
    /// Errors: the first page that does not, or that could not be read.
    fn for_each_page(
        &self,
        pages: &[Page],
        pool: &mut Pool,
        beside: &(dyn Fn() + Sync),
        prepare: impl Fn(&Page) + Sync,
        load: impl Fn(usize, &Page) -> io::Result<bool> + Sync,
    ) -> Result<(), RunError> {
        let broken = AtomicU32::new(u32::MAX);
        let error = Mutex::new(None);
        let next = Mutex::new(0);
        pool.run(&|team| {
            team.phase(1 + pages.len() as u32, |tile| {
                if tile == 0 {
                    beside();
                    return true;
                }
                let mut next = next.lock().expect("no page panicked");
                let index = *next;
                *next += 1;
                prepare(&pages[index]);
                drop(next);
                match load(index, &pages[index]) {
                    Ok(true) => {}
                    Ok(false) => {
                        broken.fetch_min(index as u32, Ordering::Relaxed);
                    }
                    Err(e) => {
                        let mut error = error.lock().expect("no page panicked");
                        error.get_or_insert(e);
                    }
                }
                true
            });
        });
        if let Some(e) = error.into_inner().expect("no page panicked") {
            return Err(RunError::io("read a page of the packed model", &self.path)(
                e,
            ));
        }
        match broken.into_inner() {
            u32::MAX => Ok(()),
            index => Err(RunError::integrity(
                &self.path,
                Some(self.offset + pages[index as usize].file_offset),
                damaged_page(index),
            )),
        }
    }
}

/// The arena's bytes of each page's slot. Checked plans have disjoint slots.
fn page_slots<'a>(
    plan: &Plan,
    slots: &[Option<BufferId>],
    arena: &'a mut [u8],
) -> Vec<Mutex<&'a mut [u8]>> {
    let mut by_offset: Vec<(u64, usize, BufferId)> = slots
        .iter()
        .enumerate()
        .filter_map(|(page, slot)| Some((plan.buffers[(*slot)?.index()].offset, page, (*slot)?)))
        .collect();
    by_offset.sort_unstable();
    let mut targets: Vec<_> = slots.iter().map(|_| Mutex::new(&mut [][..])).collect();
    let (mut rest, mut at) = (arena, 0);
    for (_, page, slot) in by_offset {
        let buffer = &plan.buffers[slot.index()];
        let (_, from_slot) = rest.split_at_mut((buffer.offset - at) as usize);
        let (bytes, behind) = from_slot.split_at_mut(buffer.bytes as usize);
        targets[page] = Mutex::new(bytes);
        (rest, at) = (behind, buffer.offset + buffer.bytes);
    }
    targets
}
