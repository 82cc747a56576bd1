//! The compiled tokenizer: text to token ids and back, from tables that the compiler made.
//!
//! Three models are known. *Byte-level BPE* splits text with the pre-tokenizer's automata and
//! merges the bytes of each piece in the order of the merge list. *Scores* (SentencePiece's
//! BPE) merges the characters of the whole text, best score first, and falls back to byte
//! tokens. *Character BPE* does so in the order of a merge list. All give the ids that
//! Hugging Face `tokenizers` gives for the same vocabulary.
//! Text is taken as it is, without Unicode normalization, and may be any bytes.

mod merge;
mod prompt;
mod scan;
pub mod stream;
pub mod table;

use std::ops::Range;

pub use merge::Scratch;
pub use table::Error;
use table::{Field, Model, NONE, Section, Tables, flag, option};

/// What text that spells a control token means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialText {
    /// Nothing special: it is tokenized like any other text.
    Literal,
    /// The control token.
    Parse,
}

/// What a token is for, as GGUF's `tokenizer.ggml.token_type` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Normal,
    /// Stands for text outside the vocabulary.
    Unknown,
    /// Structure, not text: beginning and end of texts and turns.
    Control,
    /// Matched as whole text before anything else.
    UserDefined,
    /// Fills the vocabulary up.
    Unused,
    /// One byte of a character outside the vocabulary.
    Byte,
}

pub(crate) const KINDS: u8 = 6;

impl TokenKind {
    /// The code of this kind in a table's token flags.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Normal,
            1 => Self::Unknown,
            2 => Self::Control,
            3 => Self::UserDefined,
            4 => Self::Unused,
            5 => Self::Byte,
            code => unreachable!("token kind {code} passed the table's check"),
        }
    }
}

/// A tokenizer that reads its tables in place.
#[derive(Clone)]
pub struct Tokenizer<'a> {
    tables: Tables<'a>,
    /// Which bytes start an added token, and whether any of them is plain text's.
    added_starts: [bool; 256],
    has_user_defined: bool,
}

impl std::fmt::Debug for Tokenizer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.vocabulary_size())
    }
}

impl<'a> Tokenizer<'a> {
    /// Checks `bytes` and borrows them; nothing is copied.
    ///
    /// # Errors
    /// Bytes that are not a complete, consistent table of this version.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, Error> {
        Ok(Self::new(Tables::parse(bytes)?))
    }

    /// As [`Tokenizer::from_bytes`] of bytes that it accepted before, which takes a
    /// millisecond per 100,000 tokens.
    pub(crate) fn from_checked(bytes: &'a [u8]) -> Self {
        Self::new(Tables::find(bytes).expect("the tables were checked"))
    }

    fn new(tables: Tables<'a>) -> Self {
        let mut tokenizer = Self {
            added_starts: [false; 256],
            has_user_defined: false,
            tables,
        };
        for id in tokenizer.tables.added.iter() {
            let first = tokenizer.tables.token(id)[0];
            tokenizer.added_starts[usize::from(first)] = true;
            tokenizer.has_user_defined |= tokenizer.kind(id) == Some(TokenKind::UserDefined);
        }
        tokenizer
    }

    /// Number of tokens; ids are below it.
    #[must_use]
    pub fn vocabulary_size(&self) -> u32 {
        self.tables.field(Field::Vocabulary)
    }

    fn special(&self, field: Field) -> Option<u32> {
        Some(self.tables.field(field)).filter(|&id| id != NONE)
    }

    fn option(&self, bit: u32) -> bool {
        self.tables.field(Field::Options) & bit != 0
    }

    /// Beginning of text.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.special(Field::Bos)
    }

    /// Stands for text outside the vocabulary.
    #[must_use]
    pub fn unknown(&self) -> Option<u32> {
        self.special(Field::Unknown)
    }

    /// The model expects texts to start with [`Self::bos`].
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.option(option::ADD_BOS) && self.bos().is_some()
    }

    /// Encoding puts a space before the text, which decoding takes away again.
    #[must_use]
    pub fn adds_space_prefix(&self) -> bool {
        self.option(option::SPACE_PREFIX)
    }

    fn model(&self) -> Model {
        Model::from_code(self.tables.field(Field::Model)).expect("the table was checked")
    }

    /// Whether the vocabulary spells bytes; otherwise it spells characters, and U+2581 and
    /// the space are the same one.
    fn is_byte_level(&self) -> bool {
        self.model() == Model::ByteLevel
    }

    /// What the token `id` is for; `None` outside the vocabulary.
    #[must_use]
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        let flags = self.tables.token_flags.get(id as usize)?;
        Some(TokenKind::from_code(flags & flag::KIND))
    }

    /// Whether generation ends with the token `id`.
    #[must_use]
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.flags(id) & flag::END != 0
    }

    /// Whether the token `id`, found as special text, takes the white space after it.
    #[must_use]
    pub fn strips_right(&self, id: u32) -> bool {
        self.flags(id) & flag::STRIP_RIGHT != 0
    }

    /// All tokens that end generation, ascending.
    pub fn end_of_generation(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.vocabulary_size()).filter(|&id| self.is_end_of_generation(id))
    }

    fn flags(&self, id: u32) -> u8 {
        self.tables
            .token_flags
            .get(id as usize)
            .copied()
            .unwrap_or(0)
    }

    /// The bytes that the token `id` stands for, a control token's own text included;
    /// `None` outside the vocabulary. They need not be complete characters.
    #[must_use]
    pub fn decode(&self, id: u32) -> Option<&'a [u8]> {
        (id < self.vocabulary_size()).then(|| self.tables.token(id))
    }

    /// The bytes of a whole text: what [`Self::encode`] was given, as long as the
    /// vocabulary has a token for every byte. Ids outside the vocabulary are nothing.
    #[must_use]
    pub fn decode_all(&self, ids: &[u32]) -> Vec<u8> {
        let mut text = Vec::new();
        for &id in ids {
            text.extend_from_slice(self.decode(id).unwrap_or_default());
        }
        if self.adds_space_prefix()
            && text.first() == Some(&b' ')
            && ids
                .first()
                .is_some_and(|&id| self.kind(id) != Some(TokenKind::UserDefined))
        {
            text.remove(0);
        }
        text
    }

    /// Appends the tokens of `text` to `out` and returns how many bytes of it no token
    /// stands for (0 for vocabularies that have all bytes); those bytes are left out.
    pub fn encode(
        &self,
        text: &[u8],
        special: SpecialText,
        scratch: &mut Scratch,
        out: &mut impl Extend<u32>,
    ) -> usize {
        self.encode_spans(text, special, scratch, &mut |id, _| {
            out.extend(std::iter::once(id));
        })
    }

    /// As [`Self::encode`], giving each token with the range of bytes of `text` that it
    /// stands for. Ranges ascend and do not overlap; the tokens of one character that is
    /// outside the vocabulary may have ranges inside it.
    pub fn encode_spans(
        &self,
        text: &[u8],
        special: SpecialText,
        scratch: &mut Scratch,
        sink: &mut dyn FnMut(u32, Range<usize>),
    ) -> usize {
        let mut lost = 0;
        let mut start = 0;
        let mut fresh = true;
        while start <= text.len() {
            let added = self.next_added(text, start, special);
            let end = added.as_ref().map_or(text.len(), |a| a.span.start);
            if start < end {
                lost += self.encode_plain(text, start..end, fresh, scratch, sink);
            }
            let Some(added) = added else { break };
            start = added.span.end;
            fresh = true;
            sink(added.id, added.span);
        }
        lost
    }

    /// Gives the pieces that the pre-tokenizer splits a text without added tokens into:
    /// byte-level BPE merges inside each of them only. The other models have none.
    pub fn pieces(&self, text: &[u8], sink: &mut dyn FnMut(Range<usize>)) {
        if self.is_byte_level() {
            self.split(text, 0..text.len(), sink);
        }
    }

    /// Encodes text without added tokens; `fresh` says that it starts the text or
    /// follows an added token.
    fn encode_plain(
        &self,
        text: &[u8],
        range: Range<usize>,
        fresh: bool,
        scratch: &mut Scratch,
        sink: &mut dyn FnMut(u32, Range<usize>),
    ) -> usize {
        let mut lost = 0;
        if self.is_byte_level() {
            self.split(text, range, &mut |piece| {
                lost += self.merge_bytes(text, piece, scratch, sink);
            });
        } else {
            let prefix = fresh && self.adds_space_prefix();
            lost = self.merge_characters(text, range, prefix, scratch, sink);
        }
        lost
    }

    /// The token whose bytes are exactly `bytes`, among those in the text index.
    fn find_text(&self, bytes: &[u8]) -> Option<u32> {
        let index = self.tables.text_index;
        let mask = index.len() - 1;
        let mut slot = table::hash_bytes(bytes) as usize & mask;
        loop {
            match index.at(slot) {
                NONE => return None,
                id if self.tables.token(id) == bytes => return Some(id),
                _ => slot = (slot + 1) & mask,
            }
        }
    }
}

const _: () = assert!(Section::Joints as usize + 1 == table::SECTIONS);
const _: () = assert!(Field::Padding as usize + 1 == table::FIELDS);
const _: () = assert!(TokenKind::Byte as u8 + 1 == KINDS);
