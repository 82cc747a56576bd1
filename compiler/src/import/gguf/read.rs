//! A cursor over the header bytes that knows what it is reading.

use super::value::{Array, Value, ValueType, scalar};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;

/// Reads little-endian values from `bytes[position..]`. Every length is
/// compared with the bytes that remain before it is used.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.position as u64
    }

    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// The next `len` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], ImportError> {
        let remaining = self.remaining();
        if len > remaining {
            return Err(ImportError::new(
                Code::ModelTruncated,
                format!("the file ends inside {what}: {len} bytes needed, {remaining} there"),
            )
            .at(self.position()));
        }
        // `len` is at most the length of a slice.
        let end = self.position + len as usize;
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ImportError> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take returns the length asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ImportError> {
        Ok(u32::from_le_bytes(self.chunk(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ImportError> {
        Ok(u64::from_le_bytes(self.chunk(what)?))
    }

    /// A count of things that take at least `bytes_min` bytes each and of which
    /// a file may hold at most `count_max`.
    pub(super) fn count(
        &mut self,
        what: &str,
        bytes_min: u64,
        count_max: u64,
    ) -> Result<u64, ImportError> {
        let at = self.position();
        let count = self.u64(what)?;
        let allowed = count_max.min(self.remaining() / bytes_min);
        if count > allowed {
            return Err(ImportError::new(
                Code::ModelInvalid,
                format!(
                    "{what} is {count}, but at most {allowed} are possible in the {} bytes that follow",
                    self.remaining()
                ),
            )
            .at(at));
        }
        Ok(count)
    }

    pub(super) fn string(&mut self, what: &str) -> Result<&'a [u8], ImportError> {
        let at = self.position();
        let len = self.u64(&format!("the length of {what}"))?;
        let remaining = self.remaining();
        if len > remaining {
            return Err(ImportError::new(
                Code::ModelInvalid,
                format!("{what} is {len} bytes long, but only {remaining} follow"),
            )
            .at(at));
        }
        self.take(len, what)
    }

    /// A key or a tensor's name: UTF-8, not empty, at most 65,535 bytes.
    pub(super) fn name(&mut self, what: &str) -> Result<&'a str, ImportError> {
        let at = self.position();
        let bytes = self.string(what)?;
        let name = std::str::from_utf8(bytes).map_err(|e| {
            ImportError::new(Code::ModelInvalid, format!("{what} is not UTF-8: {e}")).at(at)
        })?;
        if name.is_empty() || name.len() > 0xFFFF {
            return Err(ImportError::new(
                Code::ModelInvalid,
                format!(
                    "{what} is {} bytes long; 1 to 65535 are allowed",
                    name.len()
                ),
            )
            .at(at));
        }
        Ok(name)
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, ImportError> {
        let at = self.position();
        let id = self.u32("a metadata value's type")?;
        ValueType::from_id(id).ok_or_else(|| {
            ImportError::new(
                Code::ModelMetadata,
                format!(
                    "metadata key {} has value type {id}; types 0 to 12 exist",
                    quoted(key)
                ),
            )
            .at(at)
        })
    }

    pub(super) fn value(&mut self, key: &str) -> Result<Value<'a>, ImportError> {
        let ty = self.value_type(key)?;
        if ty == ValueType::Array {
            return Ok(Value::Array(self.array(key)?));
        }
        let Some(size) = ty.size_bytes() else {
            let what = format!("the value of {}", quoted(key));
            return Ok(Value::String(self.string(&what)?));
        };
        let at = self.position();
        let bytes = self.take(size, "a metadata value")?;
        scalar(ty, bytes).ok_or_else(|| bool_fault(key, bytes[0], at))
    }

    fn array(&mut self, key: &str) -> Result<Array<'a>, ImportError> {
        let at = self.position();
        let element_type = self.value_type(key)?;
        let what = format!("the length of array {}", quoted(key));
        if element_type == ValueType::Array {
            return Err(ImportError::new(
                Code::ModelUnsupported,
                format!("metadata key {} is an array of arrays", quoted(key)),
            )
            .at(at)
            .help("arrays of scalars and strings are read"));
        }
        // A string takes at least the eight bytes of its length.
        let len = self.count(&what, element_type.size_bytes().unwrap_or(8), u64::MAX)?;
        let start = self.position;
        if let Some(size) = element_type.size_bytes() {
            let bytes = self.take(len * size, "an array")?;
            if element_type == ValueType::Bool
                && let Some(i) = bytes.iter().position(|&b| b > 1)
            {
                return Err(bool_fault(key, bytes[i], (start + i) as u64));
            }
        } else {
            let element = format!("a string of array {}", quoted(key));
            for _ in 0..len {
                self.string(&element)?;
            }
        }
        Ok(Array {
            element_type,
            len,
            bytes: &self.bytes[start..self.position],
            offset_bytes: start as u64,
        })
    }
}

fn bool_fault(key: &str, value: u8, at: u64) -> ImportError {
    ImportError::new(
        Code::ModelMetadata,
        format!(
            "metadata key {} holds a bool of value {value}; 0 and 1 exist",
            quoted(key)
        ),
    )
    .at(at)
}
