//! The splitting rules behind the pre-tokenizer names of GGUF files.
//!
//! A GGUF file states only a name (`tokenizer.ggml.pre`). The rules are those of the
//! models' own `tokenizer.json` files: regular expressions that split text one after the
//! other, each one the pieces of the one before. A name that is not here is refused,
//! because a wrong rule changes tokens without any other sign.

use omex_runtime::tokenizer::table::cut;

use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;

/// How text splits into pieces before merging, and what else the name implies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splitting {
    pub(super) stages: Vec<Stage>,
    /// A piece that is a token as a whole is that token, whatever the merges say.
    pub ignore_merges: bool,
    /// The bytes that GPT-2's alphabet spells with numbers split, after all stages.
    pub(super) number_bytes: bool,
    /// Whether texts start with the BOS token where the file does not say.
    pub add_bos: bool,
}

/// One split: matches of `pieces` are pieces, and so is what lies between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) pieces: String,
    /// Text without a piece in it: where `pieces` must not match, or would be tried again
    /// and again.
    pub(super) skip: Option<String>,
    /// One of [`cut`].
    pub(super) cut: u32,
}

/// The Unicode version of the regex engine behind Hugging Face's `Split` and `ByteLevel`
/// (Oniguruma): later characters are neither letters nor numbers to it.
const ENGINE_AGE: &str = "16.0";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const CJK: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+";
const HAN_HANGUL: &str = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{0964}\x{06D4}\x{060C})]+";
const YOUTU_CJK: &str = r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str =
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_LATIN: &str = r"\s?[\x{41}-\x{5A}\x{61}-\x{7A}\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}-\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}-\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}-\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const DEEPSEEK_PUNCTUATION: &str =
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";

const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const KIMI: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// `\d{1,3}(?=(?:\d{3})*\b)` splits digits into threes, counted from their end, unless a
/// word goes on after them; to the engine the numbers of Latin-1 are part of words.
const DIGITS_IN_A_WORD: &str =
    r"\d+[[\p{Alphabetic}\p{M}\p{Pc}\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}]--\d]";
/// Hugging Face's `Punctuation` asks tables of Unicode 8, in which two later symbols are
/// punctuation.
const FALCON_PUNCTUATION: &str = r"[!-/:-@\[-`{-~\x{166D}\x{111C9}[\p{P}&&\p{Age=8.0}]]+";

/// Scripts that AFMoE's models keep apart from other text; llama.cpp states these ranges.
const AFMOE_SCRIPTS: &str = r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{0E40}-\x{0EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+";

/// Names of models whose BPE merges characters of whole texts instead of bytes in pieces.
pub(super) const CHARACTERS: &[&str] = &["gemma4", "granite-embed-multi-311m", "sarvam-moe"];

/// The rules of a pre-tokenizer by the name that GGUF files use.
///
/// # Errors
/// `TokenizerUnsupported` for every name without rules here.
pub fn splitting(name: &str) -> Result<Splitting, ImportError> {
    let plain = |stages: &[&str]| Splitting {
        stages: stages.iter().map(|pieces| engine_stage(pieces)).collect(),
        ignore_merges: false,
        number_bytes: false,
        add_bos: false,
    };
    // Hugging Face's `Digits` and `Split` differ in their Unicode versions.
    let digits_then = |stages: &[&str]| {
        let mut splitting = plain(stages);
        splitting.stages.insert(0, digit_stage());
        splitting
    };
    Ok(match name {
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling"
        | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" | "exaone4" | "jina-de" | "jina-es"
        | "jina-v1-en" | "jina-v2-code" | "jina-v2-de" | "jina-v2-es" | "roberta-bpe" => {
            plain(&[GPT2])
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => digits_then(&[GPT2]),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
        | "lfm2" | "jina-v5-nano" => Splitting {
            ignore_merges: true,
            add_bos: true,
            ..plain(&[LLAMA3])
        },
        "dbrx" | "smaug-bpe" | "chatglm-bpe" => plain(&[LLAMA3]),
        "glm4" | "glm5" => Splitting {
            ignore_merges: true,
            ..plain(&[LLAMA3])
        },
        "jais-2" => plain(&[JAIS2]),
        "kimi-k2" => Splitting {
            ignore_merges: true,
            ..plain(&[KIMI])
        },
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "stablelm2" | "hunyuan"
        | "solar-open" | "megrez" | "grok-2" => plain(&[QWEN2]),
        "qwen35" => plain(&[QWEN35]),
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => plain(&[GPT4O]),
        "granite-embed-multi-97m" => Splitting {
            ignore_merges: true,
            ..plain(&[GPT4O])
        },
        "tiny_aya" | "cohere2moe" => {
            let mut splitting = plain(&[r"\d+", GPT4O]);
            splitting.stages[0].skip = Some(dated(DIGITS_IN_A_WORD));
            splitting.stages[0].cut = cut::THREES;
            splitting
        }
        "superbpe" => {
            let mut splitting = plain(&[r"\p{N}+", r"\d+"]);
            splitting.stages[1].cut = cut::BEFORE_THREES;
            splitting
        }
        "falcon" => Splitting {
            number_bytes: true,
            ..plain(&[FALCON_PUNCTUATION, GPT2])
        },
        "tekken" => Splitting {
            ignore_merges: true,
            add_bos: true,
            ..plain(&[TEKKEN])
        },
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => {
            plain(&[r"\p{N}{1,3}", CJK, DEEPSEEK3])
        }
        "spark2_5" => plain(&[r"\p{N}{1,3}", CJK, SPARK, r"\p{N}"]),
        "deepseek-coder" => {
            let mut splitting = plain(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_HANGUL]);
            splitting.stages.push(digit_stage());
            splitting
        }
        "deepseek-llm" => {
            let mut splitting = plain(&[
                r"[\r\n]",
                DEEPSEEK_LATIN,
                DEEPSEEK_PUNCTUATION,
                r"\s+$",
                HAN_HANGUL,
                r"\p{N}+",
            ]);
            // White space that does not end the text would be scanned from each of its
            // characters again.
            splitting.stages[3].skip = Some(r"\s+\S".to_owned());
            splitting
        }
        "youtu" => Splitting {
            ignore_merges: true,
            ..plain(&[YOUTU_CJK, YOUTU])
        },
        "bloom" | "poro-chat" | "gpt3-finnish" => plain(&[BLOOM]),
        "viking" => plain(&[BLOOM, r"\p{N}"]),
        "chameleon" => Splitting {
            add_bos: true,
            ..plain(&[
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ])
        },
        "bailingmoe" | "bailingmoe2" | "llada-moe" => plain(&[BAILING]),
        "seed-coder" => plain(&[SEED]),
        "ufakzeka" => plain(&[UFAKZEKA]),
        "exaone-moe" => plain(&[EXAONE_MOE]),
        // llama.cpp's rule, not that of any one model: what `convert_hf_to_gguf.py` wrote
        // before it knew names.
        "default" => plain(&[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        "afmoe" => {
            let mut splitting = plain(&[r"\p{N}+", AFMOE_SCRIPTS, DEEPSEEK3]);
            splitting.stages[0].cut = cut::THREES;
            splitting
        }
        "laguna" => plain(&[r"[^\n]+|[\n]+", QWEN2]),
        "minicpm5" => Splitting {
            ignore_merges: true,
            ..plain(&[r"\p{N}{1,3}", MINICPM5])
        },
        _ => {
            let why = match name {
                "whitespace" => "it drops white space, so texts would not survive",
                name if CHARACTERS.contains(&name) => "it merges characters, not bytes",
                _ => "it is not known",
            };
            return Err(ImportError::new(
                Code::TokenizerUnsupported,
                format!("the pre-tokenizer {} cannot be used: {why}", quoted(name)),
            )
            .help("a guess would change tokens without any other sign, so none is made"));
        }
    })
}

/// A stage for Hugging Face's regex engine.
fn engine_stage(pieces: &str) -> Stage {
    Stage {
        pieces: dated(pieces),
        skip: None,
        cut: cut::WHOLE,
    }
}

/// The pattern with the characters that the engine knows.
fn dated(pattern: &str) -> String {
    let mut dated = pattern.replace(r"\d", r"\p{Nd}");
    for property in [
        "L",
        "N",
        "P",
        "S",
        "M",
        "Lu",
        "Lt",
        "Lm",
        "Lo",
        "Ll",
        "Nd",
        "Pc",
        "Alphabetic",
    ] {
        dated = dated.replace(
            &format!(r"\p{{{property}}}"),
            &format!(r"[\p{{{property}}}&&\p{{Age={ENGINE_AGE}}}]"),
        );
    }
    dated
}

/// Hugging Face's `Digits` with single digits, which asks Rust's standard library: the
/// numbers of Unicode 17.
fn digit_stage() -> Stage {
    Stage {
        pieces: r"[\p{N}\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}]".to_owned(),
        skip: None,
        cut: cut::WHOLE,
    }
}
