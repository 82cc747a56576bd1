//! What a run needs of the arena besides its passes: the text, its tokens, and
//! the working memory of the tokenizer and the sampler.
//!
//! Text becomes tokens before a generation begins, so the tokenizer works where
//! activations lie later, and keys and values, unless those of other sequences
//! do; the sampler works where activations lay. Sizes are what the runtime's own types divide such memory into.

use crate::ids::BufferId;
use crate::plan::Plan;
use crate::task::{NodeKind, Program, Window};
use crate::wire::{Decode, Encode};

/// The buffers that no step touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SessionBuffers {
    /// Text that is cut into windows, for the whole run.
    pub text: BufferId,
    /// Prompt and generated tokens of each sequence, for the whole run.
    pub history: BufferId,
    /// Working memory of the tokenizer.
    pub tokenizer: BufferId,
    /// Working memory of the sampler.
    pub sampler: BufferId,
}

/// The sizes of [`SessionBuffers`] in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionBytes {
    pub text: u64,
    pub history: u64,
    pub tokenizer: u64,
    pub sampler: u64,
}

impl SessionBytes {
    /// What a plan needs.
    pub fn of(plan: &Plan) -> SessionBytes {
        let (context, vocabulary) = (plan.model.context, plan.model.vocabulary);
        SessionBytes::new(&plan.program, context, vocabulary, plan.sequences_max)
    }

    pub fn new(
        program: &Program,
        context: u32,
        vocabulary: u32,
        sequences_max: u32,
    ) -> SessionBytes {
        let text = text_bytes_max(program, context);
        SessionBytes {
            text,
            history: u64::from(context) * u64::from(sequences_max) * 4,
            tokenizer: tokenizer_bytes(text + prompt_bytes_max(program)),
            sampler: sampler_bytes(vocabulary),
        }
    }
}

/// Bytes of text per token that the buffer has room for: several times what
/// text needs. A window of fewer tokens only means more windows; a text that
/// must be taken whole gets more room.
const BYTES_PER_TOKEN: u64 = 8;
const BYTES_PER_TOKEN_WHOLE: u64 = 16;
/// Room for texts of few tokens.
const BYTES_MIN: u64 = 1024;

/// A window size that means the whole text.
pub const WHOLE: u32 = u32::MAX;

/// Bytes of the buffer that windows of a context are cut in.
pub const fn text_bytes(window: Window, context: u32) -> u64 {
    let (tokens, bytes) = if window.size == WHOLE {
        (context, BYTES_PER_TOKEN_WHOLE)
    } else if window.size < context {
        (window.size, BYTES_PER_TOKEN)
    } else {
        (context, BYTES_PER_TOKEN)
    };
    tokens as u64 * bytes + BYTES_MIN
}

/// The largest text that a node reads at once: a window of a parse node, or
/// another inference's whole text.
fn text_bytes_max(program: &Program, context: u32) -> u64 {
    let whole = Window {
        size: WHOLE,
        stride: WHOLE,
    };
    let texts = program.nodes.iter().map(|node| match &node.kind {
        NodeKind::Parse { window, .. } => text_bytes(*window, context),
        NodeKind::Infer { .. } => {
            let is_text = |id: &crate::NodeId| {
                let source = program.nodes.get(id.index());
                source.is_some_and(|n| !matches!(n.kind, NodeKind::Parse { .. }))
            };
            match node.depends_on.iter().any(is_text) {
                true => text_bytes(whole, context),
                false => 0,
            }
        }
        NodeKind::Merge { .. } => 0,
    });
    texts.max().unwrap_or(0).max(BYTES_MIN)
}

/// Text that a prompt puts around another, at most.
fn prompt_bytes_max(program: &Program) -> u64 {
    let prompts = program.nodes.iter().map(|node| match &node.kind {
        NodeKind::Infer { prompt, .. } => prompt.prefix_text.len() + prompt.suffix_text.len(),
        NodeKind::Parse { .. } | NodeKind::Merge { .. } => 0,
    });
    prompts.max().unwrap_or(0) as u64
}

/// Words (u32) of a symbol of a piece that is being merged.
pub const SYMBOL_WORDS: usize = 4;
/// Words of a pair of symbols that may become one.
pub const CANDIDATE_WORDS: usize = 2;

/// Words that merging a piece of so many symbols takes: the symbols, two
/// candidates for each, and the bytes that they spell.
pub const fn merge_words(symbols: usize) -> usize {
    symbols * (SYMBOL_WORDS + 2 * CANDIDATE_WORDS) + symbols.div_ceil(4)
}

/// Working memory for text of so many bytes, the prompt around it included: a
/// copy in one piece, and what merging takes when nothing splits it. A space
/// may be put before it.
pub const fn tokenizer_bytes(text_bytes: u64) -> u64 {
    let words = text_bytes.div_ceil(4) + merge_words(text_bytes as usize + 1) as u64;
    words * 4
}

/// Words of the sampler's candidates, one for each token of the vocabulary, and
/// of a bit for each.
pub const fn sampler_words(vocabulary: u32) -> (usize, usize) {
    (vocabulary as usize, vocabulary.div_ceil(32) as usize)
}

const fn sampler_bytes(vocabulary: u32) -> u64 {
    let (candidates, bits) = sampler_words(vocabulary);
    (candidates + bits) as u64 * 4
}
