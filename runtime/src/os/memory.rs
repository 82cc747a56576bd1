//! Mappings: the arena, weights and code.
// Mappings are raw memory; each block says why its range is alive and whose it is.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

use memmap2::{Mmap, MmapMut, MmapOptions};

use super::file::Stamp;

/// Zeroed private memory, resident from the start, at a fixed address.
///
/// The bytes are reached through [`Region::base`] by whoever proved that
/// accesses do not conflict; the region itself hands out no references.
#[derive(Debug)]
pub struct Region {
    base: *mut u8,
    len: usize,
    /// The system makes pages resident on request; where it does not, all are.
    populates: bool,
    map: MmapMut,
}

// SAFETY: the region is plain memory without thread affinity; `base` only
// copies an address, so sharing a `&Region` reads no memory.
unsafe impl Send for Region {}
// SAFETY: see above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps and prefaults `len` bytes, in huge pages where the system has them.
    ///
    /// Errors: the system refuses the memory.
    pub fn zeroed(len: usize) -> io::Result<Region> {
        let region = Region::reserved(len)?;
        region.populate(0..len)?;
        Ok(region)
    }

    /// Maps `len` bytes that [`Region::populate`] makes resident.
    ///
    /// Errors: the system refuses the memory.
    pub fn reserved(len: usize) -> io::Result<Region> {
        let mut map = MmapOptions::new().len(len.max(1)).map_anon()?;
        // Fewer faults to load, fewer walks of page tables to compute, and
        // fewer segments to read into. It costs nothing: only what lies within
        // the mapping can be huge.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        #[cfg(target_os = "linux")]
        let populates = map
            .advise_range(memmap2::Advice::PopulateWrite, 0, 1)
            .is_ok();
        #[cfg(not(target_os = "linux"))]
        let populates = false;
        if !populates {
            // Before Linux 5.14.
            for page in map.chunks_mut(rustix::param::page_size()) {
                std::hint::black_box(page)[0] = 0;
            }
        }
        Ok(Region {
            base: map.as_mut_ptr(),
            len,
            populates,
            map,
        })
    }

    /// Makes these bytes resident, as they are.
    ///
    /// Errors: the system refuses the memory.
    pub fn populate(&self, bytes: Range<usize>) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if self.populates {
            let advice = memmap2::Advice::PopulateWrite;
            return self.map.advise_range(advice, bytes.start, bytes.len());
        }
        Ok(())
    }

    pub fn base(&self) -> *mut u8 {
        self.base
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, to be filled before they are shared.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` bytes of initialised memory that lives
        // as long as `self`; `&mut self` excludes every other safe access.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }

    /// Makes the region read-only for good.
    pub fn freeze(self) -> io::Result<Frozen> {
        let len = self.len;
        Ok(Frozen {
            map: self.map.make_read_only()?,
            len,
        })
    }
}

/// Read-only private memory.
#[derive(Debug)]
pub struct Frozen {
    map: Mmap,
    len: usize,
}

impl Deref for Frozen {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[..self.len]
    }
}

/// A file mapped read-only.
#[derive(Debug)]
pub struct FileMapping {
    map: Mmap,
    file: File,
    /// Of the file before it was mapped.
    stamp: Stamp,
}

impl FileMapping {
    /// Maps `bytes` bytes of `file` from `offset` on.
    ///
    /// A file that another process shortens while it is mapped raises SIGBUS
    /// on access, which [`super::signal::install`] turns into an exit with a
    /// message; one that it overwrites changes under the mapping, which
    /// [`FileMapping::is_unchanged`] tells.
    pub fn new(file: File, offset: u64, bytes: usize) -> io::Result<FileMapping> {
        let stamp = Stamp::of(&file)?;
        // SAFETY: the mapping is private and read-only; the caveat about other
        // processes changing the file is the documented one above.
        let map = unsafe { MmapOptions::new().offset(offset).len(bytes).map(&file)? };
        // Where the filesystem has large folios, what is read from now on comes in
        // huge pages. Two CPUs read weights half as fast again from them.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(FileMapping { map, file, stamp })
    }

    /// Whether nobody wrote to the file since it was mapped.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(Stamp::of(&self.file)? == self.stamp)
    }

    /// Makes these bytes resident at once, where the system can; others become
    /// it as they are read.
    pub fn populate(&self, bytes: Range<usize>) {
        #[cfg(target_os = "linux")]
        let _ = self
            .map
            .advise_range(memmap2::Advice::PopulateRead, bytes.start, bytes.len());
    }
}

impl Deref for FileMapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Executable memory: written while writable, then executable and read-only,
/// never both.
#[derive(Debug)]
pub struct Code {
    map: Mmap,
}

impl Code {
    /// Makes the bytes of `region` executable, and read-only for good.
    ///
    /// Errors: the system refuses to execute them.
    pub fn new(region: Region) -> io::Result<Code> {
        let map = region.map.make_exec()?;
        synchronize_instructions(&map);
        Ok(Code { map })
    }

    /// Address of the byte at `offset`, which must be inside.
    pub fn address(&self, offset: usize) -> *const u8 {
        self.map[offset..].as_ptr()
    }
}

/// Makes written instructions visible to instruction fetch; x86 does so itself.
#[cfg(target_arch = "x86_64")]
fn synchronize_instructions(_code: &[u8]) {}

/// Makes written instructions visible to instruction fetch: data cache lines
/// are cleaned and instruction cache lines invalidated to the point of
/// unification (Arm ARM, B2.4.4).
#[cfg(target_arch = "aarch64")]
fn synchronize_instructions(code: &[u8]) {
    let start = code.as_ptr() as usize;
    let end = start + code.len();
    // SAFETY: cache maintenance by address over a live mapping changes no
    // memory; both instructions are allowed at EL0 on Linux. 16 bytes is the
    // smallest line that the architecture has.
    unsafe {
        for line in (start & !15..end).step_by(16) {
            std::arch::asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags));
        }
        std::arch::asm!("dsb ish", options(nostack, preserves_flags));
        for line in (start & !15..end).step_by(16) {
            std::arch::asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags));
        }
        std::arch::asm!("dsb ish", "isb", options(nostack, preserves_flags));
    }
}

/// The bytes of words.
pub fn bytes_of_words(words: &mut [u32]) -> &mut [u8] {
    let bytes = size_of_val(words);
    // SAFETY: the same memory, which is aligned for bytes; words and bytes are
    // valid with any bits; the borrow of `words` lasts as long as the result.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), bytes) }
}

/// Keeps the C heap in one place: threads share it instead of getting arenas
/// of their own, and large blocks come from it instead of new mappings.
/// Processes whose memory is planned call it first.
pub fn unify_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt changes only the allocator's tuning.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
    }
}

/// Returns memory that starting and loading needed and running does not: free
/// blocks of the heap, and pages of programs and libraries, which come back
/// from their files as far as they are used again: with what lies around them,
/// or one by one with [`Return::Singly`].
pub fn release_unused(how: Return) {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim returns free blocks only.
    unsafe {
        libc::malloc_trim(0);
    }
    let reading = match how {
        Return::Ahead => libc::MADV_NORMAL,
        Return::Singly => libc::MADV_RANDOM,
    };
    for_each_segment(&mut |start, end| {
        for advice in [libc::MADV_DONTNEED, reading] {
            // SAFETY: the range belongs to a private mapping of a file that was
            // never written to: the next access finds the same bytes in the
            // file. A refusal (the vDSO is no file) changes nothing.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
        }
    });
}

/// How pages of programs come back that are not in the page cache any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// As the system reads ahead, which may be megabytes for one page.
    Ahead,
    /// Each by itself. Where a cgroup is full, what is read ahead takes the
    /// place of pages in use, which are then read again with what is around them.
    Singly,
}

/// Most of a program or library that one page fault makes resident.
///
/// Around a fault Linux maps what the page cache has, 64 KiB as a rule, and
/// since 6.18 the whole folio, which may be 2 MiB large: how much of a program
/// is resident would depend on how its file came to the cache. No fault maps
/// beyond its mapping, so mappings are cut to pieces of this size.
const FAULT_BYTES: usize = 32 << 10;

/// Lets the pages of programs and libraries come in small pieces, from now on.
pub fn limit_faults() {
    for_each_segment(&mut |start, end| {
        // Neighbours of different advice are mappings of their own. This one
        // concerns core dumps, which leave files' pages out anyway.
        for piece in (start / FAULT_BYTES..end.div_ceil(FAULT_BYTES)).step_by(2) {
            let from = (piece * FAULT_BYTES).max(start);
            let until = ((piece + 1) * FAULT_BYTES).min(end);
            let (at, bytes) = (from as *mut libc::c_void, until - from);
            // SAFETY: the range is mapped; the advice changes no byte of it.
            unsafe { libc::madvise(at, bytes, libc::MADV_DONTDUMP) };
        }
    });
}

/// Calls `f` with start and end of the whole pages of every segment of the
/// program and its libraries that nothing ever writes to.
fn for_each_segment(mut f: &mut dyn FnMut(usize, usize)) {
    // SAFETY: the callback fits the declared type and uses its arguments only
    // while it runs.
    unsafe {
        libc::dl_iterate_phdr(Some(segments_of), (&raw mut f).cast());
    }
}

unsafe extern "C" fn segments_of(
    object: *mut libc::dl_phdr_info,
    _bytes: libc::size_t,
    f: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: `for_each_segment` passes a function that outlives the call and
    // that nothing else uses meanwhile.
    let f = unsafe { &mut *f.cast::<&mut dyn FnMut(usize, usize)>() };
    let page = rustix::param::page_size();
    // SAFETY: the loader passes a valid object with its program headers.
    let (base, headers) = unsafe {
        let object = &*object;
        (
            object.dlpi_addr as usize,
            std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()),
        )
    };
    // Relocations write only to writable segments, read-only ones included
    // that were writable before; text relocations would be an exception.
    let readable = |h: &&libc::Elf64_Phdr| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(readable) {
        let start = (base + header.p_vaddr as usize).next_multiple_of(page);
        let end = (base + (header.p_vaddr + header.p_filesz) as usize) / page * page;
        if start < end {
            f(start, end);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeroed_and_frozen_ones_keep_their_bytes() {
        let mut region = Region::zeroed(10_000).unwrap();
        assert!(region.bytes_mut().iter().all(|&b| b == 0));
        region.bytes_mut()[9_999] = 7;
        let frozen = region.freeze().unwrap();
        assert_eq!((frozen.len(), frozen[9_999]), (10_000, 7));
    }

    #[test]
    fn populated_bytes_are_what_they_were() {
        let mut region = Region::reserved(3 << 20).unwrap();
        region.bytes_mut()[2 << 20] = 7;
        region.populate(5000..3 << 20).unwrap();
        let mut bytes = region.bytes_mut().to_vec();
        assert_eq!(std::mem::take(&mut bytes[2 << 20]), 7);
        assert!(bytes.iter().all(|&b| b == 0));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn code_runs() {
        // mov eax, 42; ret
        let mut region = Region::zeroed(6).unwrap();
        region
            .bytes_mut()
            .copy_from_slice(&[0xb8, 42, 0, 0, 0, 0xc3]);
        let code = Code::new(region).unwrap();
        // SAFETY: the bytes are a complete function of this signature.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(code.address(0)) };
        assert_eq!(f(), 42);
    }
}
