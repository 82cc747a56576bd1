//! Lookup of metadata keys.

use crate::diagnostic::Code;
use crate::import::ImportError;
use crate::import::gguf::{Gguf, Value};

/// The value of a key that has no effect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Neutral {
    Bool(bool),
    Number(f64),
    /// The key itself has an effect.
    Absent,
}

/// Lookup of the keys behind the architecture's prefix.
pub(super) struct Keys<'g, 'a> {
    pub(super) gguf: &'g Gguf<'a>,
    pub(super) prefix: &'static str,
}

impl Keys<'_, '_> {
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// An error about a key, at the key's place if it is there.
    pub(super) fn fault(&self, key: &str, message: impl std::fmt::Display) -> ImportError {
        let name = self.name(key);
        let error = ImportError::new(Code::ModelMetadata, format!("{name}: {message}"));
        match self.gguf.entry(&name) {
            Some(entry) => error.at(entry.offset_bytes),
            None => error,
        }
    }

    pub(super) fn missing(&self, key: &str) -> ImportError {
        ImportError::new(
            Code::ModelMetadata,
            format!("metadata key `{}` is missing", self.name(key)),
        )
    }

    pub(super) fn count(&self, key: &str) -> Result<u32, ImportError> {
        self.optional_count(key)?.ok_or_else(|| self.missing(key))
    }

    /// A count of at least 1. Per-layer arrays are read when all their elements
    /// are equal.
    pub(super) fn optional_count(&self, key: &str) -> Result<Option<u32>, ImportError> {
        let name = self.name(key);
        let count = match self.gguf.get(&name) {
            Some(Value::Array(_)) => self.uniform(key)?,
            Some(_) => self.gguf.required(&name, Gguf::get_u32)?,
            None => return Ok(None),
        };
        if count == 0 {
            return Err(self.fault(key, "at least 1 is needed"));
        }
        Ok(Some(count))
    }

    /// The value that all elements of an array have.
    fn uniform(&self, key: &str) -> Result<u32, ImportError> {
        let mut values = self
            .gguf
            .required(&self.name(key), Gguf::get_array_integer)?;
        let first = values
            .next()
            .and_then(|v| u32::try_from(v).ok())
            .ok_or_else(|| self.fault(key, "an array of counts is needed"))?;
        if values.any(|v| v != i128::from(first)) {
            return Err(self
                .fault(key, "values that differ between layers are not supported")
                .code(Code::ModelUnsupported));
        }
        Ok(first)
    }

    /// A finite float above 0.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f32>, ImportError> {
        match self.gguf.get_f32(&self.name(key))? {
            Some(v) if !(v.is_finite() && v > 0.0) => {
                Err(self.fault(key, format!("{v:?} is no positive finite number")))
            }
            other => Ok(other),
        }
    }

    /// A finite float that is not negative; 0 means absent.
    pub(super) fn positive_or_zero(&self, key: &str) -> Result<Option<f32>, ImportError> {
        match self.gguf.get_f32(&self.name(key))? {
            Some(0.0) => Ok(None),
            _ => self.positive(key),
        }
    }

    /// Refuses a value that has an effect.
    pub(super) fn refuse_unless(&self, key: &str, neutral: Neutral) -> Result<(), ImportError> {
        let Some(entry) = self.gguf.entry(&self.name(key)) else {
            return Ok(());
        };
        let is_neutral = match neutral {
            Neutral::Bool(n) => entry.value == Value::Bool(n),
            Neutral::Number(n) => entry.value.as_number() == Some(n),
            Neutral::Absent => false,
        };
        if is_neutral {
            return Ok(());
        }
        Err(self
            .fault(key, format!("{} is not supported", entry.value))
            .code(Code::ModelUnsupported))
    }
}
