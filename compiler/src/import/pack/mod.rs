//! Repacking a model's weights into the packed model that plans run on.
//!
//! The file's format is that of [`omex_plan::packed`]. Packing streams: a
//! thread holds one page and the rows that it is made of, so the RAM needed
//! does not grow with the model. Packed models lie in a cache directory under
//! their digest; the bytes depend on nothing but the source file and the
//! order of its tensors.

mod cache;
mod frames;
mod layout;
#[cfg(test)]
mod tests;
mod write;

use std::path::PathBuf;

use omex_plan::packed::{Digest, PackedIndex, PackedLayout};

pub use cache::{file_name, open, pack_into_cache};
pub use frames::{FramesFile, compress_into_cache};

use super::gguf::{Gguf, TensorId};
use super::{ImportError, MappedFile};

/// A model file to pack.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub file: &'a MappedFile,
    pub gguf: &'a Gguf<'a>,
}

/// A tensor to pack, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// In the packed model.
    pub name: String,
    pub tensor: TensorId,
    pub layout: PackedLayout,
    /// The first row, or the first element of a vector.
    pub first: u32,
    /// Rows, or elements of a vector.
    pub count: u32,
}

/// What packing is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The digest of the source is being computed.
    Hashing { done_bytes: u64, total_bytes: u64 },
    /// Another process is packing into the same cache.
    Waiting,
    /// `done_bytes` of the packed model are written. Threads report on their
    /// own, so a smaller figure may follow a larger one.
    Packing { done_bytes: u64, total_bytes: u64 },
    /// Frames of `done_bytes` of pages are made.
    Compressing { done_bytes: u64, total_bytes: u64 },
}

/// A packed model in the cache, complete and under its final name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedModel {
    pub path: PathBuf,
    /// BLAKE3 of the index: names the packed model.
    pub digest: Digest,
    pub file_bytes: u64,
    pub index: PackedIndex,
}

/// What packing a model takes, before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedSize {
    /// Bytes of all weights in the packed layout, without padding.
    pub weights_bytes: u64,
    pub file_bytes: u64,
}

/// The size of the packed model.
///
/// # Errors
///
/// A tensor whose type or shape is not supported.
pub fn packed_size(gguf: &Gguf<'_>, order: &[Part]) -> Result<PackedSize, ImportError> {
    let layout = layout::lay_out(gguf, order)?;
    let tensors = layout.index.tensors.iter();
    Ok(PackedSize {
        weights_bytes: tensors
            .map(|t| t.bytes().expect("the layout checked the shape"))
            .sum(),
        file_bytes: layout.file_bytes,
    })
}
