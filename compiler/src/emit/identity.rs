//! The result id: a hash of every choice that affects the bits of a result.
//!
//! Inputs are no part of it, nor is what only changes how the result is
//! computed: target, budget, chunk, threads, weight source.

use omex_kernels::NUMERICS_VERSION;
use omex_kernels::spec::{ATTENTION_SPLIT, KvFormat};
use omex_plan::packed::Digest;
use omex_plan::prompt::{PromptTemplate, Trim};
use omex_plan::task::{NodeKind, Program, Sampling};

/// What a result depends on.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub packed_digest: Digest,
    /// The tokenizer section.
    pub tokenizer: &'a [u8],
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Positions that the KV cache holds: a generation ends there.
    pub context: u32,
    pub end_tokens: &'a [u32],
    pub program: &'a Program,
}

pub fn result_id(identity: &Identity<'_>) -> Digest {
    let mut fields = Fields(blake3::Hasher::new_derive_key("omex result id 1"));
    fields.u32(NUMERICS_VERSION);
    fields.bytes(&identity.packed_digest);
    fields.bytes(blake3::hash(identity.tokenizer).as_bytes());
    fields.bytes(match identity.kv {
        KvFormat::F16 => b"kv f16",
        KvFormat::Q8 => b"kv q8",
    });
    fields.u32(ATTENTION_SPLIT);
    fields.u32(identity.context);
    fields.tokens(identity.end_tokens);
    fields.u32(identity.program.nodes.len() as u32);
    for node in &identity.program.nodes {
        fields.u32(node.depends_on.len() as u32);
        for id in &node.depends_on {
            fields.u32(id.0);
        }
        match &node.kind {
            NodeKind::Parse { inputs, window } => {
                fields.u32(0);
                fields.u32(inputs.len() as u32);
                for input in inputs {
                    fields.u32(input.0);
                }
                fields.u32(window.size);
                fields.u32(window.stride);
            }
            NodeKind::Infer {
                prompt,
                tokens_max,
                sampling,
                stop,
            } => {
                fields.u32(1);
                fields.prompt(prompt);
                fields.u32(*tokens_max);
                fields.sampling(sampling);
                fields.u32(stop.len() as u32);
                stop.iter().for_each(|s| fields.bytes(s.as_bytes()));
            }
            NodeKind::Merge { outputs: _ } => fields.u32(2),
        }
    }
    *fields.0.finalize().as_bytes()
}

/// Hashes fields so that no two sequences of them look alike: lengths precede
/// everything that has one.
struct Fields(blake3::Hasher);

impl Fields {
    fn u32(&mut self, value: u32) {
        self.0.update(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn tokens(&mut self, tokens: &[u32]) {
        self.u32(tokens.len() as u32);
        tokens.iter().for_each(|&t| self.u32(t));
    }

    fn prompt(&mut self, prompt: &PromptTemplate) {
        self.tokens(&prompt.prefix_tokens);
        self.bytes(prompt.prefix_text.as_bytes());
        self.u32(match prompt.trim {
            Trim::None => 0,
            Trim::Left => 1,
            Trim::Right => 2,
            Trim::Both => 3,
        });
        self.bytes(prompt.suffix_text.as_bytes());
        self.tokens(&prompt.suffix_tokens);
        match &prompt.empty_tokens {
            None => self.u32(0),
            Some(tokens) => {
                self.u32(1);
                self.tokens(tokens);
            }
        }
    }

    fn sampling(&mut self, s: &Sampling) {
        for value in [s.temperature, s.top_p, s.min_p, s.repeat_penalty] {
            self.u32(value.to_bits());
        }
        self.u32(s.top_k);
        self.u32(s.repeat_last);
        self.0.update(&s.seed.to_le_bytes());
    }
}
