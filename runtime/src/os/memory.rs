//! Mappings: the arena, weights and code.
// Mappings are raw memory; each block says why its range is alive and whose it is.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::{Mmap, MmapMut, MmapOptions};

/// Zeroed private memory, resident from the start, at a fixed address.
///
/// The bytes are reached through [`Region::base`] by whoever proved that
/// accesses do not conflict; the region itself hands out no references.
#[derive(Debug)]
pub struct Region {
    base: *mut u8,
    len: usize,
    _map: MmapMut,
}

// SAFETY: the region is plain memory without thread affinity; `base` only
// copies an address, so sharing a `&Region` reads no memory.
unsafe impl Send for Region {}
// SAFETY: see above.
unsafe impl Sync for Region {}

impl Region {
    /// Maps and prefaults `len` bytes.
    ///
    /// Errors: the system refuses the memory.
    pub fn zeroed(len: usize) -> io::Result<Region> {
        let mut map = MmapOptions::new().len(len.max(1)).populate().map_anon()?;
        Ok(Region {
            base: map.as_mut_ptr(),
            len,
            _map: map,
        })
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
            map: self._map.make_read_only()?,
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

/// A file mapped read-only, resident from the start.
#[derive(Debug)]
pub struct FileMapping {
    map: Mmap,
}

impl FileMapping {
    /// Maps `bytes` bytes of `file` from `offset` on.
    ///
    /// A file that another process shortens while it is mapped raises SIGBUS
    /// on access, which [`super::signal::install`] turns into an exit with a
    /// message; one that it overwrites changes under the mapping. Packed
    /// models are written under a temporary name and never changed.
    pub fn new(file: &File, offset: u64, bytes: usize) -> io::Result<FileMapping> {
        // SAFETY: the mapping is private and read-only; the caveat about other
        // processes changing the file is the documented one above.
        let map = unsafe {
            MmapOptions::new()
                .offset(offset)
                .len(bytes)
                .populate()
                .map(file)?
        };
        Ok(FileMapping { map })
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
    /// Copies `bytes` into fresh pages and makes those executable.
    ///
    /// Errors: the system refuses the memory or its execution.
    pub fn new(bytes: &[u8]) -> io::Result<Code> {
        let mut map = MmapOptions::new().len(bytes.len().max(1)).map_anon()?;
        map[..bytes.len()].copy_from_slice(bytes);
        let map = map.make_exec()?;
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

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn code_runs() {
        // mov eax, 42; ret
        let code = Code::new(&[0xb8, 42, 0, 0, 0, 0xc3]).unwrap();
        // SAFETY: the bytes are a complete function of this signature.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(code.address(0)) };
        assert_eq!(f(), 42);
    }
}
