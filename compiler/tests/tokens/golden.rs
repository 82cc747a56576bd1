//! Ids and pieces of the corpus against those of Hugging Face `tokenizers`.

use omex_compiler::tokenizer::{Model, compile, pre};
use omex_runtime::tokenizer::{Scratch, SpecialText, Tokenizer};

use crate::corpus::{Digest, corpus, json, smollm2};

const GOLDEN: &str = "tests/golden/smollm2-tokens.json";

#[test]
fn ids_are_those_of_hugging_face() {
    let (_, table) = smollm2();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let tokens: Vec<&[u8]> = (0..tokenizer.vocabulary_size())
        .map(|id| tokenizer.decode(id).unwrap())
        .collect();
    let golden = json(GOLDEN);
    let mut scratch = Scratch::new();
    let mut total = 0;
    for (name, strings) in corpus(&tokens) {
        let mut digest = Digest::new();
        for string in &strings {
            let (mut ids, mut end) = (Vec::new(), 0);
            let lost = tokenizer.encode_spans(
                string.as_bytes(),
                SpecialText::Literal,
                &mut scratch,
                &mut |id, span| {
                    assert!(span.start >= end && span.end >= span.start);
                    end = span.end;
                    ids.push(id);
                },
            );
            if lost == 0 {
                assert_eq!(tokenizer.decode_all(&ids), string.as_bytes());
                assert!(end == string.len());
            }
            digest.add(&ids);
        }
        assert_eq!(digest.summary(), golden["ids"][&name], "section {name}");
        total += strings.len();
    }
    assert!(total >= 20_000);
}

#[test]
fn every_pre_tokenizer_splits_as_hugging_face_does() {
    let (mut vocabulary, table) = smollm2();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let tokens: Vec<&[u8]> = (0..tokenizer.vocabulary_size())
        .map(|id| tokenizer.decode(id).unwrap())
        .collect();
    let sections = corpus(&tokens);
    let strings: Vec<&String> = sections
        .iter()
        .filter(|(name, _)| name != "runs")
        .flat_map(|(_, strings)| strings.iter().step_by(2))
        .collect();
    let golden = json(GOLDEN);
    let golden = golden["pieces"].as_object().unwrap();
    assert!(golden.len() >= 20);
    // Pieces depend on the rules alone: a vocabulary without merges compiles faster.
    for (name, expected) in golden {
        vocabulary.model = Model::ByteLevel {
            splitting: pre::splitting(name).unwrap(),
            merges: Vec::new(),
        };
        let table = compile(&vocabulary).unwrap();
        let tokenizer = Tokenizer::from_bytes(&table).unwrap();
        let mut digest = Digest::new();
        for string in &strings {
            let mut ends = Vec::new();
            tokenizer.pieces(string.as_bytes(), &mut |piece| ends.push(piece.end as u32));
            digest.add(&ends);
        }
        assert_eq!(&digest.summary(), expected, "pre-tokenizer {name}");
    }
}
