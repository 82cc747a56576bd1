//! The tokens of a generation, in memory of a fixed size.

use std::ops::Deref;

/// Prompt and generated tokens. Tokens beyond the memory's size are counted
/// and not kept, so that a prompt that is too long says how long it is.
#[derive(Debug)]
pub(super) struct History<'a> {
    memory: &'a mut [u32],
    count: usize,
}

impl<'a> History<'a> {
    pub(super) fn new(memory: &'a mut [u32]) -> History<'a> {
        History { memory, count: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// Tokens that were appended, kept or not.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn push(&mut self, token: u32) {
        if let Some(place) = self.memory.get_mut(self.count) {
            *place = token;
        }
        self.count += 1;
    }
}

impl Deref for History<'_> {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.memory[..self.count.min(self.memory.len())]
    }
}

impl Extend<u32> for History<'_> {
    fn extend<T: IntoIterator<Item = u32>>(&mut self, tokens: T) {
        tokens.into_iter().for_each(|token| self.push(token));
    }
}
