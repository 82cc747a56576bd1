//! Damaged tables and vocabularies that do not fit together.

use omex_compiler::diagnostic::Code;
use omex_compiler::import::gguf::Gguf;
use omex_compiler::import::gguf::write::HeaderWriter;
use omex_compiler::tokenizer::{Model, Vocabulary, compile, pre};
use omex_runtime::tokenizer::{Error, Scratch, SpecialText, TokenKind, Tokenizer};

use crate::corpus::Random;
use crate::vocabularies::{byte_level, characters, scored};

const ADDED: [(&str, TokenKind); 2] = [
    ("<|a|>", TokenKind::Control),
    ("  ", TokenKind::UserDefined),
];
const TEXT: &str = "abc  a b 12 'll <|a|> 漢é\n\n\u{2581} x\u{ff}";

fn tables() -> [Vec<u8>; 3] {
    let mut rng = Random(5);
    [
        byte_level(&mut rng, "llama-bpe", 30, &ADDED),
        scored(&mut rng, 60, &ADDED),
        characters(&mut rng, 30, &ADDED),
    ]
    .map(|vocabulary| compile(&vocabulary).unwrap())
}

/// Whatever bytes pass the check can be used.
fn exercise(bytes: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(bytes) else {
        return;
    };
    let mut scratch = Scratch::new();
    for special in [SpecialText::Literal, SpecialText::Parse] {
        let mut ids = Vec::new();
        tokenizer.encode(TEXT.as_bytes(), special, &mut scratch, &mut ids);
        let decoded = tokenizer.decode_all(&ids);
        assert!(decoded.len() <= ids.len() * bytes.len());
        assert!(ids.iter().all(|&id| tokenizer.kind(id).is_some()));
    }
    tokenizer.end_of_generation().count();
}

#[test]
fn flipped_bits_never_panic() {
    for (which, table) in tables().iter().enumerate() {
        for seed in 0..20_000 {
            let mut rng = Random(seed);
            let mut damaged = table.clone();
            // The header and the small sections are where damage does most.
            let reach = if seed % 2 == 0 { damaged.len() } else { 600 };
            for _ in 0..=rng.below(3) {
                damaged[rng.below(reach)] ^= 1 << rng.below(8);
            }
            let result = std::panic::catch_unwind(|| exercise(&damaged));
            assert!(result.is_ok(), "table {which}, seed {seed}");
        }
    }
}

#[test]
fn cut_tables_are_refused() {
    for table in tables() {
        for len in (0..table.len().min(2000)).chain((2000..table.len()).step_by(997)) {
            assert!(Tokenizer::from_bytes(&table[..len]).is_err(), "{len} bytes");
        }
        let longer = [&table[..], &[0]].concat();
        assert!(Tokenizer::from_bytes(&longer).is_err());
        let mut other = table.clone();
        other[4] = 99;
        assert_eq!(
            Tokenizer::from_bytes(&other).unwrap_err(),
            Error::Version { found: 99 }
        );
        other[0] = b'x';
        assert_eq!(
            Tokenizer::from_bytes(&other).unwrap_err(),
            Error::NotATokenizer
        );
    }
}

#[test]
fn tables_with_loose_ends_are_refused() {
    let bpe = || byte_level(&mut Random(1), "gpt-2", 5, &ADDED);
    let spm = || scored(&mut Random(1), 20, &ADDED);
    let characters = || characters(&mut Random(1), 5, &ADDED);
    let merges = |vocabulary: &mut Vocabulary, merge: &str| {
        if let Model::ByteLevel { merges, .. } | Model::Characters { merges } =
            &mut vocabulary.model
        {
            merges.push(merge.to_owned());
        }
    };
    let scores = |vocabulary: &mut Vocabulary, change: &dyn Fn(&mut Vec<f32>)| {
        if let Model::Scores(scores) = &mut vocabulary.model {
            change(scores);
        }
    };
    type Case<'a> = (Vocabulary, &'a dyn Fn(&mut Vocabulary), &'a str);
    let cases: [Case<'_>; 12] = [
        (bpe(), &|v| merges(v, "ab"), "has no space"),
        (bpe(), &|v| merges(v, "a notthere"), "needs the token"),
        (
            characters(),
            &|v| merges(v, "b \u{2581}no"),
            "needs the token",
        ),
        (bpe(), &|v| v.tokens.clear(), "0 tokens"),
        (bpe(), &|v| v.kinds.truncate(3), "token types"),
        (bpe(), &|v| v.tokens[300 - 50] = "a".to_owned(), "are both"),
        (bpe(), &|v| v.eos = Some(1 << 20), "outside the vocabulary"),
        (bpe(), &|v| v.add_bos = true, "BOS"),
        (spm(), &|v| scores(v, &|s| s[9] = f32::NAN), "not a number"),
        (spm(), &|v| scores(v, &|s| s.truncate(9)), "scores"),
        (spm(), &|v| v.tokens[9] = "<0x-1>".to_owned(), "is a byte"),
        (spm(), &|v| v.tokens[9] = "<0x123>".to_owned(), "is a byte"),
    ];
    for (mut vocabulary, damage, expected) in cases {
        compile(&vocabulary).unwrap();
        damage(&mut vocabulary);
        let error = compile(&vocabulary).unwrap_err();
        assert_eq!(error.code, Code::TokenizerInvalid);
        assert!(
            error.message.contains(expected),
            "{error} does not say {expected:?}"
        );
    }
}

#[test]
fn unknown_pre_tokenizers_are_refused_by_name() {
    for (name, why) in [
        ("whitespace", "drops white space"),
        ("", "not known"),
        ("Smollm", "not known"),
        ("my-own\u{1b}[31m", "not known"),
    ] {
        let error = pre::splitting(name).unwrap_err();
        assert_eq!(error.code, Code::TokenizerUnsupported);
        assert!(error.message.contains(why), "{error}");
        assert!(!error.to_string().contains('\u{1b}'));
    }
}

#[test]
fn merges_of_characters_are_known_by_their_names() {
    for (model, pre, add_bos) in [
        ("gemma4", None, true),
        ("gpt2", Some("gemma4"), true),
        ("gpt2", Some("granite-embed-multi-311m"), true),
        ("gpt2", Some("sarvam-moe"), false),
    ] {
        let mut w = HeaderWriter::default();
        w.str("general.architecture", "gemma3")
            .str("tokenizer.ggml.model", model)
            .array_str(
                "tokenizer.ggml.tokens",
                ["<bos>", "a", "\u{2581}", "\u{2581}a"].iter(),
            )
            .array_str("tokenizer.ggml.merges", ["\u{2581} a"].iter())
            .u32("tokenizer.ggml.bos_token_id", 0);
        if let Some(pre) = pre {
            w.str("tokenizer.ggml.pre", pre);
        }
        let bytes = w.to_bytes();
        let vocabulary = Vocabulary::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap();
        assert!(matches!(vocabulary.model, Model::Characters { .. }));
        assert_eq!(vocabulary.add_bos, add_bos, "{model} {pre:?}");
        let table = compile(&vocabulary).unwrap();
        let tokenizer = Tokenizer::from_bytes(&table).unwrap();
        let mut ids = Vec::new();
        let literal = SpecialText::Literal;
        tokenizer.encode(b"a a", literal, &mut Scratch::new(), &mut ids);
        assert_eq!(ids, [1, 3]);
    }
}

/// A scored or a byte-level vocabulary in GGUF, with one more key.
fn gguf(spm: bool, add: impl FnOnce(&mut HeaderWriter)) -> Vec<u8> {
    let mut w = HeaderWriter::default();
    w.str("general.architecture", "llama")
        .str("tokenizer.ggml.model", if spm { "llama" } else { "gpt2" })
        .array_str("tokenizer.ggml.tokens", ["<unk>", "a", "b"].iter());
    if spm {
        w.array_f32("tokenizer.ggml.scores", [0.0, -1.0, -2.0].into_iter());
    } else {
        w.str("tokenizer.ggml.pre", "gpt-2");
        w.array_str("tokenizer.ggml.merges", [""; 0].iter());
    }
    add(&mut w);
    w.to_bytes()
}

#[test]
fn what_changes_text_first_is_refused_by_name() {
    type Add<'a> = &'a dyn Fn(&mut HeaderWriter);
    let cases: [(bool, Add<'_>, Option<&str>); 9] = [
        (true, &|_| {}, None),
        (false, &|_| {}, None),
        (
            true,
            &|w| {
                w.bool("tokenizer.ggml.remove_extra_whitespaces", true);
            },
            Some("remove_extra_whitespaces"),
        ),
        (
            true,
            &|w| {
                w.bool("tokenizer.ggml.remove_extra_whitespaces", false);
            },
            None,
        ),
        (
            true,
            &|w| {
                w.bool("tokenizer.ggml.add_space_prefix", true);
            },
            None,
        ),
        (
            false,
            &|w| {
                w.bool("tokenizer.ggml.add_space_prefix", true);
            },
            Some("add_space_prefix"),
        ),
        (
            false,
            &|w| {
                w.bool("tokenizer.ggml.normalizer.lowercase", true);
            },
            Some("normalizer.lowercase"),
        ),
        (
            false,
            &|w| {
                w.str("tokenizer.ggml.normalizer.type", "NFKC");
            },
            Some("normalizer.type"),
        ),
        (
            true,
            &|w| {
                w.array_i32("tokenizer.ggml.precompiled_charsmap", [1].into_iter());
            },
            Some("precompiled_charsmap"),
        ),
    ];
    for (spm, add, refused) in cases {
        let bytes = gguf(spm, add);
        let vocabulary = Vocabulary::from_gguf(&Gguf::parse(&bytes).unwrap());
        match (vocabulary, refused) {
            (Ok(vocabulary), None) => drop(compile(&vocabulary).unwrap()),
            (Err(error), Some(key)) => {
                assert_eq!(error.code, Code::TokenizerUnsupported);
                assert!(error.message.contains(key), "{error}");
            }
            (Ok(_), Some(key)) => panic!("{key} is not refused"),
            (Err(error), None) => panic!("{error}"),
        }
    }
}
