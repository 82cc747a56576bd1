//! Vocabularies of the tests' own making.

use std::collections::BTreeSet;

use omex_compiler::tokenizer::{Model, Vocabulary, pre};
use omex_runtime::tokenizer::TokenKind;

use crate::corpus::Random;

/// GPT-2's character for a byte.
pub(crate) fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap()
}

fn empty(model: Model) -> Vocabulary {
    Vocabulary {
        model,
        tokens: Vec::new(),
        kinds: Vec::new(),
        bos: None,
        eos: None,
        eot: None,
        eom: None,
        unknown: None,
        padding: None,
        add_bos: false,
        add_eos: false,
        add_space_prefix: false,
        strip_right: false,
        strip_left: None,
        chat_template: None,
    }
}

fn push(vocabulary: &mut Vocabulary, text: &str, kind: TokenKind) {
    vocabulary.tokens.push(text.to_owned());
    vocabulary.kinds.push(kind);
}

/// All bytes, `merges` random merges of tokens over a small alphabet, then added tokens.
pub(crate) fn byte_level(
    rng: &mut Random,
    name: &str,
    merges: usize,
    added: &[(&str, TokenKind)],
) -> Vocabulary {
    let mut vocabulary = empty(Model::Scores(Vec::new()));
    for byte in 0..=255u8 {
        push(
            &mut vocabulary,
            &letter(byte).to_string(),
            TokenKind::Normal,
        );
    }
    let mut parts: Vec<String> = b"abc 1'.\n\xe6\xbc\xa2\xc3\xa9"
        .iter()
        .map(|&b| letter(b).to_string())
        .collect();
    let mut known: BTreeSet<String> = parts.iter().cloned().collect();
    let mut pairs = BTreeSet::new();
    let mut list = Vec::new();
    while list.len() < merges {
        let (left, right) = (rng.pick(&parts).clone(), rng.pick(&parts).clone());
        let merged = format!("{left}{right}");
        if merged.chars().count() > 12 || !pairs.insert(format!("{left} {right}")) {
            continue;
        }
        list.push(format!("{left} {right}"));
        if known.insert(merged.clone()) {
            push(&mut vocabulary, &merged, TokenKind::Normal);
            parts.push(merged);
        }
    }
    for (text, kind) in added {
        push(&mut vocabulary, text, *kind);
    }
    vocabulary.model = Model::ByteLevel {
        splitting: pre::splitting(name).unwrap(),
        merges: list,
    };
    vocabulary
}

/// Unknown, byte tokens, some characters and random strings of them with random scores.
pub(crate) fn scored(rng: &mut Random, pieces: usize, added: &[(&str, TokenKind)]) -> Vocabulary {
    let mut vocabulary = empty(Model::Scores(Vec::new()));
    let mut scores = vec![0.0];
    push(&mut vocabulary, "<unk>", TokenKind::Unknown);
    for byte in 0..=255u8 {
        push(&mut vocabulary, &format!("<0x{byte:02X}>"), TokenKind::Byte);
        scores.push(0.0);
    }
    let letters = ["a", "b", "c", "\u{2581}", "é", "漢", "."];
    let mut known = BTreeSet::new();
    for letter in &letters[..6] {
        known.insert((*letter).to_owned());
    }
    while known.len() < pieces {
        let length = 1 + rng.below(6);
        known.insert((0..length).map(|_| *rng.pick(&letters)).collect::<String>());
    }
    for piece in &known {
        push(&mut vocabulary, piece, TokenKind::Normal);
        // Few different scores, so that ties are common.
        scores.push(-(rng.below(pieces) as f32));
    }
    for (text, kind) in added {
        push(&mut vocabulary, text, *kind);
        scores.push(-1000.0);
    }
    vocabulary.unknown = Some(0);
    vocabulary.model = Model::Scores(scores);
    vocabulary
}

/// A scored vocabulary's tokens with `merges` random merges of characters that make some
/// of them, and those.
pub(crate) fn characters(
    rng: &mut Random,
    merges: usize,
    added: &[(&str, TokenKind)],
) -> Vocabulary {
    let mut vocabulary = scored(rng, 8, &[]);
    let mut parts: Vec<String> = ["a", "b", "c", "\u{2581}", "é", "漢"]
        .map(String::from)
        .into();
    let mut known: BTreeSet<String> = vocabulary.tokens.iter().cloned().collect();
    let mut list = Vec::new();
    while list.len() < merges {
        let (left, right) = (rng.pick(&parts).clone(), rng.pick(&parts).clone());
        let (merge, merged) = (format!("{left} {right}"), format!("{left}{right}"));
        if merged.chars().count() > 8 || list.contains(&merge) {
            continue;
        }
        list.push(merge);
        if known.insert(merged.clone()) {
            push(&mut vocabulary, &merged, TokenKind::Normal);
        }
        parts.push(merged);
    }
    for (text, kind) in added {
        push(&mut vocabulary, text, *kind);
    }
    vocabulary.model = Model::Characters { merges: list };
    vocabulary
}
