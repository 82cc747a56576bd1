//! Pages that are read compressed: their frames come to a stage of the I/O
//! thread, and are decompressed into the slot.

use omex_plan::frames::Frame;

use super::Source;
use super::memory::Window;
use crate::os::file::Stamp;

/// Heap of a decompression context with its allocator's headers; a test holds
/// it against what zstd says.
const CONTEXT_BYTES: u64 = 96 << 10;

/// Heap bytes for `depth` I/O threads and the frames of `pages` pages.
pub(super) fn frames_bytes(depth: u32, pages: usize) -> u64 {
    u64::from(depth) * CONTEXT_BYTES + (pages * size_of::<Frame>()) as u64
}

/// The file of compressed pages.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) source: Source,
    pub(super) stamp: Stamp,
    /// Per page.
    pub(super) of_pages: Vec<Frame>,
    stages: Window,
    stage_bytes: usize,
}

impl Frames {
    pub(super) fn new(
        stamp: Stamp,
        source: Source,
        of_pages: Vec<Frame>,
        stages: Window,
        stage_bytes: usize,
    ) -> Frames {
        Frames {
            source,
            stamp,
            of_pages,
            stages,
            stage_bytes,
        }
    }

    /// The stage of an I/O thread, for that thread.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn stage(&self, thread: u32) -> &mut [u8] {
        self.stages.part(thread as usize, self.stage_bytes)
    }
}

/// What an I/O thread decompresses with.
pub(super) struct Decompressor(#[cfg(feature = "zstd")] zstd::bulk::Decompressor<'static>);

impl Decompressor {
    /// `None` without memory for it, or in a runtime that cannot decompress.
    #[cfg(feature = "zstd")]
    pub(super) fn new() -> Option<Decompressor> {
        zstd::bulk::Decompressor::new().ok().map(Decompressor)
    }

    /// `None` without memory for it, or in a runtime that cannot decompress.
    #[cfg(not(feature = "zstd"))]
    pub(super) fn new() -> Option<Decompressor> {
        None
    }

    /// Whether `frame` gave exactly the bytes that `page` has room for.
    pub(super) fn fill(&mut self, page: &mut [u8], frame: &[u8]) -> bool {
        #[cfg(feature = "zstd")]
        let filled = self.0.decompress_to_buffer(frame, page).ok() == Some(page.len());
        #[cfg(not(feature = "zstd"))]
        let filled = {
            let _ = (page, frame);
            false
        };
        filled
    }
}

#[cfg(all(test, feature = "zstd"))]
mod tests {
    use super::*;

    #[test]
    fn a_context_takes_what_is_counted_for_it() {
        let context = zstd::zstd_safe::DCtx::create();
        let bytes = context.sizeof() as u64;
        assert!(
            (CONTEXT_BYTES - 8192..=CONTEXT_BYTES - 32).contains(&bytes),
            "{bytes}"
        );
    }
}
