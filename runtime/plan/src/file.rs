//! The plan file: a fixed little-endian header, then sections.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | magic `OMEXPLAN` |
//! | 8..12 | plan version |
//! | 12..16 | numerics version |
//! | 16..20 | packed version |
//! | 20..24 | kernel ABI version |
//! | 24..28 | architecture: 1 x86-64, 2 aarch64 |
//! | 28..32 | number of sections, 4 |
//! | 32..40 | length of the file |
//! | 40..64 | zero |
//! | 64..288 | 4 section entries of 56 bytes: kind u32, zero u32, offset u64, length u64, BLAKE3 |
//! | 288..320 | BLAKE3 of bytes 0..288 |
//!
//! Sections follow in the order metadata, code, tokenizer, pages, each starting
//! at a multiple of 4096 (pages: 16 KiB), gaps zero. The pages section holds a
//! whole packed model when the plan is bundled, otherwise it is empty.

use std::ops::Range;

use crate::packed::{PACKED_VERSION, PAGE_ALIGN};
use crate::plan::Plan;
use crate::{PLAN_VERSION, wire};
use omex_kernels::{NUMERICS_VERSION, abi::ABI_VERSION};

pub const PLAN_MAGIC: [u8; 8] = *b"OMEXPLAN";
const SECTIONS: usize = 4;
const ENTRY_BYTES: usize = 56;
const HEADER_DIGEST_AT: usize = 64 + SECTIONS * ENTRY_BYTES;
pub const HEADER_BYTES: usize = HEADER_DIGEST_AT + 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum SectionKind {
    Metadata = 1,
    Code = 2,
    Tokenizer = 3,
    Pages = 4,
}

impl SectionKind {
    pub const ALL: [SectionKind; SECTIONS] = [
        SectionKind::Metadata,
        SectionKind::Code,
        SectionKind::Tokenizer,
        SectionKind::Pages,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            SectionKind::Metadata => "metadata",
            SectionKind::Code => "code",
            SectionKind::Tokenizer => "tokenizer",
            SectionKind::Pages => "pages",
        }
    }

    const fn align(self) -> u64 {
        match self {
            SectionKind::Metadata | SectionKind::Code | SectionKind::Tokenizer => 4096,
            SectionKind::Pages => PAGE_ALIGN,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    pub offset: u64,
    pub bytes: u64,
    pub digest: [u8; 32],
}

/// A verified header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub arch: Arch,
    pub file_bytes: u64,
    sections: [Section; SECTIONS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Arch {
    X86_64 = 1,
    Aarch64 = 2,
}

impl Arch {
    pub const fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }
}

/// Why bytes are not a plan that this build runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    NotAPlan,
    Truncated {
        needed: u64,
        found: u64,
    },
    Version {
        what: &'static str,
        plan: u32,
        runtime: u32,
    },
    Malformed(&'static str),
    Digest {
        section: &'static str,
    },
    Metadata(String),
}

impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FileError::NotAPlan => write!(f, "not an OMEX plan: the magic is missing"),
            FileError::Truncated { needed, found } => write!(
                f,
                "the plan is {found} bytes long where its header says {needed}"
            ),
            FileError::Version {
                what,
                plan,
                runtime,
            } => write!(
                f,
                "the plan has {what} version {plan}, this runtime has {runtime}; rebuild with `omexc build`"
            ),
            FileError::Malformed(what) => write!(f, "the plan's header is malformed: {what}"),
            FileError::Digest { section } => {
                write!(f, "the plan's {section} does not match its digest")
            }
            FileError::Metadata(what) => write!(f, "the plan's metadata is malformed: {what}"),
        }
    }
}

impl std::error::Error for FileError {}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    /// Verifies the first [`HEADER_BYTES`] bytes of a file of `file_bytes` bytes.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Header, FileError> {
        if bytes.len() < 8 || bytes[..8] != PLAN_MAGIC {
            return Err(FileError::NotAPlan);
        }
        if bytes.len() < HEADER_BYTES {
            return Err(FileError::Truncated {
                needed: HEADER_BYTES as u64,
                found: file_bytes,
            });
        }
        let versions = [
            ("plan", u32_at(bytes, 8), PLAN_VERSION),
            ("numerics", u32_at(bytes, 12), NUMERICS_VERSION),
            ("packed-model", u32_at(bytes, 16), PACKED_VERSION),
            ("kernel ABI", u32_at(bytes, 20), ABI_VERSION),
        ];
        for (what, plan, runtime) in versions {
            if plan != runtime {
                return Err(FileError::Version {
                    what,
                    plan,
                    runtime,
                });
            }
        }
        let digest = blake3::hash(&bytes[..HEADER_DIGEST_AT]);
        if digest.as_bytes()[..] != bytes[HEADER_DIGEST_AT..HEADER_BYTES] {
            return Err(FileError::Digest { section: "header" });
        }
        let arch = match u32_at(bytes, 24) {
            1 => Arch::X86_64,
            2 => Arch::Aarch64,
            _ => return Err(FileError::Malformed("unknown architecture")),
        };
        if u64_at(bytes, 32) != file_bytes {
            return Err(FileError::Truncated {
                needed: u64_at(bytes, 32),
                found: file_bytes,
            });
        }
        if u32_at(bytes, 28) != SECTIONS as u32 {
            return Err(FileError::Malformed("section count"));
        }
        let mut end = HEADER_BYTES as u64;
        let mut sections = [Section {
            offset: 0,
            bytes: 0,
            digest: [0; 32],
        }; SECTIONS];
        for (i, kind) in SectionKind::ALL.into_iter().enumerate() {
            let at = 64 + i * ENTRY_BYTES;
            let (offset, length) = (u64_at(bytes, at + 8), u64_at(bytes, at + 16));
            if u32_at(bytes, at) != kind as u32 {
                return Err(FileError::Malformed("section order"));
            }
            let fits = offset
                .checked_add(length)
                .is_some_and(|section_end| section_end <= file_bytes);
            if end.checked_next_multiple_of(kind.align()) != Some(offset) || !fits {
                return Err(FileError::Malformed("section range"));
            }
            end = offset + length;
            sections[i] = Section {
                offset,
                bytes: length,
                digest: bytes[at + 24..at + 56].try_into().expect("32 bytes"),
            };
        }
        if end != file_bytes {
            return Err(FileError::Malformed("bytes behind the last section"));
        }
        Ok(Header {
            arch,
            file_bytes,
            sections,
        })
    }

    /// What lies between header and sections: zeros, less than the alignment of a
    /// section each.
    pub fn gaps(&self) -> impl Iterator<Item = Range<u64>> {
        let ends = self.sections.iter().map(|s| s.offset + s.bytes);
        let ends = std::iter::once(HEADER_BYTES as u64).chain(ends);
        let starts = self.sections.iter().map(|s| s.offset);
        ends.zip(starts).map(|(end, start)| end..start)
    }

    pub fn section(&self, kind: SectionKind) -> &Section {
        &self.sections[kind as usize - 1]
    }

    /// Errors unless `bytes` has the digest that the header gives the section.
    pub fn verify(&self, kind: SectionKind, bytes: &[u8]) -> Result<(), FileError> {
        let section = self.section(kind);
        let same = blake3::hash(bytes).as_bytes() == &section.digest;
        if bytes.len() as u64 == section.bytes && same {
            Ok(())
        } else {
            Err(FileError::Digest {
                section: kind.name(),
            })
        }
    }
}

/// Decodes a verified metadata section.
pub fn decode_metadata(bytes: &[u8]) -> Result<Plan, FileError> {
    wire::decode(bytes).map_err(|e| FileError::Metadata(e.0))
}

/// The encoded metadata of a plan.
pub fn encode_metadata(plan: &Plan) -> Vec<u8> {
    wire::encode(plan)
}

/// A plan file without its pages section's bytes, and the offset at which
/// those belong: the rest of a file of `header.file_bytes` bytes.
#[derive(Debug)]
pub struct Image {
    pub bytes: Vec<u8>,
    pub pages_offset: u64,
}

/// Lays out a plan file. `pages` is the length and digest of the packed model
/// to bundle, or `None`.
pub fn encode(
    plan: &Plan,
    arch: Arch,
    code: &[u8],
    tokenizer: &[u8],
    pages: Option<(u64, [u8; 32])>,
) -> Image {
    let metadata = encode_metadata(plan);
    let (pages_bytes, pages_digest) = pages.unwrap_or((0, *blake3::hash(&[]).as_bytes()));
    let mut bytes = vec![0; HEADER_BYTES];
    let mut sections = Vec::with_capacity(SECTIONS);
    for (kind, data) in [
        (SectionKind::Metadata, &metadata[..]),
        (SectionKind::Code, code),
        (SectionKind::Tokenizer, tokenizer),
    ] {
        let offset = (bytes.len() as u64).next_multiple_of(kind.align());
        bytes.resize(offset as usize, 0);
        bytes.extend_from_slice(data);
        sections.push((
            kind,
            offset,
            data.len() as u64,
            *blake3::hash(data).as_bytes(),
        ));
    }
    let pages_offset = (bytes.len() as u64).next_multiple_of(SectionKind::Pages.align());
    bytes.resize(pages_offset as usize, 0);
    sections.push((SectionKind::Pages, pages_offset, pages_bytes, pages_digest));

    bytes[..8].copy_from_slice(&PLAN_MAGIC);
    let words = [
        PLAN_VERSION,
        NUMERICS_VERSION,
        PACKED_VERSION,
        ABI_VERSION,
        arch as u32,
        SECTIONS as u32,
    ];
    for (i, word) in words.into_iter().enumerate() {
        bytes[8 + 4 * i..12 + 4 * i].copy_from_slice(&word.to_le_bytes());
    }
    bytes[32..40].copy_from_slice(&(pages_offset + pages_bytes).to_le_bytes());
    for (i, (kind, offset, length, digest)) in sections.into_iter().enumerate() {
        let entry = &mut bytes[64 + i * ENTRY_BYTES..64 + (i + 1) * ENTRY_BYTES];
        entry[..4].copy_from_slice(&(kind as u32).to_le_bytes());
        entry[8..16].copy_from_slice(&offset.to_le_bytes());
        entry[16..24].copy_from_slice(&length.to_le_bytes());
        entry[24..56].copy_from_slice(&digest);
    }
    let digest = blake3::hash(&bytes[..HEADER_DIGEST_AT]);
    bytes[HEADER_DIGEST_AT..HEADER_BYTES].copy_from_slice(digest.as_bytes());
    Image {
        bytes,
        pages_offset,
    }
}
