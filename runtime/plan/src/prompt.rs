//! Compiled prompts: fixed tokens around the place of the input.

use crate::wire::{Decode, Encode};

/// Whitespace that the template strips from the input, as `str.strip` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Trim {
    None,
    Start,
    End,
    Both,
}

/// A chat template evaluated at build time.
///
/// The prompt of an input is `prefix_tokens`, the tokens of
/// `prefix_text + trim(input) + suffix_text` tokenized as one text, and
/// `suffix_tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PromptTemplate {
    pub prefix_tokens: Vec<u32>,
    pub prefix_text: String,
    pub trim: Trim,
    pub suffix_text: String,
    pub suffix_tokens: Vec<u32>,
}
