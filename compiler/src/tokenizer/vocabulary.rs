//! A model's vocabulary as its file states it.

use omex_runtime::tokenizer::TokenKind;

use super::pre::{self, Splitting};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;
use crate::import::gguf::{Gguf, Value};

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    /// Byte-level BPE (GGUF's `gpt2`): token texts spell bytes in GPT-2's alphabet.
    ByteLevel {
        splitting: Splitting,
        /// Pairs of token texts with a space between them, in rank order.
        merges: Vec<String>,
    },
    /// SentencePiece's BPE (GGUF's `llama`): the merge with the highest score comes first.
    Scores(Vec<f32>),
    /// BPE over characters, spelled as SentencePiece spells them (GGUF's `gemma4`).
    Characters {
        /// As those of `ByteLevel`.
        merges: Vec<String>,
    },
}

/// Everything about tokens that a model file states.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    pub model: Model,
    /// Texts as the file spells them: GPT-2's byte alphabet or U+2581 for spaces in normal
    /// tokens, plain text in control and user-defined ones.
    pub tokens: Vec<String>,
    pub kinds: Vec<TokenKind>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    /// End of message, before a tool answers.
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    pub add_bos: bool,
    pub add_eos: bool,
    /// Scores: a space goes before text at the start and after added tokens.
    pub add_space_prefix: bool,
    /// Added tokens take the white space after them (Phi-3).
    pub strip_right: bool,
    /// The token that takes the white space before it.
    pub strip_left: Option<String>,
    /// Jinja source of the chat template.
    pub chat_template: Option<String>,
}

impl Vocabulary {
    /// Reads the `tokenizer.*` keys of a GGUF file.
    ///
    /// # Errors
    /// `TokenizerUnsupported` for a tokenizer model or pre-tokenizer that is not known,
    /// `ModelMetadata` for a key that is missing or of the wrong type, `TokenizerInvalid`
    /// for keys that do not fit together.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, ImportError> {
        let model = gguf.required("tokenizer.ggml.model", Gguf::get_str)?;
        let pre = gguf.get_str("tokenizer.ggml.pre")?;
        let tokens: Vec<String> = gguf
            .required("tokenizer.ggml.tokens", Gguf::get_array_str)?
            .iter()
            .map(str::to_owned)
            .collect();
        let kinds = match gguf.get_array_integer("tokenizer.ggml.token_type")? {
            Some(types) => types.map(kind_from_gguf).collect(),
            None => vec![TokenKind::Normal; tokens.len()],
        };
        if kinds.len() != tokens.len() {
            return Err(ImportError::new(
                Code::TokenizerInvalid,
                format!("{} tokens have {} token types", tokens.len(), kinds.len()),
            ));
        }

        let (model, defaults) = match model {
            "gpt2" => {
                let Some(name) = pre else {
                    return Err(ImportError::new(
                        Code::TokenizerUnsupported,
                        "the model does not name its pre-tokenizer (tokenizer.ggml.pre)",
                    )
                    .help("convert the model again with a current converter: a guess would change tokens"));
                };
                let merges = merges(gguf)?;
                if pre::CHARACTERS.contains(&name) {
                    let defaults = Defaults {
                        add_bos: name != "sarvam-moe",
                        ..Defaults::MERGES
                    };
                    (Model::Characters { merges }, defaults)
                } else {
                    let splitting = pre::splitting(name)?;
                    let defaults = Defaults {
                        add_bos: splitting.add_bos,
                        ..Defaults::MERGES
                    };
                    (Model::ByteLevel { splitting, merges }, defaults)
                }
            }
            "gemma4" => {
                let merges = merges(gguf)?;
                let defaults = Defaults {
                    add_bos: true,
                    ..Defaults::MERGES
                };
                (Model::Characters { merges }, defaults)
            }
            "llama" => {
                let scores = gguf.required("tokenizer.ggml.scores", Gguf::get_array_f32)?;
                let ids = [Some(1), Some(2), Some(0)];
                let defaults = Defaults {
                    ids,
                    add_bos: true,
                    space_prefix: true,
                };
                (Model::Scores(scores.collect()), defaults)
            }
            other => {
                return Err(ImportError::new(
                    Code::TokenizerUnsupported,
                    format!("the tokenizer model {} is not supported", quoted(other)),
                )
                .help("byte-level BPE (gpt2), SentencePiece BPE (llama) and BPE over characters (gemma4) are"));
            }
        };
        let spm = matches!(model, Model::Scores(_));
        refuse_changes_of_text(gguf, spm)?;

        let id = |key: &str, default: Option<u32>| -> Result<Option<u32>, ImportError> {
            let key = format!("tokenizer.ggml.{key}");
            // Some converters write -1 or 2^32 - 1 for a token that the model does not have.
            let Some(value) = gguf.get(&key) else {
                return Ok(default.filter(|&id| (id as usize) < tokens.len()));
            };
            if matches!(value.as_integer(), Some(-1 | 0xffff_ffff)) {
                return Ok(None);
            }
            let id = gguf.get_u32(&key)?;
            match id {
                Some(id) if id as usize >= tokens.len() => Err(ImportError::new(
                    Code::TokenizerInvalid,
                    format!(
                        "{key} is {id}, but the vocabulary has {} tokens",
                        tokens.len()
                    ),
                )),
                id => Ok(id),
            }
        };
        let [bos, eos, unknown] = defaults.ids;
        let flag = |key: &str, default: bool| -> Result<bool, ImportError> {
            Ok(gguf
                .get_bool(&format!("tokenizer.ggml.{key}"))?
                .unwrap_or(default))
        };
        let name = gguf
            .get_str("general.name")?
            .unwrap_or_default()
            .to_ascii_lowercase();
        Ok(Self {
            bos: id("bos_token_id", bos)?,
            eos: id("eos_token_id", eos)?,
            eot: id("eot_token_id", None)?,
            eom: id("eom_token_id", None)?,
            unknown: id("unknown_token_id", unknown)?,
            padding: id("padding_token_id", None)?,
            add_bos: flag("add_bos_token", defaults.add_bos)?,
            add_eos: flag("add_eos_token", false)?,
            add_space_prefix: spm && flag("add_space_prefix", defaults.space_prefix)?,
            strip_right: ["phi-3", "phi 3", "phi3"].iter().any(|n| name.contains(n)),
            strip_left: mask_token(pre.unwrap_or_default(), &name).map(str::to_owned),
            chat_template: gguf.get_str("tokenizer.chat_template")?.map(str::to_owned),
            model,
            tokens,
            kinds,
        })
    }
}

/// Refuses what changes a text before it is split: only SentencePiece's space prefix is
/// built.
fn refuse_changes_of_text(gguf: &Gguf<'_>, spm: bool) -> Result<(), ImportError> {
    let not_built = |key: &str| {
        Err(ImportError::new(
            Code::TokenizerUnsupported,
            format!(
                "the tokenizer changes text before it splits it ({}), which is not supported",
                quoted(key)
            ),
        ))
    };
    for entry in gguf.metadata() {
        let Some(name) = entry.key.strip_prefix("tokenizer.ggml.") else {
            continue;
        };
        let changes = match name {
            "remove_extra_whitespaces" => spm,
            "add_space_prefix" => !spm,
            "precompiled_charsmap" => true,
            name => name.starts_with("normalizer"),
        };
        let off = match &entry.value {
            Value::Bool(on) => !on,
            Value::Array(array) => array.len == 0,
            Value::String(text) => text.is_empty(),
            Value::U8(_)
            | Value::I8(_)
            | Value::U16(_)
            | Value::I16(_)
            | Value::U32(_)
            | Value::I32(_)
            | Value::F32(_)
            | Value::U64(_)
            | Value::I64(_)
            | Value::F64(_) => false,
        };
        if changes && !off {
            return not_built(entry.key);
        }
    }
    Ok(())
}

/// What the tokenizer model implies where the file is silent.
struct Defaults {
    /// Beginning of text, end of text, unknown.
    ids: [Option<u32>; 3],
    add_bos: bool,
    space_prefix: bool,
}

impl Defaults {
    /// Of the models with a merge list.
    const MERGES: Self = Self {
        ids: [None; 3],
        add_bos: false,
        space_prefix: false,
    };
}

/// The token that takes the white space before it, in the models that have one: files do
/// not say so themselves.
fn mask_token(pre: &str, name: &str) -> Option<&'static str> {
    if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].contains(&pre) {
        Some("<mask>")
    } else if name.contains("modern-bert") {
        Some("[MASK]")
    } else {
        None
    }
}

fn merges(gguf: &Gguf<'_>) -> Result<Vec<String>, ImportError> {
    let merges = gguf.required("tokenizer.ggml.merges", Gguf::get_array_str)?;
    Ok(merges.iter().map(str::to_owned).collect())
}

/// GGUF's token types; one that it does not define is an ordinary token.
fn kind_from_gguf(code: i128) -> TokenKind {
    match code {
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    }
}
