//! Gemma 3's vocabulary: 262,144 scored tokens.

use std::collections::BTreeSet;

use omex_compiler::prompt::{self, Request};
use omex_compiler::tokenizer::{Model, Vocabulary, compile};
use omex_runtime::tokenizer::{Scratch, SpecialText, TokenKind, Tokenizer};

use crate::corpus::{Digest, Random, corpus, json, model, root};
use crate::vocabularies::scored;

const TOKENS: usize = 262_144;
const TABLE_BYTES_MAX: usize = 12 << 20;

/// A vocabulary of Gemma's size and about its texts' lengths, Gemma's own being 1.9 MB.
#[test]
fn tables_of_262144_tokens_stay_small() {
    let mut rng = Random(3);
    let mut vocabulary = scored(&mut rng, 6, &[]);
    let mut known: BTreeSet<String> = vocabulary.tokens.iter().cloned().collect();
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    while vocabulary.tokens.len() < TOKENS {
        let len = 2 + rng.below(10);
        let mut text = if rng.below(2) == 0 { "\u{2581}" } else { "" }.to_owned();
        text.extend((0..len).map(|_| rng.pick(&letters).as_str()));
        if known.insert(text.clone()) {
            vocabulary.tokens.push(text);
            vocabulary.kinds.push(TokenKind::Normal);
        }
    }
    vocabulary.model = Model::Scores((0..TOKENS).map(|id| -(id as f32)).collect());
    let table = compile(&vocabulary).unwrap();
    assert!(table.len() <= TABLE_BYTES_MAX);
    insta::assert_snapshot!(table.len().to_string(), @"6466328");
}

fn gemma3() -> (Vocabulary, Vec<u8>) {
    model(
        "OMEX_TEST_MODEL_GEMMA3",
        "gemma-3-270m-q4_k_m.gguf",
        "examples/fetch_model.sh gemma3",
    )
}

#[test]
fn ids_of_gemma_are_those_of_hugging_face() {
    let (_, table) = gemma3();
    assert!(table.len() <= TABLE_BYTES_MAX, "{} bytes", table.len());
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let tokens: Vec<&[u8]> = (0..tokenizer.vocabulary_size())
        .map(|id| tokenizer.decode(id).unwrap())
        .collect();
    assert_eq!(tokens.len(), TOKENS);
    let golden = json("tests/golden/gemma3-tokens.json");
    let mut scratch = Scratch::new();
    let mut total = 0;
    for (name, strings) in corpus(&tokens) {
        let mut digest = Digest::new();
        for string in &strings {
            let mut ids = Vec::new();
            let lost = tokenizer.encode(
                string.as_bytes(),
                SpecialText::Literal,
                &mut scratch,
                &mut ids,
            );
            assert_eq!(lost, 0);
            // SentencePiece writes spaces as U+2581, so the two are one.
            let spaces = string.replace('\u{2581}', " ");
            assert_eq!(tokenizer.decode_all(&ids), spaces.as_bytes());
            digest.add(&ids);
        }
        assert_eq!(digest.summary(), golden["ids"][&name], "section {name}");
        total += strings.len();
    }
    assert!(total >= 20_000);
}

#[test]
fn every_byte_of_gemma_goes_through() {
    let (_, table) = gemma3();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let mut rng = Random(11);
    for _ in 0..2_000 {
        let len = 1 + rng.below(40);
        let bytes: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
        let mut ids = Vec::new();
        tokenizer.encode(&bytes, SpecialText::Literal, &mut Scratch::new(), &mut ids);
        assert_eq!(tokenizer.decode_all(&ids), bytes);
    }
}

#[test]
fn the_chat_template_of_gemma_has_one_place_for_the_input() {
    let (vocabulary, table) = gemma3();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let source = std::fs::read_to_string(root().join("tests/oracle/templates/gemma.jinja"));
    let request = Request {
        chat_template: Some(&source.unwrap()),
        system: None,
        message: "{{input}}",
        date: None,
    };
    let template = prompt::compile(&vocabulary, &tokenizer, &request).unwrap();
    let mut ids = Vec::new();
    tokenizer.encode_prompt(&template, b"  Hi \n", &mut Scratch::new(), &mut ids);
    let text = String::from_utf8(tokenizer.decode_all(&ids)).unwrap();
    assert_eq!(
        text,
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    );
}
