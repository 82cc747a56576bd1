//! Writing GGUF headers.

use super::super::ggml_type::GgmlType;
use super::{ALIGNMENT_DEFAULT, ValueType};

/// Builds the header of a GGUF file, version 3. The tensors' bytes follow it
/// in the order of the [`tensor`](HeaderWriter::tensor) calls, each padded to
/// the alignment.
#[derive(Clone, Debug)]
pub struct HeaderWriter {
    version: u32,
    alignment_bytes: u64,
    metadata: Vec<u8>,
    key_count: u64,
    infos: Vec<u8>,
    tensor_count: u64,
    data_bytes: u64,
}

impl Default for HeaderWriter {
    fn default() -> Self {
        Self {
            version: 3,
            alignment_bytes: ALIGNMENT_DEFAULT,
            metadata: Vec::new(),
            key_count: 0,
            infos: Vec::new(),
            tensor_count: 0,
            data_bytes: 0,
        }
    }
}

impl HeaderWriter {
    /// Sets the version: 2 and 3 have the same layout.
    pub fn version(&mut self, version: u32) -> &mut Self {
        self.version = version;
        self
    }

    /// States `general.alignment`; before the first tensor.
    pub fn alignment(&mut self, alignment_bytes: u32) -> &mut Self {
        assert_eq!(self.tensor_count, 0, "the alignment comes before tensors");
        self.alignment_bytes = alignment_bytes.into();
        self.u32("general.alignment", alignment_bytes)
    }

    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.scalar(key, ValueType::U32, &value.to_le_bytes())
    }

    pub fn u64(&mut self, key: &str, value: u64) -> &mut Self {
        self.scalar(key, ValueType::U64, &value.to_le_bytes())
    }

    pub fn i32(&mut self, key: &str, value: i32) -> &mut Self {
        self.scalar(key, ValueType::I32, &value.to_le_bytes())
    }

    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.scalar(key, ValueType::F32, &value.to_le_bytes())
    }

    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.scalar(key, ValueType::Bool, &[value.into()])
    }

    pub fn str(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key, ValueType::String);
        push_string(&mut self.metadata, value.as_bytes());
        self
    }

    pub fn array_str<S: AsRef<str>>(
        &mut self,
        key: &str,
        values: impl ExactSizeIterator<Item = S>,
    ) -> &mut Self {
        self.array(key, ValueType::String, values.len());
        for value in values {
            push_string(&mut self.metadata, value.as_ref().as_bytes());
        }
        self
    }

    pub fn array_i32(
        &mut self,
        key: &str,
        values: impl ExactSizeIterator<Item = i32>,
    ) -> &mut Self {
        self.array(key, ValueType::I32, values.len());
        self.metadata.extend(values.flat_map(i32::to_le_bytes));
        self
    }

    pub fn array_f32(
        &mut self,
        key: &str,
        values: impl ExactSizeIterator<Item = f32>,
    ) -> &mut Self {
        self.array(key, ValueType::F32, values.len());
        self.metadata.extend(values.flat_map(f32::to_le_bytes));
        self
    }

    pub fn array_bool(
        &mut self,
        key: &str,
        values: impl ExactSizeIterator<Item = bool>,
    ) -> &mut Self {
        self.array(key, ValueType::Bool, values.len());
        self.metadata.extend(values.map(u8::from));
        self
    }

    /// A scalar of any type, as its little-endian bytes.
    pub fn scalar(&mut self, key: &str, ty: ValueType, bytes: &[u8]) -> &mut Self {
        self.key(key, ty);
        self.metadata.extend(bytes);
        self
    }

    /// Copies an entry of another file.
    pub fn entry(&mut self, entry: &super::Entry<'_>) -> &mut Self {
        use super::Value;
        let key = entry.key;
        match entry.value {
            Value::U8(v) => self.scalar(key, ValueType::U8, &v.to_le_bytes()),
            Value::I8(v) => self.scalar(key, ValueType::I8, &v.to_le_bytes()),
            Value::U16(v) => self.scalar(key, ValueType::U16, &v.to_le_bytes()),
            Value::I16(v) => self.scalar(key, ValueType::I16, &v.to_le_bytes()),
            Value::U32(v) => self.u32(key, v),
            Value::I32(v) => self.i32(key, v),
            Value::F32(v) => self.f32(key, v),
            Value::Bool(v) => self.bool(key, v),
            Value::U64(v) => self.u64(key, v),
            Value::I64(v) => self.scalar(key, ValueType::I64, &v.to_le_bytes()),
            Value::F64(v) => self.scalar(key, ValueType::F64, &v.to_le_bytes()),
            Value::String(v) => {
                self.key(key, ValueType::String);
                push_string(&mut self.metadata, v);
                self
            }
            Value::Array(v) => {
                self.array(key, v.element_type, v.len as usize);
                self.metadata.extend(v.bytes);
                self
            }
        }
    }

    /// Adds a tensor of `dims` (row length first).
    ///
    /// # Panics
    ///
    /// If the row length is no multiple of the type's block.
    pub fn tensor(&mut self, name: &str, ty: GgmlType, dims: &[u64]) -> &mut Self {
        assert!(
            dims[0].is_multiple_of(ty.block_elements()),
            "rows of {name} have {} elements, not whole blocks of {}",
            dims[0],
            ty.name()
        );
        let offset = self.data_bytes;
        let size = dims.iter().product::<u64>() / ty.block_elements() * ty.block_bytes();
        self.data_bytes += size.next_multiple_of(self.alignment_bytes);
        self.tensor_info(name, dims, ty.id(), offset)
    }

    /// Adds a tensor's entry exactly as given, sound or not.
    pub fn tensor_info(&mut self, name: &str, dims: &[u64], ty: u32, offset: u64) -> &mut Self {
        push_string(&mut self.infos, name.as_bytes());
        self.infos.extend((dims.len() as u32).to_le_bytes());
        self.infos.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        self.infos.extend(ty.to_le_bytes());
        self.infos.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    /// Bytes of all tensors with their padding.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// The header, padded to where the first tensor begins.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.metadata.len() + self.infos.len());
        out.extend(b"GGUF");
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.key_count.to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.infos);
        out.resize(out.len().next_multiple_of(self.alignment_bytes as usize), 0);
        out
    }

    fn key(&mut self, key: &str, ty: ValueType) {
        push_string(&mut self.metadata, key.as_bytes());
        self.metadata.extend(ty.id().to_le_bytes());
        self.key_count += 1;
    }

    fn array(&mut self, key: &str, element_type: ValueType, len: usize) {
        self.key(key, ValueType::Array);
        self.metadata.extend(element_type.id().to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }
}

fn push_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}
