//! Writes the runtime's table from a vocabulary, checking that its parts fit together.

use std::collections::{BTreeMap, HashMap};

use omex_runtime::tokenizer::table::{
    self, FIELDS, Field, HEAD_BYTES, MAGIC, NONE, SECTIONS, Section, VERSION, flag, option,
};
use omex_runtime::tokenizer::{TokenKind, Tokenizer};

use super::automaton::{self, Rule};
use super::{Model, Vocabulary};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;

/// Texts of tokens that end generation in the models that have them, whatever the file
/// says about its end-of-text token.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    // Fill-in-the-middle and repository structure: what follows is another document.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<reponame>",
    "<|file_sep|>",
];

/// Compiles a vocabulary into the bytes that `Tokenizer::from_bytes` reads.
///
/// # Errors
/// `TokenizerInvalid` when tokens, merges, scores and special tokens do not fit together,
/// `TokenizerUnsupported` when a splitting rule exceeds the table's limits.
pub fn compile(vocabulary: &Vocabulary) -> Result<Vec<u8>, ImportError> {
    let mut writer = Writer::new(vocabulary)?;
    match &vocabulary.model {
        Model::ByteLevel { splitting, merges } => {
            writer.merges(merges)?;
            let rules: Vec<Rule<'_>> = splitting
                .stages
                .iter()
                .map(|stage| Rule {
                    pieces: &stage.pieces,
                    skip: stage.skip.as_deref(),
                    cut: stage.cut,
                })
                .collect();
            let automata = automaton::compile(&rules).map_err(|reason| {
                ImportError::new(
                    Code::TokenizerUnsupported,
                    format!("the pre-tokenizer's rules cannot be compiled: {reason}"),
                )
            })?;
            writer.automata(&automata);
            if splitting.number_bytes {
                writer.set_option(option::SPLIT_NUMBER_BYTES);
            }
            if splitting.ignore_merges {
                writer.set_option(option::IGNORE_MERGES);
                writer.text_index(|kind| kind == TokenKind::Normal);
            }
        }
        Model::Scores(scores) => {
            writer.scores(scores)?;
            writer.text_index(is_mergeable);
            writer.joints(is_mergeable);
        }
        Model::Characters { merges } => {
            writer.merges(merges)?;
            writer.text_index(is_spelled);
            writer.joints(is_spelled);
        }
    }
    let bytes = writer.finish();
    if let Err(error) = Tokenizer::from_bytes(&bytes) {
        panic!("the compiled tokenizer fails its own check: {error}");
    }
    Ok(bytes)
}

/// Kinds that merging can make; SentencePiece reserves the others.
fn is_mergeable(kind: TokenKind) -> bool {
    match kind {
        TokenKind::Normal | TokenKind::UserDefined => true,
        TokenKind::Unknown | TokenKind::Control | TokenKind::Unused | TokenKind::Byte => false,
    }
}

/// Kinds whose text merging can reach where the merge list says what merges.
fn is_spelled(kind: TokenKind) -> bool {
    kind != TokenKind::Byte
}

/// Kinds that are matched as whole text.
fn is_added(kind: TokenKind) -> bool {
    match kind {
        TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown => true,
        TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => false,
    }
}

struct Writer<'a> {
    vocabulary: &'a Vocabulary,
    /// The bytes of each token as they appear in text.
    texts: Vec<Vec<u8>>,
    fields: [u32; FIELDS],
    sections: [Vec<u8>; SECTIONS],
}

impl<'a> Writer<'a> {
    fn new(vocabulary: &'a Vocabulary) -> Result<Self, ImportError> {
        let count = vocabulary.tokens.len();
        if count == 0 || count >= 1 << 30 {
            return Err(invalid(format!("the vocabulary has {count} tokens")));
        }
        if vocabulary.kinds.len() != count {
            return Err(invalid(format!(
                "{count} tokens have {} token types",
                vocabulary.kinds.len()
            )));
        }
        let mut known: HashMap<&str, usize> = HashMap::new();
        for (id, text) in vocabulary
            .tokens
            .iter()
            .enumerate()
            .filter(|(_, t)| !t.is_empty())
        {
            if let Some(first) = known.insert(text, id) {
                return Err(invalid(format!(
                    "tokens {first} and {id} are both {}",
                    quoted(text)
                )));
            }
        }
        let model = match vocabulary.model {
            Model::ByteLevel { .. } => table::Model::ByteLevel,
            Model::Scores(_) => table::Model::Scores,
            Model::Characters { .. } => table::Model::Characters,
        };
        let byte_level = model == table::Model::ByteLevel;
        let alphabet = byte_alphabet();
        let texts: Vec<Vec<u8>> = vocabulary
            .tokens
            .iter()
            .zip(&vocabulary.kinds)
            .enumerate()
            .map(|(id, (text, kind))| match kind {
                TokenKind::Byte => byte_token(text).map(|byte| vec![byte]).ok_or_else(|| {
                    invalid(format!(
                        "token {id} is a byte, but its text is {}",
                        quoted(text)
                    ))
                }),
                TokenKind::Normal | TokenKind::Unused if byte_level => Ok(text
                    .chars()
                    .map(|c| alphabet.get(&c).copied())
                    .collect::<Option<Vec<u8>>>()
                    .unwrap_or_else(|| text.as_bytes().to_vec())),
                TokenKind::Normal
                | TokenKind::Unused
                | TokenKind::UserDefined
                | TokenKind::Unknown
                | TokenKind::Control
                    if !byte_level =>
                {
                    Ok(text.replace('\u{2581}', " ").into_bytes())
                }
                TokenKind::Normal
                | TokenKind::Unused
                | TokenKind::UserDefined
                | TokenKind::Unknown
                | TokenKind::Control => Ok(text.as_bytes().to_vec()),
            })
            .collect::<Result<_, _>>()?;

        let mut writer = Self {
            vocabulary,
            texts,
            fields: [0; FIELDS],
            sections: Default::default(),
        };
        writer.head(model)?;
        writer.tokens()?;
        writer.bytes(byte_level);
        writer.added();
        // Every index has a free slot, an empty one included.
        writer.sections[Section::MergeIndex as usize] = NONE.to_le_bytes().to_vec();
        writer.sections[Section::TextIndex as usize] = NONE.to_le_bytes().to_vec();
        Ok(writer)
    }

    fn set_option(&mut self, bit: u32) {
        self.fields[Field::Options as usize] |= bit;
    }

    fn section(&mut self, section: Section) -> &mut Vec<u8> {
        &mut self.sections[section as usize]
    }

    fn words(&mut self, section: Section, words: impl IntoIterator<Item = u32>) {
        self.section(section).clear();
        for word in words {
            self.section(section).extend_from_slice(&word.to_le_bytes());
        }
    }

    fn head(&mut self, model: table::Model) -> Result<(), ImportError> {
        let v = self.vocabulary;
        let count = v.tokens.len() as u32;
        let longest = self.texts.iter().map(Vec::len).max().unwrap_or(0);
        self.fields[Field::Model as usize] = model as u32;
        self.fields[Field::Vocabulary as usize] = count;
        self.fields[Field::TokenBytesMax as usize] = longest as u32;
        for (field, id) in [
            (Field::Bos, v.bos),
            (Field::Eos, v.eos),
            (Field::Eot, v.eot),
            (Field::Unknown, v.unknown),
            (Field::Padding, v.padding),
        ] {
            if let Some(id) = id.filter(|&id| id >= count) {
                return Err(invalid(format!(
                    "special token {id} is outside the vocabulary of {count} tokens"
                )));
            }
            self.fields[field as usize] = id.unwrap_or(NONE);
        }
        if v.add_bos && v.bos.is_none() {
            return Err(invalid(
                "texts start with a BOS token, but the model names none".to_owned(),
            ));
        }
        for (set, bit) in [
            (v.add_bos, option::ADD_BOS),
            (v.add_eos, option::ADD_EOS),
            (v.add_space_prefix, option::SPACE_PREFIX),
        ] {
            if set {
                self.set_option(bit);
            }
        }
        Ok(())
    }

    fn tokens(&mut self) -> Result<(), ImportError> {
        let v = self.vocabulary;
        let mut offsets = vec![0];
        let mut bytes = Vec::new();
        for text in &self.texts {
            bytes.extend_from_slice(text);
            offsets.push(
                u32::try_from(bytes.len())
                    .map_err(|_| invalid("the vocabulary has 4 GiB of text or more".to_owned()))?,
            );
        }
        self.words(Section::TokenOffsets, offsets);
        *self.section(Section::TokenBytes) = bytes;

        let has = |text: &str| v.tokens.iter().any(|t| t == text);
        // In these vocabularies `<|end|>` ends a message, and more of the turn follows.
        let harmony =
            (has("<|return|>") && has("<|call|>")) || (has("<|calls|>") && has("<|flush|>"));
        let flags = v
            .tokens
            .iter()
            .zip(&v.kinds)
            .enumerate()
            .map(|(id, (text, &kind))| {
                let id = Some(id as u32);
                let named = is_added(kind)
                    && ENDS.contains(&text.as_str())
                    && !(harmony && text == "<|end|>");
                let mut flags = kind.code();
                if named || id == v.eos || id == v.eot || id == v.eom {
                    flags |= flag::END;
                }
                let keeps_space = ["<unk>", "<s>", "<|endoftext|>"].contains(&text.as_str());
                if v.strip_right && is_added(kind) && !keeps_space {
                    flags |= flag::STRIP_RIGHT;
                }
                if is_added(kind) && v.strip_left.as_ref() == Some(text) {
                    flags |= flag::STRIP_LEFT;
                }
                flags
            });
        self.sections[Section::TokenFlags as usize] = flags.collect();
        Ok(())
    }

    fn bytes(&mut self, byte_level: bool) {
        let kind = if byte_level {
            TokenKind::Normal
        } else {
            TokenKind::Byte
        };
        let mut ids = [NONE; 256];
        for (id, (text, _)) in self
            .texts
            .iter()
            .zip(&self.vocabulary.kinds)
            .enumerate()
            .filter(|(_, (_, k))| **k == kind)
        {
            if let [byte] = text[..] {
                ids[usize::from(byte)] = id as u32;
            }
        }
        self.words(Section::ByteIds, ids);
    }

    fn added(&mut self) {
        let mut by_text: BTreeMap<&[u8], u32> = BTreeMap::new();
        for (id, (text, &kind)) in self.texts.iter().zip(&self.vocabulary.kinds).enumerate() {
            if is_added(kind) && !text.is_empty() {
                by_text.entry(text).or_insert(id as u32);
            }
        }
        let ids: Vec<u32> = by_text.into_values().collect();
        self.words(Section::Added, ids);
    }

    /// Later duplicates of a pair win, as they do in Hugging Face `tokenizers`.
    fn merges(&mut self, merges: &[String]) -> Result<(), ImportError> {
        let tokens = &self.vocabulary.tokens;
        let ids: HashMap<&str, u32> = tokens
            .iter()
            .enumerate()
            .map(|(id, text)| (text.as_str(), id as u32))
            .collect();
        let mut entries = Vec::with_capacity(merges.len() * 3);
        let mut last = HashMap::new();
        for (rank, merge) in merges.iter().enumerate() {
            let problem = |what: &str| invalid(format!("merge {rank}, {}, {what}", quoted(merge)));
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| problem("has no space between two tokens"))?;
            let id = |text: &str| {
                ids.get(text).copied().ok_or_else(|| {
                    problem(&format!(
                        "needs the token {}, which is missing",
                        quoted(text)
                    ))
                })
            };
            let (left_id, right_id, merged) =
                (id(left)?, id(right)?, id(&format!("{left}{right}"))?);
            entries.extend([left_id, right_id, merged]);
            last.insert((left_id, right_id), rank as u32);
        }
        let mut ranks: Vec<u32> = last.into_values().collect();
        ranks.sort_unstable();
        let index = hash_index(&ranks, |rank| {
            let entry = rank as usize * 3;
            table::hash_pair(entries[entry], entries[entry + 1])
        });
        self.words(Section::Merges, entries);
        self.words(Section::MergeIndex, index);
        Ok(())
    }

    /// Equal scores get equal ranks: then the leftmost pair merges first.
    fn scores(&mut self, scores: &[f32]) -> Result<(), ImportError> {
        let kinds = &self.vocabulary.kinds;
        if scores.len() != kinds.len() {
            return Err(invalid(format!(
                "{} tokens have {} scores",
                kinds.len(),
                scores.len()
            )));
        }
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(invalid(format!("the score of token {id} is not a number")));
        }
        // Zero and negative zero are the same score.
        let mut order: Vec<f32> = scores.iter().map(|&score| score + 0.0).collect();
        order.sort_unstable_by(|a, b| b.total_cmp(a));
        order.dedup();
        let ranks: Vec<u32> = scores
            .iter()
            .zip(kinds)
            .map(|(&score, &kind)| {
                if is_mergeable(kind) {
                    order.partition_point(|&better| better > score) as u32
                } else {
                    NONE
                }
            })
            .collect();
        self.words(Section::Ranks, ranks);
        Ok(())
    }

    fn text_index(&mut self, included: impl Fn(TokenKind) -> bool) {
        let mut by_text: BTreeMap<&[u8], u32> = BTreeMap::new();
        for (id, (text, &kind)) in self.texts.iter().zip(&self.vocabulary.kinds).enumerate() {
            if included(kind) && !text.is_empty() {
                by_text.entry(text).or_insert(id as u32);
            }
        }
        let mut ids: Vec<u32> = by_text.into_values().collect();
        ids.sort_unstable();
        let index = hash_index(&ids, |id| table::hash_bytes(&self.texts[id as usize]));
        self.words(Section::TextIndex, index);
    }

    /// Marks the pairs of bytes that meet where two characters meet inside a token.
    fn joints(&mut self, included: impl Fn(TokenKind) -> bool) {
        let mut joints = vec![0u8; 256 * 256 / 8];
        for (text, &kind) in self.texts.iter().zip(&self.vocabulary.kinds) {
            if !included(kind) {
                continue;
            }
            for pair in text.windows(2) {
                if pair[1] & 0xc0 != 0x80 {
                    let bit = usize::from(pair[0]) * 256 + usize::from(pair[1]);
                    joints[bit / 8] |= 1 << (bit % 8);
                }
            }
        }
        *self.section(Section::Joints) = joints;
    }

    fn automata(&mut self, automata: &automaton::Automata) {
        self.fields[Field::Classes as usize] = automata.classes;
        self.fields[Field::Stages as usize] = automata.stages.len() as u32;
        *self.section(Section::ClassBlocks) = automata
            .blocks
            .iter()
            .flat_map(|block| block.to_le_bytes())
            .collect();
        *self.section(Section::ClassLeaves) = automata.leaves.clone();
        let section = self.section(Section::Stages);
        for stage in &automata.stages {
            section.extend_from_slice(&stage.states.to_le_bytes());
            section.extend_from_slice(&stage.start.to_le_bytes());
            section.extend_from_slice(&stage.cut.to_le_bytes());
            section.extend(stage.table.iter().flat_map(|entry| entry.to_le_bytes()));
            section.resize(section.len().next_multiple_of(4), 0);
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend(self.fields.iter().flat_map(|field| field.to_le_bytes()));
        let mut body = Vec::new();
        for section in &self.sections {
            body.resize(
                (HEAD_BYTES + body.len()).next_multiple_of(8) - HEAD_BYTES,
                0,
            );
            head.extend_from_slice(&((HEAD_BYTES + body.len()) as u32).to_le_bytes());
            head.extend_from_slice(&(section.len() as u32).to_le_bytes());
            body.extend_from_slice(section);
        }
        head.extend_from_slice(&body);
        head
    }
}

fn invalid(message: String) -> ImportError {
    ImportError::new(Code::TokenizerInvalid, message)
}

/// Open addressing with linear probing, at most two thirds full.
fn hash_index(entries: &[u32], hash: impl Fn(u32) -> u32) -> Vec<u32> {
    let size = (entries.len() * 3 / 2 + 1).next_power_of_two();
    let mut slots = vec![NONE; size];
    for &entry in entries {
        let mut slot = hash(entry) as usize & (size - 1);
        while slots[slot] != NONE {
            slot = (slot + 1) & (size - 1);
        }
        slots[slot] = entry;
    }
    slots
}

/// The byte of a token `<0xHH>`.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let valid = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u8::from_str_radix(digits, 16).expect("two hexadecimal digits"))
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, and the other bytes, in order,
/// for the characters from U+0100 on.
fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    (0..=255u8)
        .map(|byte| {
            let c = if printable(byte) {
                char::from(byte)
            } else {
                others.next().expect("the range is long enough")
            };
            (c, byte)
        })
        .collect()
}
