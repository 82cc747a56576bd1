//! The shapes of made-up models.

/// The shape of a made-up model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pub family: Family,
    pub layers: u32,
    pub embedding_len: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_len: u32,
    pub feed_forward_len: u32,
    /// At least [`VOCABULARY_LEN_MIN`](super::VOCABULARY_LEN_MIN), unless the vocabulary
    /// is another file's.
    pub vocabulary_len: u32,
    pub context_len: u32,
    pub rope_base: f32,
    pub rms_epsilon: f32,
    /// The token embedding is the output head too.
    pub tied: bool,
    /// Biases on Q, K and V, and for llama on the attention's output.
    pub biases: bool,
}

/// `general.architecture` of a made-up model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen2,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::Llama, Family::Qwen2];

    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
        }
    }
}

/// Published models that a shape can be named after.
pub const PRESETS: [&str; 14] = [
    "smollm2-135m",
    "smollm2-360m",
    "smollm2-1.7b",
    "tinyllama-1.1b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.1-8b",
    "llama-2-7b",
    "llama-2-13b",
    "mistral-7b",
    "qwen2-0.5b",
    "qwen2-1.5b",
    "qwen2-7b",
    "tiny",
];

impl Shape {
    /// The shape of a published model, from its `config.json`; `tiny` is a small one of
    /// its own. `None` for names that are not in [`PRESETS`].
    pub fn preset(name: &str) -> Option<Shape> {
        // Layers, width, heads, key-value heads, head length, feed-forward width, tokens.
        let (sizes, context_len, rope_base, tied) = match name {
            "smollm2-135m" => ([30, 576, 9, 3, 64, 1536, 49152], 8192, 1e5, true),
            "smollm2-360m" => ([32, 960, 15, 5, 64, 2560, 49152], 8192, 1e5, true),
            "smollm2-1.7b" => ([24, 2048, 32, 32, 64, 8192, 49152], 8192, 1.3e5, true),
            "tinyllama-1.1b" => ([22, 2048, 32, 4, 64, 5632, 32000], 2048, 1e4, false),
            "llama-3.2-1b" => ([16, 2048, 32, 8, 64, 8192, 128256], 131072, 5e5, true),
            "llama-3.2-3b" => ([28, 3072, 24, 8, 128, 8192, 128256], 131072, 5e5, true),
            "llama-3.1-8b" => ([32, 4096, 32, 8, 128, 14336, 128256], 131072, 5e5, false),
            "llama-2-7b" => ([32, 4096, 32, 32, 128, 11008, 32000], 4096, 1e4, false),
            "llama-2-13b" => ([40, 5120, 40, 40, 128, 13824, 32000], 4096, 1e4, false),
            "mistral-7b" => ([32, 4096, 32, 8, 128, 14336, 32768], 32768, 1e6, false),
            "qwen2-0.5b" => ([24, 896, 14, 2, 64, 4864, 151936], 32768, 1e6, true),
            "qwen2-1.5b" => ([28, 1536, 12, 2, 128, 8960, 151936], 32768, 1e6, true),
            "qwen2-7b" => ([28, 3584, 28, 4, 128, 18944, 152064], 32768, 1e6, false),
            "tiny" => ([4, 256, 4, 2, 64, 1024, 4096], 2048, 1e4, true),
            _ => return None,
        };
        let qwen2 = name.starts_with("qwen2");
        let [
            layers,
            embedding_len,
            heads,
            kv_heads,
            head_len,
            feed_forward_len,
            vocabulary_len,
        ] = sizes;
        Some(Shape {
            family: if qwen2 { Family::Qwen2 } else { Family::Llama },
            layers,
            embedding_len,
            heads,
            kv_heads,
            head_len,
            feed_forward_len,
            vocabulary_len,
            context_len,
            rope_base,
            rms_epsilon: if qwen2 { 1e-6 } else { 1e-5 },
            tied,
            biases: qwen2,
        })
    }

    /// # Errors
    /// A sentence that names the extent that no model can have.
    pub fn check(&self) -> Result<(), String> {
        const EXTENT_MAX: u32 = 1 << 20;
        for (name, extent) in [
            ("layers", self.layers),
            ("embedding", self.embedding_len),
            ("heads", self.heads),
            ("kv-heads", self.kv_heads),
            ("head", self.head_len),
            ("feed-forward", self.feed_forward_len),
            ("vocabulary", self.vocabulary_len),
        ] {
            if !(1..=EXTENT_MAX).contains(&extent) {
                return Err(format!("{name} is {extent}, not from 1 to {EXTENT_MAX}"));
            }
        }
        if self.context_len == 0 {
            return Err("the context has no positions".to_owned());
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} heads are no multiple of {} key-value heads",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_len.is_multiple_of(2) {
            return Err(format!("heads of {} elements are odd", self.head_len));
        }
        if u64::from(self.heads) * u64::from(self.head_len) > u64::from(EXTENT_MAX) {
            return Err(format!("all heads together are wider than {EXTENT_MAX}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_shape() {
        for name in PRESETS {
            Shape::preset(name).unwrap().check().unwrap();
        }
        assert_eq!(Shape::preset("gpt-5"), None);
    }
}
