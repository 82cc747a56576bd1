//! Merging against naive references on random vocabularies.

use std::collections::HashMap;

use omex_compiler::tokenizer::{Model, Vocabulary, compile};
use omex_runtime::tokenizer::{Scratch, SpecialText, TokenKind, Tokenizer};

use crate::corpus::{Random, random_character};
use crate::vocabularies::{byte_level, characters, letter, scored};

fn encode(tokenizer: &Tokenizer<'_>, text: &[u8], special: SpecialText) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer.encode(text, special, &mut Scratch::new(), &mut ids);
    ids
}

/// The first pair of lowest rank, again and again.
fn naive_bpe(vocabulary: &Vocabulary, piece: &[u8]) -> Vec<u32> {
    let Model::ByteLevel { merges, .. } = &vocabulary.model else {
        panic!("byte-level vocabularies have merges")
    };
    let parts = piece.iter().map(|&b| letter(b).to_string()).collect();
    ids_of(vocabulary, &naive_merges(merges, parts))
}

/// The same over characters; those without a token are bytes.
fn naive_characters(vocabulary: &Vocabulary, text: &str) -> Vec<u32> {
    let Model::Characters { merges } = &vocabulary.model else {
        panic!("vocabularies of characters have merges")
    };
    let parts = text
        .replace(' ', "\u{2581}")
        .chars()
        .map(String::from)
        .collect();
    let parts = naive_merges(merges, parts);
    ids_of(vocabulary, &spelled(vocabulary, parts))
}

/// Tokens, and the byte tokens of what is none.
fn spelled(vocabulary: &Vocabulary, parts: Vec<String>) -> Vec<String> {
    parts
        .into_iter()
        .flat_map(|part| {
            if vocabulary.tokens.contains(&part) {
                vec![part]
            } else {
                part.bytes().map(|b| format!("<0x{b:02X}>")).collect()
            }
        })
        .collect()
}

fn naive_merges(merges: &[String], mut parts: Vec<String>) -> Vec<String> {
    let ranks: HashMap<&str, usize> = merges
        .iter()
        .enumerate()
        .map(|(i, m)| (m.as_str(), i))
        .collect();
    while let Some((_, at)) = (1..parts.len())
        .filter_map(|i| {
            Some((
                *ranks.get(format!("{} {}", parts[i - 1], parts[i]).as_str())?,
                i,
            ))
        })
        .min()
    {
        let right = parts.remove(at);
        parts[at - 1].push_str(&right);
    }
    parts
}

/// The first pair whose text has the best score, again and again.
fn naive_scores(vocabulary: &Vocabulary, text: &str) -> Vec<u32> {
    let Model::Scores(scores) = &vocabulary.model else {
        panic!("scored vocabularies have scores")
    };
    let known: HashMap<&str, f32> = vocabulary
        .tokens
        .iter()
        .zip(scores)
        .zip(&vocabulary.kinds)
        .filter(|(_, kind)| **kind == TokenKind::Normal)
        .map(|((text, &score), _)| (text.as_str(), score))
        .collect();
    let mut parts: Vec<String> = text
        .replace(' ', "\u{2581}")
        .chars()
        .map(String::from)
        .collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for i in 1..parts.len() {
            if let Some(&score) = known.get(format!("{}{}", parts[i - 1], parts[i]).as_str())
                && best.is_none_or(|(other, _)| score > other)
            {
                best = Some((score, i));
            }
        }
        let Some((_, at)) = best else { break };
        let right = parts.remove(at);
        parts[at - 1].push_str(&right);
    }
    ids_of(vocabulary, &spelled(vocabulary, parts))
}

fn ids_of(vocabulary: &Vocabulary, parts: &[String]) -> Vec<u32> {
    parts
        .iter()
        .map(|part| vocabulary.tokens.iter().position(|t| t == part).unwrap() as u32)
        .collect()
}

#[test]
fn byte_level_merges_equal_the_naive_ones() {
    for seed in 0..30 {
        let mut rng = Random(seed);
        // One letter class only, so that the whole text is one piece.
        let vocabulary = byte_level(&mut rng, "gpt-2", 40 + 10 * seed as usize, &[]);
        let table = compile(&vocabulary).unwrap();
        let tokenizer = Tokenizer::from_bytes(&table).unwrap();
        for length in (1..80).chain([200, 333]) {
            let text: String = (0..length)
                .map(|_| *rng.pick(&["a", "b", "c", "漢", "é"]))
                .collect();
            assert_eq!(
                encode(&tokenizer, text.as_bytes(), SpecialText::Literal),
                naive_bpe(&vocabulary, text.as_bytes()),
                "seed {seed}, text {text:?}"
            );
        }
    }
}

#[test]
fn scored_merges_equal_the_naive_ones() {
    for seed in 0..30 {
        let mut rng = Random(seed);
        let mut vocabulary = scored(&mut rng, 30 + 8 * seed as usize, &[]);
        vocabulary.add_space_prefix = seed % 2 == 0;
        let table = compile(&vocabulary).unwrap();
        let tokenizer = Tokenizer::from_bytes(&table).unwrap();
        for length in (1..80).chain([200, 333]) {
            let text: String = (0..length)
                .map(|_| *rng.pick(&["a", "b", "c", " ", "é", "漢", ".", "x", "\u{2581}"]))
                .collect();
            let prefixed = if vocabulary.add_space_prefix {
                format!(" {text}")
            } else {
                text.clone()
            };
            let mut ids = Vec::new();
            let mut rest = 0;
            tokenizer.encode_spans(
                text.as_bytes(),
                SpecialText::Literal,
                &mut Scratch::new(),
                &mut |id, span| {
                    assert_eq!(span.start, rest, "spans cover the text");
                    rest = span.end;
                    ids.push(id);
                },
            );
            assert_eq!(rest, text.len());
            assert_eq!(
                ids,
                naive_scores(&vocabulary, &prefixed),
                "seed {seed}, text {text:?}"
            );
            let plain = text.replace('\u{2581}', " ");
            assert_eq!(tokenizer.decode_all(&ids), plain.as_bytes(), "seed {seed}");
        }
    }
}

/// SentencePiece gives one unknown token for a run of characters that it has none for.
#[test]
fn unknown_characters_in_a_row_are_one_token() {
    let mut vocabulary = scored(&mut Random(1), 6, &[]);
    for kind in &mut vocabulary.kinds {
        if *kind == TokenKind::Byte {
            *kind = TokenKind::Unused;
        }
    }
    let table = compile(&vocabulary).unwrap();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let id = |text: &str| vocabulary.tokens.iter().position(|t| t == text).unwrap() as u32;
    let [a, tree] = ["a", "漢"].map(id);
    for (text, ids) in [
        ("xyzw", &[0][..]),
        ("axyza", &[a, 0, a]),
        ("x漢yz漢漢q", &[0, tree, 0, tree, tree, 0]),
    ] {
        assert_eq!(
            encode(&tokenizer, text.as_bytes(), SpecialText::Literal),
            ids,
            "{text}"
        );
    }
}

#[test]
fn merges_of_characters_equal_the_naive_ones() {
    for seed in 0..30 {
        let mut rng = Random(seed);
        let vocabulary = characters(&mut rng, 10 + 8 * seed as usize, &[]);
        let table = compile(&vocabulary).unwrap();
        let tokenizer = Tokenizer::from_bytes(&table).unwrap();
        for length in (1..80).chain([200, 333]) {
            let text: String = (0..length)
                .map(|_| *rng.pick(&["a", "b", "c", " ", "é", "漢", "x", "\n", "\u{2581}"]))
                .collect();
            let ids = encode(&tokenizer, text.as_bytes(), SpecialText::Literal);
            assert_eq!(
                ids,
                naive_characters(&vocabulary, &text),
                "seed {seed}, text {text:?}"
            );
            let plain = text.replace('\u{2581}', " ");
            assert_eq!(tokenizer.decode_all(&ids), plain.as_bytes(), "seed {seed}");
        }
    }
}

#[test]
fn any_bytes_survive() {
    let added = [
        ("<|a|>", TokenKind::Control),
        ("  ", TokenKind::UserDefined),
    ];
    for seed in 0..200 {
        let mut rng = Random(seed);
        for vocabulary in [
            byte_level(&mut rng, "llama-bpe", 100, &added),
            scored(&mut rng, 100, &added),
            characters(&mut rng, 100, &added),
        ] {
            let table = compile(&vocabulary).unwrap();
            let tokenizer = Tokenizer::from_bytes(&table).unwrap();
            let mut text = Vec::new();
            for _ in 0..rng.below(400) {
                match rng.below(4) {
                    0 => text.push(rng.below(256) as u8),
                    1 => text.extend(rng.pick(&["<|a|>", "  ", " a", "<|", "bc"]).bytes()),
                    _ => text.extend(random_character(&mut rng).to_string().bytes()),
                }
            }
            // Vocabularies of characters spell this one as a space.
            let text = String::from_utf8_lossy(&text)
                .contains('\u{2581}')
                .then(Vec::new)
                .unwrap_or(text);
            for special in [SpecialText::Literal, SpecialText::Parse] {
                let mut rest = 0;
                let mut ids = Vec::new();
                let lost =
                    tokenizer.encode_spans(&text, special, &mut Scratch::new(), &mut |id, span| {
                        assert_eq!(span.start, rest, "seed {seed}");
                        rest = span.end;
                        ids.push(id);
                    });
                assert_eq!((lost, rest), (0, text.len()), "seed {seed}");
                assert_eq!(tokenizer.decode_all(&ids), text, "seed {seed}");
            }
        }
    }
}

#[test]
fn ten_megabytes_without_a_border() {
    let mut rng = Random(1);
    let vocabulary = byte_level(&mut rng, "gpt-2", 200, &[]);
    let spm = scored(&mut rng, 100, &[]);
    let merged = characters(&mut rng, 100, &[]);
    for (vocabulary, unit) in [
        (&vocabulary, "ab"),
        (&vocabulary, " "),
        (&spm, "ab"),
        (&spm, "漢字 "),
        (&merged, "ab "),
    ] {
        let table = compile(vocabulary).unwrap();
        let tokenizer = Tokenizer::from_bytes(&table).unwrap();
        let text = unit.repeat(10_000_000 / unit.len());
        let ids = encode(&tokenizer, text.as_bytes(), SpecialText::Literal);
        assert!(tokenizer.decode_all(&ids) == text.as_bytes());
    }
}

#[test]
fn special_text_is_literal_unless_parsed() {
    let mut rng = Random(3);
    let added = [
        ("<|x|>", TokenKind::Control),
        ("<|x|>y", TokenKind::Control),
        ("<b>", TokenKind::UserDefined),
        ("aa", TokenKind::UserDefined),
    ];
    let mut vocabulary = byte_level(&mut rng, "gpt-2", 0, &added);
    let check = |vocabulary: &Vocabulary, text: &str, special, expected: &[&str]| {
        let table = compile(vocabulary).unwrap();
        let tokenizer = Tokenizer::from_bytes(&table).unwrap();
        let ids = encode(&tokenizer, text.as_bytes(), special);
        let texts: Vec<String> = ids
            .iter()
            .map(|&id| String::from_utf8(tokenizer.decode(id).unwrap().to_vec()).unwrap())
            .collect();
        assert_eq!(texts, expected, "{text:?} {special:?}");
    };
    use SpecialText::{Literal, Parse};
    check(&vocabulary, "a<|x|>b", Parse, &["a", "<|x|>", "b"]);
    check(&vocabulary, "<|x|>yz", Parse, &["<|x|>y", "z"]);
    check(&vocabulary, "<|x|", Parse, &["<", "|", "x", "|"]);
    check(&vocabulary, "<|x|>", Literal, &["<", "|", "x", "|", ">"]);
    check(&vocabulary, "<b>aaa", Literal, &["<b>", "aa", "a"]);
    check(&vocabulary, "<b>aaa", Parse, &["<b>", "aa", "a"]);
    check(&vocabulary, "", Parse, &[]);
    vocabulary.strip_right = true;
    check(
        &vocabulary,
        "<|x|> \n\u{3000}a<b> c",
        Parse,
        &["<|x|>", "a", "<b>", "c"],
    );
    vocabulary.strip_right = false;
    vocabulary.strip_left = Some("<|x|>".to_owned());
    check(
        &vocabulary,
        "a \n<|x|> b <b>",
        Parse,
        &["a", "<|x|>", " ", "b", " ", "<b>"],
    );
}
