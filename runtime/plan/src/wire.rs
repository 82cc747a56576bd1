//! The only place that names the metadata codec.
//!
//! bincode is unmaintained (RUSTSEC-2025-0141), so it is pinned, wrapped here
//! with a byte limit, and replaceable by changing this file.

use omex_kernels::KernelSpec;
use omex_kernels::spec::SPEC_WORDS;

pub(crate) use bincode::{Decode, Encode};

/// Largest metadata that is decoded: far above any real plan.
pub(crate) const METADATA_BYTES_MAX: usize = 256 << 20;

/// Fixed-width little-endian integers: the encoded size of a value does not
/// depend on the numbers in it, so plans of one shape have one size.
fn config() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<METADATA_BYTES_MAX>,
> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<METADATA_BYTES_MAX>()
}

/// Bytes that are not a value, or not only one.
#[derive(Debug)]
pub struct DecodeError(pub String);

pub(crate) fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config()).expect("plan metadata always encodes")
}

/// Decodes exactly one value that fills `bytes`.
///
/// Errors: malformed or trailing bytes. Allocation is bounded by the input:
/// the codec claims a container's bytes against the limit before allocating,
/// and the limit is lowered to a multiple of the input's length by the caller's
/// section size check.
pub(crate) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bincode::decode_from_slice::<T, _>(bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(DecodeError(format!(
            "{} trailing bytes",
            bytes.len() - used
        ))),
        Err(e) => Err(DecodeError(e.to_string())),
    }
}

/// A kernel spec in the metadata, as its stable words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpecWire(pub KernelSpec);

impl Encode for SpecWire {
    fn encode<E: bincode::enc::Encoder>(
        &self,
        encoder: &mut E,
    ) -> Result<(), bincode::error::EncodeError> {
        self.0.to_words().encode(encoder)
    }
}

impl<C> Decode<C> for SpecWire {
    fn decode<D: bincode::de::Decoder<Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let words = <[u32; SPEC_WORDS]>::decode(decoder)?;
        KernelSpec::from_words(&words)
            .map(SpecWire)
            .ok_or(bincode::error::DecodeError::Other("not a kernel spec"))
    }
}

bincode::impl_borrow_decode!(SpecWire);
