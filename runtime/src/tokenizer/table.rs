//! The compiled tokenizer's byte format: one little-endian table that is read in place.
//!
//! ```text
//! header    magic "OMXT", version, then the `Field`s, all u32
//! directory per `Section`: offset and length in bytes, u32 each
//! sections  at offsets that are multiples of 8, zero padding between them
//! ```
//!
//! Ids that are absent hold [`NONE`]. Everything that indexes something else is checked
//! once, in [`Tables::parse`], so that the encoder can index without further thought.

use std::fmt;

/// First four bytes of a table.
pub const MAGIC: [u8; 4] = *b"OMXT";
/// Version of the format; a table of another version is refused.
pub const VERSION: u32 = 2;
/// Stands for "no id" and for an empty slot of an index.
pub const NONE: u32 = u32::MAX;

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Merges of bytes inside the pieces of a pre-tokenizer.
    ByteLevel,
    /// Scores over characters with byte fallback (SentencePiece).
    Scores,
    /// Merges of characters with byte fallback.
    Characters,
}

impl Model {
    const ALL: [Self; 3] = [Self::ByteLevel, Self::Scores, Self::Characters];

    pub(super) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&model| model as u32 == code)
    }
}

/// Scalars of the header, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Code of a [`Model`].
    Model,
    /// Bits of [`option`].
    Options,
    Vocabulary,
    /// Character classes of the pre-tokenizer, without the end-of-text class.
    Classes,
    /// Splitting stages of the pre-tokenizer.
    Stages,
    /// Longest token in bytes.
    TokenBytesMax,
    Bos,
    Eos,
    Eot,
    Unknown,
    Padding,
}

/// How many [`Field`]s there are.
pub const FIELDS: usize = 11;

/// Bits of [`Field::Options`].
pub mod option {
    /// A piece that is a token as a whole is that token, whatever the merges say.
    pub const IGNORE_MERGES: u32 = 1;
    /// A space goes before text at the start and after every added token.
    pub const SPACE_PREFIX: u32 = 2;
    pub const ADD_BOS: u32 = 4;
    pub const ADD_EOS: u32 = 8;
    /// Bytes that GPT-2's alphabet spells with numbers are pieces apart from others.
    pub const SPLIT_NUMBER_BYTES: u32 = 16;
    pub const ALL: u32 = 31;
}

/// Sections, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// u32 per token and one more: where its bytes start.
    TokenOffsets,
    /// The bytes of all tokens as they appear in text.
    TokenBytes,
    /// u8 per token: kind in the low three bits, then bits of [`flag`].
    TokenFlags,
    /// u32 per byte value: the token of that byte alone.
    ByteIds,
    /// Merges: three u32 per merge in rank order: left, right, merged.
    Merges,
    /// Merges: open-addressing index of `Merges` by [`hash_pair`], u32 rank per slot.
    MergeIndex,
    /// Scores: u32 per token, lower merges first; [`NONE`] never merges.
    Ranks,
    /// Open-addressing index of tokens by [`hash_bytes`], u32 id per slot.
    TextIndex,
    /// u32 ids of the tokens that are matched as whole text, sorted by their bytes.
    Added,
    /// u16 per 256 code points: which block of `ClassLeaves` holds their classes.
    ClassBlocks,
    /// u8 class per code point, in blocks of 256.
    ClassLeaves,
    /// Per stage: u32 number of states, u32 start state, u32 of [`cut`], then u16 per state and class
    /// (the last class is the end of text), padded to a multiple of 4 bytes.
    Stages,
    /// Characters: one bit per pair of bytes that meet at a character border inside a token.
    Joints,
}

/// How many [`Section`]s there are.
pub const SECTIONS: usize = 13;
const NAMES: [&str; SECTIONS] = [
    "token offsets",
    "token bytes",
    "token flags",
    "byte ids",
    "merges",
    "merge index",
    "ranks",
    "text index",
    "added tokens",
    "class blocks",
    "class leaves",
    "stages",
    "joints",
];
/// Size of header and directory in bytes.
pub const HEAD_BYTES: usize = 8 + 4 * FIELDS + 8 * SECTIONS;

/// Bits of a token's flags above its kind.
pub mod flag {
    pub const KIND: u8 = 7;
    /// Generation ends with this token.
    pub const END: u8 = 8;
    /// White space before the token belongs to it.
    pub const STRIP_LEFT: u8 = 16;
    /// White space after the token belongs to it.
    pub const STRIP_RIGHT: u8 = 32;
    pub const ALL: u8 = 63;
}

/// A transition: the next state in the low bits, then what has ended before this class.
pub mod transition {
    pub const STATE: u16 = 0x3fff;
    /// The text so far is a piece.
    pub const PIECE: u16 = 0x4000;
    /// The text so far is not a piece and no piece starts within it.
    pub const SKIP: u16 = 0x8000;
}

/// What becomes of the text that a stage finds.
pub mod cut {
    /// It is a piece.
    pub const WHOLE: u32 = 0;
    /// Its characters are pieces of three, counted from its end.
    pub const THREES: u32 = 1;
    /// Text splits in it where a multiple of three characters is left of it, and nowhere
    /// else: what is before the first place, and after the last, joins its neighbours.
    pub const BEFORE_THREES: u32 = 2;
}

/// Code points per block of the class table.
pub const BLOCK: usize = 256;
/// Blocks that cover all code points.
pub const BLOCKS: usize = 0x110000 / BLOCK;

/// FNV-1a, the hash of [`Section::TextIndex`].
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) as u32
}

/// Multiplicative hash of two ids, the hash of [`Section::MergeIndex`].
#[must_use]
pub fn hash_pair(left: u32, right: u32) -> u32 {
    let key = (u64::from(left) << 32) | u64::from(right);
    let hash = (key ^ (key >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 32) as u32
}

/// Why bytes are not a tokenizer table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The bytes do not start with the magic number.
    NotATokenizer,
    /// The table has another version.
    Version { found: u32 },
    /// A section, or the header, does not hold what it must.
    Invalid {
        section: &'static str,
        reason: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATokenizer => write!(f, "not a tokenizer table"),
            Self::Version { found } => write!(
                f,
                "tokenizer table version {found}, this runtime reads version {VERSION}: \
                 rebuild the plan with this version's omexc"
            ),
            Self::Invalid { section, reason } => {
                write!(f, "invalid tokenizer table: {section}: {reason}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// A section of u32 values, read in place.
#[derive(Clone, Copy)]
pub(super) struct U32s<'a>(&'a [[u8; 4]]);

impl<'a> U32s<'a> {
    pub(super) fn len(self) -> usize {
        self.0.len()
    }

    pub(super) fn at(self, index: usize) -> u32 {
        u32::from_le_bytes(self.0[index])
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u32> + 'a {
        self.0.iter().map(|&bytes| u32::from_le_bytes(bytes))
    }
}

/// A splitting automaton: `table[state * (classes + 1) + class]`.
#[derive(Clone, Copy)]
pub(super) struct Stage<'a> {
    pub(super) start: u16,
    /// One of [`cut`].
    pub(super) cut: u32,
    table: &'a [[u8; 2]],
}

impl Stage<'_> {
    pub(super) fn next(&self, stride: usize, state: u16, class: usize) -> u16 {
        u16::from_le_bytes(self.table[usize::from(state) * stride + class])
    }
}

/// More stages than any known pre-tokenizer has.
pub const STAGES_MAX: usize = 8;

/// The sections of a table.
#[derive(Clone)]
pub(super) struct Tables<'a> {
    pub(super) fields: [u32; FIELDS],
    pub(super) token_offsets: U32s<'a>,
    pub(super) token_bytes: &'a [u8],
    pub(super) token_flags: &'a [u8],
    pub(super) byte_ids: U32s<'a>,
    pub(super) merges: U32s<'a>,
    pub(super) merge_index: U32s<'a>,
    pub(super) ranks: U32s<'a>,
    pub(super) text_index: U32s<'a>,
    pub(super) added: U32s<'a>,
    pub(super) class_blocks: &'a [[u8; 2]],
    pub(super) class_leaves: &'a [u8],
    pub(super) stages: [Stage<'a>; STAGES_MAX],
    pub(super) joints: &'a [u8],
}

impl<'a> Tables<'a> {
    pub(super) fn field(&self, field: Field) -> u32 {
        self.fields[field as usize]
    }

    pub(super) fn token(&self, id: u32) -> &'a [u8] {
        let id = id as usize;
        &self.token_bytes
            [self.token_offsets.at(id) as usize..self.token_offsets.at(id + 1) as usize]
    }

    /// Finds the sections and checks all that they hold: afterwards every id, offset,
    /// state and class is in range and every index has an empty slot, where its probing
    /// ends.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let tables = Self::find(bytes)?;
        tables.check()?;
        Ok(tables)
    }

    /// Finds the sections, whose contents may still be anything.
    pub(super) fn find(bytes: &'a [u8]) -> Result<Self, Error> {
        let word = |at: usize| -> Result<u32, Error> {
            header(bytes.len() >= at + 4, "truncated")?;
            let word = bytes[at..at + 4].try_into().expect("four bytes");
            Ok(u32::from_le_bytes(word))
        };
        if bytes.get(..4) != Some(&MAGIC) {
            return Err(Error::NotATokenizer);
        }
        let version = word(4)?;
        if version != VERSION {
            return Err(Error::Version { found: version });
        }
        let mut fields = [0; FIELDS];
        for (i, field) in fields.iter_mut().enumerate() {
            *field = word(8 + 4 * i)?;
        }
        let mut sections = [&[][..]; SECTIONS];
        let mut end = HEAD_BYTES;
        for (i, section) in sections.iter_mut().enumerate() {
            let at = 8 + 4 * FIELDS + 8 * i;
            let (offset, len) = (word(at)? as usize, word(at + 4)? as usize);
            let invalid = |reason| Error::Invalid {
                section: NAMES[i],
                reason,
            };
            let start = end.next_multiple_of(8);
            if offset != start {
                return Err(invalid("not where the section before it ends"));
            }
            end = start.checked_add(len).ok_or(invalid("too long"))?;
            *section = bytes
                .get(start..end)
                .ok_or(invalid("past the end of the table"))?;
        }
        header(end == bytes.len(), "bytes after the last section")?;
        let u32s = |section: Section| {
            let (words, rest) = sections[section as usize].as_chunks::<4>();
            ensure(rest.is_empty(), section, "not whole words").map(|()| U32s(words))
        };
        let (class_blocks, rest) = sections[Section::ClassBlocks as usize].as_chunks::<2>();
        ensure(rest.is_empty(), Section::ClassBlocks, "not whole entries")?;
        Ok(Self {
            fields,
            token_offsets: u32s(Section::TokenOffsets)?,
            token_bytes: sections[Section::TokenBytes as usize],
            token_flags: sections[Section::TokenFlags as usize],
            byte_ids: u32s(Section::ByteIds)?,
            merges: u32s(Section::Merges)?,
            merge_index: u32s(Section::MergeIndex)?,
            ranks: u32s(Section::Ranks)?,
            text_index: u32s(Section::TextIndex)?,
            added: u32s(Section::Added)?,
            class_blocks,
            class_leaves: sections[Section::ClassLeaves as usize],
            stages: stages(&fields, sections[Section::Stages as usize])?,
            joints: sections[Section::Joints as usize],
        })
    }

    fn check(&self) -> Result<(), Error> {
        let vocabulary = self.field(Field::Vocabulary);
        let model = Model::from_code(self.field(Field::Model));
        header(model.is_some(), "unknown model")?;
        let scores = model == Some(Model::Scores);
        let characters = model != Some(Model::ByteLevel);
        header(
            self.field(Field::Options) & !option::ALL == 0,
            "unknown option bits",
        )?;
        header(
            vocabulary > 0 && vocabulary < NONE,
            "vocabulary size out of range",
        )?;
        for id in [
            Field::Bos,
            Field::Eos,
            Field::Eot,
            Field::Unknown,
            Field::Padding,
        ] {
            let id = self.field(id);
            header(
                id == NONE || id < vocabulary,
                "special token out of the vocabulary",
            )?;
        }
        let count = vocabulary as usize;

        let offsets = self.token_offsets;
        ensure(
            offsets.len() == count + 1
                && offsets.at(0) == 0
                && offsets.at(count) as usize == self.token_bytes.len(),
            Section::TokenOffsets,
            "do not cover the token bytes",
        )?;
        let mut longest = 0;
        let mut last = 0;
        for offset in offsets.iter() {
            ensure(offset >= last, Section::TokenOffsets, "not ascending")?;
            longest = longest.max(offset - last);
            last = offset;
        }
        header(
            longest == self.field(Field::TokenBytesMax),
            "wrong longest token",
        )?;

        ensure(
            self.token_flags.len() == count
                && (self.token_flags.iter())
                    .all(|f| f & !flag::ALL == 0 && f & flag::KIND < super::KINDS),
            Section::TokenFlags,
            "not one valid entry per token",
        )?;

        let ids = |ids: U32s<'a>, none: bool, section| {
            let valid = |id| id < vocabulary || (none && id == NONE);
            ensure(
                ids.iter().all(valid),
                section,
                "a token out of the vocabulary",
            )
        };
        let byte_ids = self.byte_ids;
        ensure(byte_ids.len() == 256, Section::ByteIds, "not 256 entries")?;
        ids(byte_ids, true, Section::ByteIds)?;

        ensure(
            self.merges.len().is_multiple_of(3),
            Section::Merges,
            "not whole merges",
        )?;
        ids(self.merges, false, Section::Merges)?;
        let merges = self.merges.len() / 3;
        check_index(self.merge_index, Section::MergeIndex, merges)?;
        check_index(self.text_index, Section::TextIndex, count)?;
        ensure(
            self.ranks.len() == if scores { count } else { 0 },
            Section::Ranks,
            "not one per token of a model with scores",
        )?;
        ensure(
            self.joints.len() == if characters { 256 * 256 / 8 } else { 0 },
            Section::Joints,
            "not those of a model of characters",
        )?;

        ids(self.added, false, Section::Added)?;
        let mut before: &[u8] = &[];
        for id in self.added.iter() {
            ensure(
                self.token(id) > before,
                Section::Added,
                "not sorted, or an empty or repeated text",
            )?;
            before = self.token(id);
        }

        if self.field(Field::Stages) == 0 {
            return Ok(());
        }
        let (blocks, leaves) = (self.class_blocks, self.class_leaves);
        let covered =
            |&block: &[u8; 2]| (usize::from(u16::from_le_bytes(block)) + 1) * BLOCK <= leaves.len();
        ensure(
            blocks.len() == BLOCKS && blocks.iter().all(covered),
            Section::ClassBlocks,
            "do not cover all code points",
        )?;
        let classes = self.field(Field::Classes);
        ensure(
            leaves.iter().all(|&class| u32::from(class) < classes),
            Section::ClassLeaves,
            "a class out of range",
        )
    }
}

fn header(holds: bool, reason: &'static str) -> Result<(), Error> {
    let section = "header";
    holds
        .then_some(())
        .ok_or(Error::Invalid { section, reason })
}

fn ensure(holds: bool, section: Section, reason: &'static str) -> Result<(), Error> {
    let section = NAMES[section as usize];
    holds
        .then_some(())
        .ok_or(Error::Invalid { section, reason })
}

fn check_index(index: U32s<'_>, section: Section, entries: usize) -> Result<(), Error> {
    ensure(
        index.len().is_power_of_two(),
        section,
        "size is not a power of two",
    )?;
    let mut free = false;
    for slot in index.iter() {
        free |= slot == NONE;
        ensure(
            slot == NONE || (slot as usize) < entries,
            section,
            "an entry out of range",
        )?;
    }
    ensure(free, section, "no free slot")
}

/// The splitting automata of a section, whose every transition leads to one of their
/// states. There are few of them, so they are checked where they are found.
fn stages<'a>(fields: &[u32; FIELDS], section: &'a [u8]) -> Result<[Stage<'a>; STAGES_MAX], Error> {
    let mut stages = [Stage {
        start: 0,
        cut: cut::WHOLE,
        table: &[],
    }; STAGES_MAX];
    let count = fields[Field::Stages as usize] as usize;
    header(count <= STAGES_MAX, "too many stages")?;
    let classes = fields[Field::Classes as usize] as usize;
    header(classes <= 255, "too many classes")?;
    let ensure = |holds, reason| ensure(holds, Section::Stages, reason);
    let mut rest = section;
    for stage in &mut stages[..count] {
        let Some((head, tail)) = rest.split_first_chunk::<12>() else {
            return Err(Error::Invalid {
                section: NAMES[Section::Stages as usize],
                reason: "truncated",
            });
        };
        let [states, start, cut] = [&head[..4], &head[4..8], &head[8..]]
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")));
        ensure(cut <= cut::BEFORE_THREES, "an unknown way to cut")?;
        ensure(
            states > 0 && states <= u32::from(transition::STATE) + 1 && start < states,
            "number of states or start state out of range",
        )?;
        let bytes = states as usize * (classes + 1) * 2;
        let padded = bytes.next_multiple_of(4);
        ensure(tail.len() >= padded, "truncated")?;
        let (table, _) = tail[..bytes].as_chunks::<2>();
        let leads = |&t: &[u8; 2]| u32::from(u16::from_le_bytes(t) & transition::STATE) < states;
        ensure(table.iter().all(leads), "a transition out of range")?;
        *stage = Stage {
            start: start as u16,
            cut,
            table,
        };
        rest = &tail[padded..];
    }
    ensure(rest.is_empty(), "bytes after the last stage")?;
    Ok(stages)
}
