//! GGUF, version 2 and 3, little-endian.
//!
//! Source: `docs/gguf.md` of ggml. A file is a header (magic, version, counts),
//! metadata (keys with typed values), an entry per tensor, and the tensors'
//! bytes, aligned to `general.alignment`.
//!
//! [`Gguf::parse`] borrows from the file's bytes and checks all of it up front;
//! a [`Gguf`] that exists has unique keys and names, and tensors that lie
//! aligned inside the file and do not overlap.

mod lookup;
mod read;
#[cfg(test)]
mod tests;
mod value;
pub mod write;

use std::collections::BTreeMap;
use std::ops::Range;

pub use lookup::StrArray;
pub use value::{Array, ArrayIter, Value, ValueType};

use super::ImportError;
use super::ggml_type::{GgmlType, removed_type_name};
use crate::diagnostic::{Code, quoted};
use read::Cursor;

/// The alignment of a file that states none.
pub const ALIGNMENT_DEFAULT: u64 = 32;

/// Limits that no sound file comes near; they bound what a hostile one can
/// make us allocate and keep busy with.
const KEYS_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 18;
const ALIGNMENT_MAX: u64 = 1 << 20;
const DIMS_MAX: u32 = 4;

/// A parsed GGUF file.
#[derive(Debug)]
pub struct Gguf<'a> {
    pub version: u32,
    /// Where each tensor's first byte is a multiple of, in bytes.
    pub alignment_bytes: u64,
    bytes: &'a [u8],
    metadata: Vec<Entry<'a>>,
    keys: BTreeMap<&'a str, usize>,
    tensors: Vec<Tensor<'a>>,
    names: BTreeMap<&'a str, usize>,
}

/// A metadata key and its value.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub key: &'a str,
    pub value: Value<'a>,
    /// Where the entry begins in the file.
    pub offset_bytes: u64,
}

/// Index into [`Gguf::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u32);

/// A tensor's entry.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    pub name: &'a str,
    pub ggml_type: GgmlType,
    n_dims: usize,
    ne: [u64; DIMS_MAX as usize],
    /// The tensor's bytes in the file.
    pub range: Range<u64>,
    /// Where the tensor's entry begins in the file.
    pub offset_bytes: u64,
}

impl Tensor<'_> {
    /// The dimensions in ggml's order: the row length first, then the number
    /// of rows.
    pub fn dims(&self) -> &[u64] {
        &self.ne[..self.n_dims]
    }

    /// Elements of a row.
    pub fn row_elements(&self) -> u64 {
        self.ne[0]
    }

    /// Rows, over all further dimensions.
    pub fn rows(&self) -> u64 {
        self.ne[1..].iter().product()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u64 {
        self.ne[0] / self.ggml_type.block_elements() * self.ggml_type.block_bytes()
    }

    pub fn size_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl<'a> Gguf<'a> {
    /// Parses and checks a whole file.
    ///
    /// # Errors
    ///
    /// Any departure from the format is an [`ImportError`] with the byte offset;
    /// the caller adds the file's name with [`ImportError::in_file`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImportError> {
        let mut cursor = Cursor::new(bytes);
        let version = parse_version(&mut cursor)?;
        // A tensor's entry has a name, a number of dimensions, at least one of
        // them, a type and an offset; a metadata entry has a key, a type and at
        // least a byte of value.
        let tensor_count =
            cursor.count("the number of tensors", 8 + 1 + 4 + 8 + 4 + 8, TENSORS_MAX)?;
        let key_count = cursor.count("the number of metadata keys", 8 + 1 + 4 + 1, KEYS_MAX)?;

        let mut metadata = Vec::new();
        let mut keys = BTreeMap::new();
        for _ in 0..key_count {
            let entry = parse_entry(&mut cursor)?;
            let index = metadata.len();
            if let Some(first) = keys.insert(entry.key, index) {
                let first: &Entry<'_> = &metadata[first];
                return Err(ImportError::new(
                    Code::ModelMetadata,
                    format!(
                        "metadata key {} is there twice, first at byte {}",
                        quoted(entry.key),
                        first.offset_bytes
                    ),
                )
                .at(entry.offset_bytes));
            }
            metadata.push(entry);
        }
        let alignment_bytes = alignment(&metadata, &keys)?;

        let mut tensors = Vec::new();
        let mut names = BTreeMap::new();
        for _ in 0..tensor_count {
            let tensor = parse_tensor(&mut cursor, alignment_bytes)?;
            let index = tensors.len();
            if let Some(first) = names.insert(tensor.name, index) {
                let first: &Tensor<'_> = &tensors[first];
                return Err(ImportError::new(
                    Code::ModelTensor,
                    format!(
                        "tensor {} is there twice, first at byte {}",
                        quoted(tensor.name),
                        first.offset_bytes
                    ),
                )
                .at(tensor.offset_bytes));
            }
            tensors.push(tensor);
        }
        place_tensors(
            &mut tensors,
            cursor.position(),
            alignment_bytes,
            bytes.len() as u64,
        )?;
        Ok(Self {
            version,
            alignment_bytes,
            bytes,
            metadata,
            keys,
            tensors,
            names,
        })
    }

    /// The metadata, in file order.
    pub fn metadata(&self) -> &[Entry<'a>] {
        &self.metadata
    }

    /// The tensors, in file order.
    pub fn tensors(&self) -> &[Tensor<'a>] {
        &self.tensors
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor<'a>> {
        self.names.get(name).map(|&i| &self.tensors[i])
    }

    pub fn tensor_at(&self, id: TensorId) -> &Tensor<'a> {
        &self.tensors[id.0 as usize]
    }

    /// A tensor's bytes.
    pub fn data(&self, tensor: &Tensor<'_>) -> &'a [u8] {
        // `place_tensors` put the range inside the file.
        &self.bytes[tensor.range.start as usize..tensor.range.end as usize]
    }
}

fn parse_version(cursor: &mut Cursor<'_>) -> Result<u32, ImportError> {
    let magic = cursor.take(4, "the magic number")?;
    match magic {
        b"GGUF" => {}
        b"FUGG" => return Err(big_endian(0)),
        _ => {
            let error = ImportError::new(
                Code::ModelInvalid,
                format!(
                    "not a GGUF file: it begins with \"{}\", not with \"GGUF\"",
                    magic.escape_ascii()
                ),
            )
            .at(0);
            return Err(match magic {
                b"lmgg" | b"fmgg" | b"tjgg" | b"ggml" | b"ggmf" | b"ggjt" => {
                    error.help("this is a ggml file from before GGUF; convert the model again")
                }
                b"PK\x03\x04" => error.help("this is a zip archive, perhaps a PyTorch checkpoint"),
                _ => error,
            });
        }
    }
    let at = cursor.position();
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        1 => Err(ImportError::new(
            Code::ModelInvalid,
            "GGUF version 1; versions 2 and 3 are read",
        )
        .at(at)
        .help("convert the model again with a current converter")),
        _ if (1..=0xFFFF).contains(&version.swap_bytes()) => Err(big_endian(at)),
        _ => Err(ImportError::new(
            Code::ModelInvalid,
            format!("GGUF version {version}; versions 2 and 3 are read"),
        )
        .at(at)),
    }
}

fn big_endian(at: u64) -> ImportError {
    ImportError::new(
        Code::ModelInvalid,
        "a big-endian GGUF file; little-endian ones are read",
    )
    .at(at)
    .help("convert it with gguf-convert-endian")
}

fn parse_entry<'a>(cursor: &mut Cursor<'a>) -> Result<Entry<'a>, ImportError> {
    let offset_bytes = cursor.position();
    let key = cursor.name("a metadata key")?;
    Ok(Entry {
        key,
        value: cursor.value(key)?,
        offset_bytes,
    })
}

fn alignment(metadata: &[Entry<'_>], keys: &BTreeMap<&str, usize>) -> Result<u64, ImportError> {
    let Some(&index) = keys.get("general.alignment") else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    let entry = &metadata[index];
    match entry.value {
        Value::U32(v) if v.is_power_of_two() && v >= 8 && u64::from(v) <= ALIGNMENT_MAX => Ok(v.into()),
        value => Err(ImportError::new(
            Code::ModelMetadata,
            format!(
                "general.alignment is {value} ({}); a uint32 power of two from 8 to {ALIGNMENT_MAX} is needed",
                value.type_name()
            ),
        )
        .at(entry.offset_bytes)),
    }
}

/// Parses a tensor's entry. The range is still relative to the tensor data.
fn parse_tensor<'a>(
    cursor: &mut Cursor<'a>,
    alignment_bytes: u64,
) -> Result<Tensor<'a>, ImportError> {
    let offset_bytes = cursor.position();
    let name = cursor.name("a tensor's name")?;
    let fault = |at: u64, code: Code, what: String| {
        ImportError::new(code, format!("tensor {} {what}", quoted(name))).at(at)
    };

    let at = cursor.position();
    let n_dims = cursor.u32("a tensor's number of dimensions")?;
    if !(1..=DIMS_MAX).contains(&n_dims) {
        return Err(fault(
            at,
            Code::ModelInvalid,
            format!("has {n_dims} dimensions; 1 to {DIMS_MAX} are possible"),
        ));
    }
    let mut ne = [1u64; DIMS_MAX as usize];
    let mut elements = Some(1u64);
    for dim in &mut ne[..n_dims as usize] {
        *dim = cursor.u64("a tensor's dimensions")?;
        elements = elements.and_then(|e| e.checked_mul(*dim));
    }
    let dims = &ne[..n_dims as usize];
    if dims.contains(&0) {
        return Err(fault(
            at,
            Code::ModelInvalid,
            format!("has a dimension of 0: {dims:?}"),
        ));
    }

    let type_at = cursor.position();
    let id = cursor.u32("a tensor's type")?;
    let ggml_type = GgmlType::from_id(id).ok_or_else(|| match removed_type_name(id) {
        Some(removed) => fault(
            type_at,
            Code::ModelUnsupported,
            format!("has type {id} ({removed}), which ggml has removed"),
        )
        .help("quantize the model again"),
        None => fault(
            type_at,
            Code::ModelTensor,
            format!("has type {id}, which ggml does not know"),
        ),
    })?;
    if !ne[0].is_multiple_of(ggml_type.block_elements()) {
        return Err(fault(
            at,
            Code::ModelTensor,
            format!(
                "has rows of {} elements, not a multiple of the {} elements of a {} block",
                ne[0],
                ggml_type.block_elements(),
                ggml_type.name()
            ),
        ));
    }
    let size = elements
        .and_then(|e| (e / ggml_type.block_elements()).checked_mul(ggml_type.block_bytes()))
        .ok_or_else(|| {
            fault(
                at,
                Code::ModelInvalid,
                format!("has more than 2^64 elements or bytes: {dims:?}"),
            )
        })?;

    let start_at = cursor.position();
    let start = cursor.u64("a tensor's offset")?;
    if !start.is_multiple_of(alignment_bytes) {
        return Err(fault(
            start_at,
            Code::ModelTensor,
            format!("begins at offset {start}, not a multiple of the alignment {alignment_bytes}"),
        ));
    }
    let end = start.checked_add(size).ok_or_else(|| {
        fault(
            start_at,
            Code::ModelInvalid,
            format!("of {size} bytes begins at offset {start} and ends beyond 2^64"),
        )
    })?;
    Ok(Tensor {
        name,
        ggml_type,
        n_dims: n_dims as usize,
        ne,
        range: start..end,
        offset_bytes,
    })
}

/// Makes the tensors' ranges absolute; refuses those that leave the file or
/// overlap.
fn place_tensors(
    tensors: &mut [Tensor<'_>],
    header_end: u64,
    alignment_bytes: u64,
    file_bytes: u64,
) -> Result<(), ImportError> {
    // The header's end is at most the file's length, and the alignment small.
    let data_start = header_end.next_multiple_of(alignment_bytes);
    for tensor in &mut *tensors {
        let range = &tensor.range;
        let absolute = range
            .end
            .checked_add(data_start)
            .filter(|&end| end <= file_bytes)
            .map(|end| range.start + data_start..end);
        tensor.range = absolute.ok_or_else(|| {
            ImportError::new(
                Code::ModelTruncated,
                format!(
                    "tensor {} needs bytes {} to {} of the tensor data, which begins at byte {data_start}; the file ends at byte {file_bytes}",
                    quoted(tensor.name),
                    range.start,
                    range.end
                ),
            )
            .at(tensor.offset_bytes)
        })?;
    }
    let mut by_start: Vec<&Tensor<'_>> = tensors.iter().collect();
    by_start.sort_by_key(|t| t.range.start);
    for pair in by_start.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            return Err(ImportError::new(
                Code::ModelTensor,
                format!(
                    "tensor {} (bytes {} to {}) overlaps tensor {} (bytes {} to {})",
                    quoted(pair[1].name),
                    pair[1].range.start,
                    pair[1].range.end,
                    quoted(pair[0].name),
                    pair[0].range.start,
                    pair[0].range.end,
                ),
            )
            .at(pair[1].offset_bytes));
        }
    }
    Ok(())
}
