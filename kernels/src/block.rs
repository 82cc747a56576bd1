//! One block of one row: the integers of a quantized format, from the model
//! file's bytes, and what they mean.

use crate::format::{BlockScale, Descriptor, Quantized, SubScales, WeightFormat};
use crate::math::{bf16_to_f32, e8m0_half_to_f32, f16_to_f32};

/// Values of the 16 codes of IQ4_NL and IQ4_XS (ggml `kvalues_iq4nl`).
pub const IQ4_VALUES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Twice the values of the 16 E2M1 codes of MXFP4 (OCP MX v1.0); the scale is
/// halved to match.
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The fields of one block as stored: unsigned codes, raw scales. What a
/// panel holds for each of its rows, independent of any bit packing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawBlock {
    /// f16 bits of d; the exponent byte for E8M0.
    pub d: u16,
    /// f16 bits of the minimum, 0 where the format has none.
    pub dmin: u16,
    /// Unsigned sub-scales (two's complement for Int8), in K order.
    pub scales: [u8; 16],
    /// Unsigned sub-minimums, in K order.
    pub mins: [u8; 16],
    /// Unsigned codes in K order; the first `block_len` count. Q8_0's are
    /// two's complement.
    pub codes: [u8; 256],
}

impl RawBlock {
    pub const ZERO: RawBlock = RawBlock {
        d: 0,
        dmin: 0,
        scales: [0; 16],
        mins: [0; 16],
        codes: [0; 256],
    };

    /// Splits one file block (`file_block_bytes` long) of a quantized format.
    ///
    /// Panics when `bytes` is shorter than a block or the format is a float
    /// format: both are bugs of the caller.
    pub fn from_file(format: WeightFormat, bytes: &[u8]) -> RawBlock {
        let mut b = RawBlock::ZERO;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        match format {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => {
                panic!("{} has no blocks", format.name())
            }
            WeightFormat::Q4_0 | WeightFormat::Iq4Nl => {
                b.d = u16_at(0);
                split_nibbles(&bytes[2..18], &mut b.codes);
            }
            WeightFormat::Mxfp4 => {
                b.d = bytes[0] as u16;
                split_nibbles(&bytes[1..17], &mut b.codes);
            }
            WeightFormat::Q4_1 => {
                b.d = u16_at(0);
                b.dmin = u16_at(2);
                split_nibbles(&bytes[4..20], &mut b.codes);
            }
            WeightFormat::Q5_0 => {
                b.d = u16_at(0);
                split_nibbles(&bytes[6..22], &mut b.codes);
                add_fifth_bits(&bytes[2..6], &mut b.codes);
            }
            WeightFormat::Q5_1 => {
                b.d = u16_at(0);
                b.dmin = u16_at(2);
                split_nibbles(&bytes[8..24], &mut b.codes);
                add_fifth_bits(&bytes[4..8], &mut b.codes);
            }
            WeightFormat::Q8_0 => {
                b.d = u16_at(0);
                b.codes[..32].copy_from_slice(&bytes[2..34]);
            }
            WeightFormat::Q2K => {
                for (j, &s) in bytes[..16].iter().enumerate() {
                    b.scales[j] = s & 15;
                    b.mins[j] = s >> 4;
                }
                for (i, code) in b.codes.iter_mut().enumerate() {
                    *code = two_bits(&bytes[16..80], i);
                }
                b.d = u16_at(80);
                b.dmin = u16_at(82);
            }
            WeightFormat::Q3K => {
                for (i, code) in b.codes.iter_mut().enumerate() {
                    let high = bytes[i % 32] >> (i / 32) & 1;
                    *code = two_bits(&bytes[32..96], i) | high << 2;
                }
                let s = &bytes[96..108];
                for j in 0..16 {
                    let low = if j < 8 { s[j] & 15 } else { s[j - 8] >> 4 };
                    b.scales[j] = low | (s[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
                }
                b.d = u16_at(108);
            }
            WeightFormat::Q4K => {
                b.d = u16_at(0);
                b.dmin = u16_at(2);
                split_k_scales(&bytes[4..16], &mut b);
                for (i, code) in b.codes.iter_mut().enumerate() {
                    *code = k_nibble(&bytes[16..144], i);
                }
            }
            WeightFormat::Q5K => {
                b.d = u16_at(0);
                b.dmin = u16_at(2);
                split_k_scales(&bytes[4..16], &mut b);
                for (i, code) in b.codes.iter_mut().enumerate() {
                    let high = bytes[16 + i % 32] >> (i / 32) & 1;
                    *code = k_nibble(&bytes[48..176], i) | high << 4;
                }
            }
            WeightFormat::Q6K => {
                for (i, code) in b.codes.iter_mut().enumerate() {
                    let (half, r) = (i / 128, i % 128);
                    let low = bytes[64 * half + r % 64] >> (4 * (r / 64)) & 15;
                    let high = bytes[128 + 32 * half + r % 32] >> (2 * (r / 32)) & 3;
                    *code = low | high << 4;
                }
                b.scales.copy_from_slice(&bytes[192..208]);
                b.d = u16_at(208);
            }
            WeightFormat::Iq4Xs => {
                b.d = u16_at(0);
                let high = u16_at(2);
                for j in 0..8 {
                    let low = bytes[4 + j / 2] >> (4 * (j % 2)) & 15;
                    b.scales[j] = low | ((high >> (2 * j) & 3) as u8) << 4;
                }
                for j in 0..8 {
                    split_nibbles(&bytes[8 + 16 * j..24 + 16 * j], &mut b.codes[32 * j..]);
                }
            }
        }
        b
    }

    /// True when a scale is NaN or infinite.
    pub fn scale_is_not_finite(&self, q: &Quantized) -> bool {
        match q.scale {
            BlockScale::D => !f16_to_f32(self.d).is_finite(),
            BlockScale::DAndMin => {
                !f16_to_f32(self.d).is_finite() || !f16_to_f32(self.dmin).is_finite()
            }
            BlockScale::E8M0 => self.d == 255,
        }
    }
}

/// Legacy order: byte i holds element i (low) and element i + 16 (high).
fn split_nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (i, &v) in bytes.iter().enumerate() {
        codes[i] = v & 15;
        codes[i + 16] = v >> 4;
    }
}

/// Bit i of the little-endian word is bit 4 of element i.
fn add_fifth_bits(bytes: &[u8], codes: &mut [u8]) {
    for (i, code) in codes[..32].iter_mut().enumerate() {
        *code |= (bytes[i / 8] >> (i % 8) & 1) << 4;
    }
}

/// Q2_K and Q3_K: 128 elements share 32 bytes, 32 elements one bit pair of each.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    let (half, r) = (i / 128, i % 128);
    bytes[32 * half + r % 32] >> (2 * (r / 32)) & 3
}

/// Q4_K and Q5_K: 64 elements share 32 bytes, low nibbles first.
fn k_nibble(bytes: &[u8], i: usize) -> u8 {
    let (quarter, r) = (i / 64, i % 64);
    bytes[32 * quarter + r % 32] >> (4 * (r / 32)) & 15
}

/// The 12 bytes of eight 6-bit scales and eight 6-bit minimums of Q4_K and Q5_K.
fn split_k_scales(s: &[u8], b: &mut RawBlock) {
    for j in 0..4 {
        b.scales[j] = s[j] & 63;
        b.mins[j] = s[j + 4] & 63;
        b.scales[j + 4] = s[j + 8] & 15 | s[j] >> 6 << 4;
        b.mins[j + 4] = s[j + 8] >> 4 | s[j + 4] >> 6 << 4;
    }
}

/// A 32-block as the matmul contract sees it.
///
/// With 16-group dots `t0`, `t1` and sums `u0`, `u1` the block contributes
/// `float(s0*t0 + s1*t1) * (d * d_a)`, then minus
/// `m * (d_a * float(m0*u0 + m1*u1))` if the format has a minimum.
#[derive(Clone, Debug, PartialEq)]
pub struct Block32 {
    pub values: [i8; 32],
    pub d: f32,
    /// Integer scales of the two groups of 16; (1, 1) where the scale is in `d`.
    pub s: [i32; 2],
    /// Minimum, subtracted; legacy formats add theirs, so it is negated here.
    pub m: Option<f32>,
    pub mi: [i32; 2],
}

impl Block32 {
    /// The meaning of the `index`-th group of 32 elements of a block.
    pub fn new(format: WeightFormat, raw: &RawBlock, index: usize) -> Block32 {
        let codes = &raw.codes[32 * index..32 * index + 32];
        let d = f16_to_f32(raw.d);
        let dmin = f16_to_f32(raw.dmin);
        let offset = |by: i32| core::array::from_fn(|i| (codes[i] as i32 - by) as i8);
        let table = |t: &[i8; 16]| core::array::from_fn(|i| t[codes[i] as usize & 15]);
        let plain = |values, d| Block32 {
            values,
            d,
            s: [1, 1],
            m: None,
            mi: [1, 1],
        };
        let pair = |v: &[u8; 16]| [v[2 * index] as i32, v[2 * index + 1] as i32];
        match format {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => {
                panic!("{} has no blocks", format.name())
            }
            WeightFormat::Q4_0 => plain(offset(8), d),
            WeightFormat::Q5_0 => plain(offset(16), d),
            WeightFormat::Q8_0 => plain(offset(0), d),
            WeightFormat::Iq4Nl => plain(table(&IQ4_VALUES), d),
            WeightFormat::Mxfp4 => plain(table(&MXFP4_VALUES), e8m0_half_to_f32(raw.d as u8)),
            WeightFormat::Q4_1 | WeightFormat::Q5_1 => Block32 {
                m: Some(-dmin),
                ..plain(offset(0), d)
            },
            WeightFormat::Q4K | WeightFormat::Q5K => Block32 {
                m: Some(dmin * raw.mins[index] as f32),
                ..plain(offset(0), d * raw.scales[index] as f32)
            },
            WeightFormat::Iq4Xs => plain(
                table(&IQ4_VALUES),
                d * (raw.scales[index] as i32 - 32) as f32,
            ),
            WeightFormat::Q2K => Block32 {
                s: pair(&raw.scales),
                m: Some(dmin),
                mi: pair(&raw.mins),
                ..plain(offset(0), d)
            },
            WeightFormat::Q3K => Block32 {
                s: pair(&raw.scales).map(|s| s - 32),
                ..plain(offset(4), d)
            },
            WeightFormat::Q6K => Block32 {
                s: pair(&raw.scales).map(|s| s as u8 as i8 as i32),
                ..plain(offset(32), d)
            },
        }
    }

    /// Dequantized value of element `i`, by the format's own formula: the
    /// scale product first, then the code, then the minimum.
    pub fn dequantize(&self, i: usize) -> f32 {
        let group = i / 16;
        let scaled = if self.s == [1, 1] {
            self.d
        } else {
            self.d * self.s[group] as f32
        };
        let value = scaled * self.values[i] as f32;
        match self.m {
            Some(m) if self.mi == [1, 1] => value - m,
            Some(m) => value - m * self.mi[group] as f32,
            None => value,
        }
    }
}

/// Dequantizes the row-major bytes of one row into `out`.
///
/// `bytes` holds `format.row_bytes(out.len())` bytes.
pub fn dequantize_row(format: WeightFormat, bytes: &[u8], out: &mut [f32]) {
    match format.descriptor() {
        Descriptor::Float { .. } => {
            for (i, o) in out.iter_mut().enumerate() {
                *o = float_at(format, bytes, i);
            }
        }
        Descriptor::Quantized(q) => {
            let blocks = bytes.chunks_exact(q.file_block_bytes as usize);
            for (bytes, out) in blocks.zip(out.chunks_exact_mut(q.block_len as usize)) {
                let raw = RawBlock::from_file(format, bytes);
                for (index, out) in out.chunks_exact_mut(32).enumerate() {
                    let block = Block32::new(format, &raw, index);
                    for (i, o) in out.iter_mut().enumerate() {
                        *o = block.dequantize(i);
                    }
                }
            }
        }
    }
}

/// Element `i` of a slice of F32, F16 or BF16 elements.
pub fn float_at(format: WeightFormat, bytes: &[u8], i: usize) -> f32 {
    let two = |i: usize| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
    match format {
        WeightFormat::F32 => f32::from_le_bytes([
            bytes[4 * i],
            bytes[4 * i + 1],
            bytes[4 * i + 2],
            bytes[4 * i + 3],
        ]),
        WeightFormat::F16 => f16_to_f32(two(i)),
        WeightFormat::BF16 => bf16_to_f32(two(i)),
        other => panic!("{} is not a float format", other.name()),
    }
}

/// True for the formats whose scale of a 32-block is an integer per 16.
pub const fn scales_per_16(q: &Quantized) -> bool {
    matches!(q.sub_scales, SubScales::NibblePairs | SubScales::Int8)
        || matches!(q.sub_scales, SubScales::SixBit { scales: 16, .. })
}
