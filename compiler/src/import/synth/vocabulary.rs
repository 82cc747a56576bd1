//! A made-up byte-level BPE vocabulary of any size from 259 tokens.

use crate::import::gguf::write::HeaderWriter;

const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The smallest vocabulary: the special tokens and one token per byte.
pub const VOCABULARY_LEN_MIN: u32 = SPECIAL.len() as u32 + 256;

/// Token types of GGUF.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Writes the `tokenizer.ggml` keys: special tokens, the 256 bytes, then merges
/// of two bytes, then of those and a byte, in a fixed order.
pub(super) fn write(w: &mut HeaderWriter, len: u32) {
    let bytes: Vec<String> = (0..=255u8).map(|b| byte_symbol(b).to_string()).collect();
    let mut tokens: Vec<String> = SPECIAL.iter().map(|s| (*s).to_owned()).collect();
    tokens.extend(bytes.iter().cloned());
    let mut merges = Vec::new();
    let mut left = SPECIAL.len();
    while tokens.len() < len as usize {
        let prefix = tokens[left].clone();
        let missing = len as usize - tokens.len();
        for byte in bytes.iter().take(missing) {
            tokens.push(format!("{prefix}{byte}"));
            merges.push(format!("{prefix} {byte}"));
        }
        left += 1;
    }
    let types = (0..tokens.len()).map(|i| if i < SPECIAL.len() { CONTROL } else { NORMAL });
    w.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-2")
        .array_str("tokenizer.ggml.tokens", tokens.iter())
        .array_i32("tokenizer.ggml.token_type", types)
        .array_str("tokenizer.ggml.merges", merges.iter())
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .bool("tokenizer.ggml.add_bos_token", false);
}

/// The printable character that stands for a byte in GPT-2's vocabularies.
fn byte_symbol(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + before).expect("at most 256 + 68")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::gguf::Gguf;
    use std::collections::BTreeSet;

    #[test]
    fn tokens_are_unique_and_merges_make_tokens() {
        for len in [VOCABULARY_LEN_MIN, 1000, 66_000, 70_000] {
            let mut w = HeaderWriter::default();
            write(&mut w, len);
            let bytes = w.to_bytes();
            let gguf = Gguf::parse(&bytes).unwrap();
            let tokens = gguf
                .get_array_str("tokenizer.ggml.tokens")
                .unwrap()
                .unwrap();
            let set: BTreeSet<&str> = tokens.iter().collect();
            assert_eq!((tokens.len(), set.len()), (len.into(), len as usize));
            let merges = gguf
                .get_array_str("tokenizer.ggml.merges")
                .unwrap()
                .unwrap();
            assert_eq!(merges.len(), u64::from(len - VOCABULARY_LEN_MIN));
            for merge in merges {
                let (left, right) = merge.split_once(' ').unwrap();
                assert!(set.contains(left) && set.contains(right), "{merge}");
                assert!(set.contains(format!("{left}{right}").as_str()), "{merge}");
            }
        }
    }

    #[test]
    fn byte_symbols_are_those_of_gpt2() {
        for (byte, symbol) in [
            (b'a', 'a'),
            (b' ', 'Ġ'),
            (b'\n', 'Ċ'),
            (0x7F, 'ġ'),
            (0xAD, 'Ń'),
        ] {
            assert_eq!(byte_symbol(byte), symbol);
        }
    }
}
