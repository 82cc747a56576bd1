//! Typed lookup of metadata: what is missing or of another type is an error
//! that names the key, the type expected and the one found.

use super::value::{Array, ArrayIter, Value, ValueType};
use super::{Entry, Gguf};
use crate::diagnostic::{Code, quoted};
use crate::import::ImportError;

/// What is inside a value of the variant, None for another one.
macro_rules! take {
    ($variant:path, $value:expr) => {
        if let $variant(inner) = $value {
            Some(inner)
        } else {
            None
        }
    };
}

impl<'a> Gguf<'a> {
    pub fn entry(&self, key: &str) -> Option<&Entry<'a>> {
        self.keys.get(key).map(|&i| &self.metadata[i])
    }

    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.entry(key).map(|e| e.value)
    }

    /// A non-negative integer of any width that fits 32 bits.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, ImportError> {
        self.get_integer(key, "an integer from 0 to 4294967295")
    }

    /// A non-negative integer of any width.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, ImportError> {
        self.get_integer(key, "an integer from 0 to 18446744073709551615")
    }

    /// A float32, or a float64 rounded to one. It may be NaN or infinite.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, ImportError> {
        self.get_with(key, "a float32", |value| {
            if let Value::F64(v) = value {
                return Some(v as f32);
            }
            take!(Value::F32, value)
        })
    }

    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, ImportError> {
        self.get_with(key, "a bool", |value| take!(Value::Bool, value))
    }

    pub fn get_str(&self, key: &str) -> Result<Option<&'a str>, ImportError> {
        self.get_with(key, "a UTF-8 string", |value| {
            std::str::from_utf8(take!(Value::String, value)?).ok()
        })
    }

    pub fn get_array(&self, key: &str) -> Result<Option<Array<'a>>, ImportError> {
        self.get_with(key, "an array", |value| take!(Value::Array, value))
    }

    /// An array of strings, all of them checked to be UTF-8.
    pub fn get_array_str(&self, key: &str) -> Result<Option<StrArray<'a>>, ImportError> {
        let Some(array) =
            self.get_array_of(key, "an array of string", |ty| ty == ValueType::String)?
        else {
            return Ok(None);
        };
        for (index, (offset, value)) in array.iter().enumerate() {
            if let Value::String(bytes) = value
                && let Err(e) = std::str::from_utf8(bytes)
            {
                return Err(ImportError::new(
                    Code::ModelMetadata,
                    format!("string {index} of {} is not UTF-8: {e}", quoted(key)),
                )
                .at(offset));
            }
        }
        Ok(Some(StrArray { array }))
    }

    /// An array of float32, without copying.
    pub fn get_array_f32(
        &self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = f32> + use<'a>>, ImportError> {
        let array = self.get_array_of(key, "an array of float32", |ty| ty == ValueType::F32)?;
        Ok(array.map(|array| {
            array.iter().map(|(_, value)| match value {
                Value::F32(v) => v,
                other => unreachable!("an array of float32 holds {other:?}"),
            })
        }))
    }

    /// An array of integers of any width, without copying.
    pub fn get_array_integer(
        &self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = i128> + use<'a>>, ImportError> {
        let is_integer = |ty| match ty {
            ValueType::U8
            | ValueType::I8
            | ValueType::U16
            | ValueType::I16
            | ValueType::U32
            | ValueType::I32
            | ValueType::U64
            | ValueType::I64 => true,
            ValueType::F32
            | ValueType::Bool
            | ValueType::String
            | ValueType::Array
            | ValueType::F64 => false,
        };
        let array = self.get_array_of(key, "an array of integers", is_integer)?;
        Ok(array.map(|array| {
            array.iter().map(|(_, value)| {
                value
                    .as_integer()
                    .unwrap_or_else(|| unreachable!("an array of integers holds {value:?}"))
            })
        }))
    }

    /// An array of bools.
    pub fn get_array_bool(&self, key: &str) -> Result<Option<Vec<bool>>, ImportError> {
        let array = self.get_array_of(key, "an array of bools", |ty| ty == ValueType::Bool)?;
        Ok(array.map(|array| {
            let bools = array.iter().map(|(_, value)| match value {
                Value::Bool(v) => v,
                other => unreachable!("an array of bools holds {other:?}"),
            });
            bools.collect()
        }))
    }

    /// Turns a missing key into an error.
    ///
    /// `gguf.required("llama.block_count", Gguf::get_u32)?`
    pub fn required<T>(
        &self,
        key: &str,
        get: impl FnOnce(&Self, &str) -> Result<Option<T>, ImportError>,
    ) -> Result<T, ImportError> {
        get(self, key)?.ok_or_else(|| {
            ImportError::new(
                Code::ModelMetadata,
                format!("metadata key {} is missing", quoted(key)),
            )
        })
    }

    fn get_integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>, ImportError> {
        self.get_with(key, expected, |value| T::try_from(value.as_integer()?).ok())
    }

    fn get_array_of(
        &self,
        key: &str,
        expected: &str,
        accepts: impl FnOnce(ValueType) -> bool,
    ) -> Result<Option<Array<'a>>, ImportError> {
        self.get_with(key, expected, |value| {
            take!(Value::Array, value).filter(|array| accepts(array.element_type))
        })
    }

    fn get_with<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, ImportError> {
        let Some(entry) = self.entry(key) else {
            return Ok(None);
        };
        convert(entry.value).map(Some).ok_or_else(|| {
            ImportError::new(
                Code::ModelMetadata,
                format!(
                    "metadata key {} is {} ({}); {expected} is needed",
                    quoted(key),
                    entry.value,
                    entry.value.type_name()
                ),
            )
            .at(entry.offset_bytes)
        })
    }
}

/// An array of UTF-8 strings, borrowed from the file.
#[derive(Clone, Copy, Debug)]
pub struct StrArray<'a> {
    array: Array<'a>,
}

impl<'a> StrArray<'a> {
    pub fn len(&self) -> u64 {
        self.array.len
    }

    pub fn is_empty(&self) -> bool {
        self.array.len == 0
    }

    pub fn iter(&self) -> StrArrayIter<'a> {
        StrArrayIter(self.array.iter())
    }
}

impl<'a> IntoIterator for StrArray<'a> {
    type Item = &'a str;
    type IntoIter = StrArrayIter<'a>;

    fn into_iter(self) -> StrArrayIter<'a> {
        self.iter()
    }
}

/// Iterates over a [`StrArray`].
#[derive(Clone, Debug)]
pub struct StrArrayIter<'a>(ArrayIter<'a>);

impl<'a> Iterator for StrArrayIter<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        match self.0.next()? {
            (_, Value::String(bytes)) => {
                Some(std::str::from_utf8(bytes).expect("checked by get_array_str"))
            }
            (_, other) => unreachable!("an array of strings holds {other:?}"),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for StrArrayIter<'_> {}
