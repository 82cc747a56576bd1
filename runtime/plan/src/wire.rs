//! The only place that names the metadata codec.
//!
//! bincode is unmaintained (RUSTSEC-2025-0141), so it is pinned, wrapped here
//! with a byte limit, and replaceable by changing this file.

use omex_kernels::KernelSpec;
use omex_kernels::spec::SPEC_WORDS;

pub(crate) use bincode::{Decode, Encode};

/// Fixed-width little-endian integers: the encoded size of a value does not
/// depend on the numbers in it, so plans of one shape have one size. `LIMIT`
/// bounds the bytes that decoding may claim for values and containers.
fn config<const LIMIT: usize>() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Fixint,
    bincode::config::Limit<LIMIT>,
> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>()
}

/// Bytes that are not a value, or not only one.
#[derive(Debug)]
pub struct DecodeError(pub String);

/// Largest metadata that is decoded: far above any real plan.
const ENCODED_BYTES_MAX: usize = 32 << 20;

pub(crate) fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config::<{ usize::MAX }>()).expect("plan metadata always encodes")
}

/// Decodes exactly one value that fills `bytes`.
///
/// The codec claims a container's memory against its limit before it
/// allocates, and limits are compile-time constants: the ladder picks the
/// smallest that is at least 8 times the input, so that a forged count
/// allocates no more than a constant factor of what was read.
///
/// Errors: malformed or trailing bytes, or more than 32 MiB of them.
pub(crate) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, DecodeError> {
    let result = match bytes.len() {
        0..=0x2000 => bincode::decode_from_slice(bytes, config::<0x1_0000>()),
        0x2001..=0x2_0000 => bincode::decode_from_slice(bytes, config::<0x10_0000>()),
        0x2_0001..=0x20_0000 => bincode::decode_from_slice(bytes, config::<0x100_0000>()),
        0x20_0001..=ENCODED_BYTES_MAX => {
            bincode::decode_from_slice(bytes, config::<{ 8 * ENCODED_BYTES_MAX }>())
        }
        more => return Err(DecodeError(format!("{more} bytes are too many"))),
    };
    match result {
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
