//! Compressed copies of a packed model's pages, in a file beside it.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | magic `OMEXZSTD` |
//! | 8..12 | version, u32 LE |
//! | 12..16 | number of pages, u32 LE |
//! | 16..24 | length of the file in bytes, u64 LE |
//! | 24..32 | zero |
//! | 32..64 | the digest that names the packed model |
//! | 64.. | for each page, offset and bytes of its frame, two u64 LE; zeros where there is none; padded with zeros to 4 KiB |
//! | .. | zstd frames, each starting at a multiple of 4 KiB, padded with zeros |
//!
//! The packed model's index holds the digests of the pages themselves, so a
//! frame that is damaged does not become a page that is wrong.

use crate::packed::Digest;
use crate::paging::DIRECT_ALIGN;
use crate::wire::{Decode, Encode};

pub const FRAMES_MAGIC: [u8; 8] = *b"OMEXZSTD";
pub const FRAMES_VERSION: u32 = 1;
pub const FRAMES_HEADER_BYTES: u64 = 64;
/// Alignment of frames in the file.
pub const FRAME_ALIGN: u64 = DIRECT_ALIGN;

/// A page's compressed copy; without bytes where it is not worth one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Frame {
    pub file_offset: u64,
    pub bytes: u64,
}

impl Frame {
    pub fn exists(self) -> bool {
        self.bytes > 0
    }
}

/// Where the first frame of a file may start.
pub fn frames_start(pages: usize) -> u64 {
    (FRAMES_HEADER_BYTES + 16 * pages as u64).next_multiple_of(FRAME_ALIGN)
}

/// Header of a file of frames.
pub fn frames_header(packed: &Digest, pages: u32, file_bytes: u64) -> [u8; 64] {
    let mut header = [0; FRAMES_HEADER_BYTES as usize];
    header[..8].copy_from_slice(&FRAMES_MAGIC);
    header[8..12].copy_from_slice(&FRAMES_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&pages.to_le_bytes());
    header[16..24].copy_from_slice(&file_bytes.to_le_bytes());
    header[32..].copy_from_slice(packed);
    header
}
