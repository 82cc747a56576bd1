//! The arena's buffers that are the runtime's own: text and tokens for a whole
//! run, and working memory between passes.
//!
//! Slices of them are sound because a
//! [`CheckedPlan`](omex_plan::CheckedPlan) proved that no step touches these
//! buffers, and that what is live at the same time does not overlap.
#![allow(unsafe_code)]

use std::sync::Arc;

use super::machine::Machine;
use super::step::Bytes;
use crate::os::memory::Region;

/// The buffers of a whole run, which nothing else touches.
#[derive(Debug)]
pub struct SessionMemory {
    text: Bytes,
    history: Bytes,
    /// Keeps the memory alive.
    _arena: Arc<Region>,
}

// SAFETY: addresses of memory that is reached through this value alone, which
// it keeps alive.
unsafe impl Send for SessionMemory {}
// SAFETY: a shared reference reaches none of the memory.
unsafe impl Sync for SessionMemory {}

impl SessionMemory {
    /// The text's bytes, and the tokens.
    pub(crate) fn split(&mut self) -> (&mut [u8], &mut [u32]) {
        let (text, history) = (self.text, self.history);
        // SAFETY: the buffers are live in every moment, so they overlap no
        // other buffer nor each other, and no step has them as an argument; one
        // value has them, which `&mut self` borrows.
        unsafe {
            (
                text.slice_mut(0, text.len()),
                history.slice_mut(0, history.len() / 4),
            )
        }
    }
}

impl Machine {
    /// The buffers of a whole run, once: who has them uses them alone.
    ///
    /// Panics the second time.
    pub(crate) fn take_session_memory(&mut self) -> SessionMemory {
        assert!(!self.session_taken, "the session's memory is taken");
        self.session_taken = true;
        let buffers = self.plan().session;
        SessionMemory {
            text: self.buffer(buffers.text),
            history: self.buffer(buffers.history),
            _arena: Arc::clone(&self.arena),
        }
    }

    /// Working memory of the tokenizer.
    pub(super) fn tokenizer_memory(&mut self) -> &mut [u32] {
        let buffer = self.buffer(self.plan().session.tokenizer);
        // SAFETY: `&mut self` excludes passes and other slices while it lives;
        // what pagers fill and the session's own memory are live beside it.
        unsafe { buffer.slice_mut(0, buffer.len() / 4) }
    }

    /// The logits of a column and working memory of the sampler.
    pub(super) fn sampling_memory(&mut self, column: u32) -> (&mut [f32], &mut [u32]) {
        let buffer = self.buffer(self.plan().session.sampler);
        // SAFETY: as above; logits are live beside it.
        let memory = unsafe { buffer.slice_mut(0, buffer.len() / 4) };
        (self.logits_mut(column), memory)
    }
}
