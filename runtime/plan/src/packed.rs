//! The packed model: a page file in kernel layout, shared by all plans on a model.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | magic `OMEXPACK` |
//! | 8..12 | packed version, u32 LE |
//! | 12..16 | zero |
//! | 16..24 | length of the index in bytes, u64 LE |
//! | 24..32 | length of the file in bytes, u64 LE |
//! | 32..64 | BLAKE3 of the index: the digest that names the packed model |
//! | 64.. | index: the encoded [`PackedIndex`], padded with zeros to 16 KiB |
//! | .. | pages, each starting at a multiple of 16 KiB, padded with zeros |
//!
//! The index holds every page's BLAKE3, so its own digest covers the model.

use omex_kernels::WeightFormat;
use omex_kernels::spec::TableLayout;

use crate::ids::PageId;
use crate::wire::{self, Decode, DecodeError, Encode};

pub const PACKED_MAGIC: [u8; 8] = *b"OMEXPACK";
pub const PACKED_VERSION: u32 = 2;
pub const PACKED_HEADER_BYTES: u64 = 64;
/// Alignment of pages in the file: O_DIRECT and kernels with 16 KiB pages.
pub const PAGE_ALIGN: u64 = 16 << 10;
/// Pages are filled up to this; only a single panel or row may exceed it.
pub const PAGE_BYTES_MAX: u64 = 1 << 20;

pub type Digest = [u8; 32];

/// A weight format in metadata, by its ggml type number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FormatCode(pub u32);

impl FormatCode {
    pub fn new(format: WeightFormat) -> FormatCode {
        FormatCode(format.ggml_type())
    }
    pub fn get(self) -> Option<WeightFormat> {
        WeightFormat::from_ggml_type(self.0)
    }
}

/// One page: `bytes` bytes at `file_offset`, a multiple of [`PAGE_ALIGN`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Page {
    pub file_offset: u64,
    pub bytes: u64,
    /// BLAKE3 of the page's `bytes` bytes.
    pub digest: Digest,
}

/// Consecutive units (panels, or rows of a row-major table) within one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Piece {
    pub page: PageId,
    /// From the page's start; a multiple of 64.
    pub offset: u64,
    pub first_unit: u32,
    pub units: u32,
}

/// How a tensor lies in its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PackedLayout {
    /// Row-major; units are rows.
    Rows,
    /// 16-row panels; units are panels.
    Panels,
    /// A vector of f32, zero-padded to a multiple of 16; one unit.
    Vector,
}

/// A tensor of the packed model. Pieces cover its units in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Tensor {
    pub name: String,
    pub format: FormatCode,
    pub layout: PackedLayout,
    pub rows: u32,
    pub k: u32,
    pub pieces: Vec<Piece>,
}

impl Tensor {
    /// Units and bytes of each, or `None` for an unknown format or a shape
    /// outside the limits.
    pub fn unit(&self) -> Option<(u32, u64)> {
        let format = self.format.get()?;
        let max = omex_kernels::spec::EXTENT_MAX;
        let shape_ok = (1..=max).contains(&self.rows)
            && (1..=max).contains(&self.k)
            && self.k.is_multiple_of(format.k_multiple());
        if !shape_ok {
            return None;
        }
        match self.layout {
            PackedLayout::Rows => Some((self.rows, format.row_bytes(self.k))),
            PackedLayout::Panels => Some((self.rows.div_ceil(16), format.panel_bytes(self.k))),
            PackedLayout::Vector if self.rows == 1 && format == WeightFormat::F32 => {
                Some((1, omex_kernels::pad_to_panel(self.k) as u64 * 4))
            }
            PackedLayout::Vector => None,
        }
    }

    /// Bytes of all units.
    pub fn bytes(&self) -> Option<u64> {
        let (units, unit_bytes) = self.unit()?;
        Some(units as u64 * unit_bytes)
    }

    /// The layout as kernels name it; a vector has none.
    pub fn table_layout(&self) -> Option<TableLayout> {
        match self.layout {
            PackedLayout::Rows => Some(TableLayout::Rows),
            PackedLayout::Panels => Some(TableLayout::Panels),
            PackedLayout::Vector => None,
        }
    }
}

/// The index of a packed model file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PackedIndex {
    /// BLAKE3 of the model file that was packed.
    pub source_digest: Digest,
    /// The name that the model has for itself, for people; empty without one. Not
    /// the file's: equal models give equal indexes, whatever their files are called.
    pub model_name: String,
    pub pages: Vec<Page>,
    /// In schedule order.
    pub tensors: Vec<Tensor>,
}

impl PackedIndex {
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<PackedIndex, DecodeError> {
        wire::decode(bytes)
    }
}

/// The fixed header in front of an index.
pub fn packed_header(index: &[u8], file_bytes: u64) -> [u8; PACKED_HEADER_BYTES as usize] {
    let mut header = [0; PACKED_HEADER_BYTES as usize];
    header[..8].copy_from_slice(&PACKED_MAGIC);
    header[8..12].copy_from_slice(&PACKED_VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&(index.len() as u64).to_le_bytes());
    header[24..32].copy_from_slice(&file_bytes.to_le_bytes());
    header[32..64].copy_from_slice(blake3::hash(index).as_bytes());
    header
}
