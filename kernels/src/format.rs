//! Weight formats and the descriptors of their packed layout.
//!
//! The byte layouts of the file blocks are those of ggml (`ggml-common.h`);
//! `FORMATS.md` holds the packed layouts in prose.

use crate::PANEL_ROWS;

/// 32-blocks of a section of a panel: two super-blocks, so that the headers of a whole
/// section fill steps of 64 bytes in every format.
pub const SECTION_BLOCKS: u32 = 16;

/// A weight format as stored in a model file and, regrouped into panels, in a
/// packed model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum WeightFormat {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// How the integer codes of a format are split into bit planes.
///
/// `low` bits (8, 4 or 2) lie in the main plane, `high` bits (0, 1 or 2) in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeBits {
    pub low: u32,
    pub high: u32,
}

/// A bit plane of the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    Main,
    High,
}

impl CodeBits {
    pub const fn of(self, plane: Plane) -> u32 {
        match plane {
            Plane::Main => self.low,
            Plane::High => self.high,
        }
    }

    /// Byte of a step of a plane among the codes of a 32-block: the steps of the main
    /// plane, each step of the other before those of the same elements.
    pub const fn step_at(self, plane: Plane, step: u32) -> u32 {
        let index = match (plane, self.high) {
            (_, 0) => step,
            (Plane::Main, high) => step + step / (self.low / high) + 1,
            (Plane::High, high) => step * (1 + self.low / high),
        };
        64 * index
    }
}

/// Integer sub-scales of a super-block, in the header after d and dmin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubScales {
    None,
    /// `scales` (and as many minimums if `mins`) of 6 bits, as a plane of
    /// nibbles and a plane of 2-bit fields.
    SixBit {
        scales: u32,
        mins: bool,
    },
    /// 16 bytes of a 4-bit scale (low) and a 4-bit minimum (high).
    NibblePairs,
    /// 16 signed bytes.
    Int8,
}

/// The leading header fields of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockScale {
    /// f16 scale d.
    D,
    /// f16 scale d and f16 minimum (m for the legacy formats, dmin for K-quants).
    DAndMin,
    /// E8M0 exponent byte.
    E8M0,
}

/// Descriptor of a quantized format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// Elements along K that share one header: 32 or 256.
    pub block_len: u32,
    /// Bytes of one block of one row in the model file.
    pub file_block_bytes: u32,
    pub scale: BlockScale,
    pub sub_scales: SubScales,
    pub codes: CodeBits,
}

impl Quantized {
    /// Header bytes of one block for the 16 rows of a panel.
    pub const fn header_bytes(&self) -> u32 {
        let scale = match self.scale {
            BlockScale::D => 2,
            BlockScale::DAndMin => 4,
            BlockScale::E8M0 => 1,
        };
        let sub = match self.sub_scales {
            SubScales::None => 0,
            SubScales::SixBit { scales, mins } => scales * 6 / 8 * (1 + mins as u32),
            SubScales::NibblePairs | SubScales::Int8 => 16,
        };
        (scale + sub) * PANEL_ROWS
    }

    /// Bytes of the code planes of one 32-block for the 16 rows of a panel.
    pub const fn quant_bytes(&self) -> u32 {
        32 * (self.codes.low + self.codes.high) / 8 * PANEL_ROWS
    }

    /// Bytes before the codes of a section of `blocks` 32-blocks: its headers, padded
    /// to 64 so that every 64-byte step of codes is aligned.
    pub const fn section_header_bytes(&self, blocks: u32) -> u32 {
        (blocks / (self.block_len / 32) * self.header_bytes()).next_multiple_of(64)
    }

    /// Bytes of a section of `blocks` 32-blocks.
    pub const fn section_bytes(&self, blocks: u32) -> u32 {
        self.section_header_bytes(blocks) + blocks * self.quant_bytes()
    }
}

/// What a format is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// IEEE or bfloat elements of so many bytes, multiplied with f32 activations.
    Float { element_bytes: u32 },
    /// Integer codes, multiplied with int8 activations.
    Quantized(Quantized),
}

const fn q(
    block_len: u32,
    file_block_bytes: u32,
    scale: BlockScale,
    sub_scales: SubScales,
    low: u32,
    high: u32,
) -> Descriptor {
    Descriptor::Quantized(Quantized {
        block_len,
        file_block_bytes,
        scale,
        sub_scales,
        codes: CodeBits { low, high },
    })
}

impl WeightFormat {
    pub const ALL: [WeightFormat; 16] = [
        WeightFormat::F32,
        WeightFormat::F16,
        WeightFormat::BF16,
        WeightFormat::Q4_0,
        WeightFormat::Q4_1,
        WeightFormat::Q5_0,
        WeightFormat::Q5_1,
        WeightFormat::Q8_0,
        WeightFormat::Q2K,
        WeightFormat::Q3K,
        WeightFormat::Q4K,
        WeightFormat::Q5K,
        WeightFormat::Q6K,
        WeightFormat::Iq4Nl,
        WeightFormat::Iq4Xs,
        WeightFormat::Mxfp4,
    ];

    /// Name, ggml type number and descriptor: the table that a new format extends.
    const fn row(self) -> (&'static str, u32, Descriptor) {
        use BlockScale::*;
        use SubScales::*;
        const SIX8: SubScales = SixBit {
            scales: 8,
            mins: true,
        };
        match self {
            WeightFormat::F32 => ("F32", 0, Descriptor::Float { element_bytes: 4 }),
            WeightFormat::F16 => ("F16", 1, Descriptor::Float { element_bytes: 2 }),
            WeightFormat::BF16 => ("BF16", 30, Descriptor::Float { element_bytes: 2 }),
            WeightFormat::Q4_0 => ("Q4_0", 2, q(32, 18, D, None, 4, 0)),
            WeightFormat::Q4_1 => ("Q4_1", 3, q(32, 20, DAndMin, None, 4, 0)),
            WeightFormat::Q5_0 => ("Q5_0", 6, q(32, 22, D, None, 4, 1)),
            WeightFormat::Q5_1 => ("Q5_1", 7, q(32, 24, DAndMin, None, 4, 1)),
            WeightFormat::Q8_0 => ("Q8_0", 8, q(32, 34, D, None, 8, 0)),
            WeightFormat::Q2K => ("Q2_K", 10, q(256, 84, DAndMin, NibblePairs, 2, 0)),
            WeightFormat::Q3K => (
                "Q3_K",
                11,
                q(
                    256,
                    110,
                    D,
                    SixBit {
                        scales: 16,
                        mins: false,
                    },
                    2,
                    1,
                ),
            ),
            WeightFormat::Q4K => ("Q4_K", 12, q(256, 144, DAndMin, SIX8, 4, 0)),
            WeightFormat::Q5K => ("Q5_K", 13, q(256, 176, DAndMin, SIX8, 4, 1)),
            WeightFormat::Q6K => ("Q6_K", 14, q(256, 210, D, Int8, 4, 2)),
            WeightFormat::Iq4Nl => ("IQ4_NL", 20, q(32, 18, D, None, 4, 0)),
            WeightFormat::Iq4Xs => (
                "IQ4_XS",
                23,
                q(
                    256,
                    136,
                    D,
                    SixBit {
                        scales: 8,
                        mins: false,
                    },
                    4,
                    0,
                ),
            ),
            WeightFormat::Mxfp4 => ("MXFP4", 39, q(32, 17, E8M0, None, 4, 0)),
        }
    }

    /// The name as ggml writes it, e.g. `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The ggml type number of a GGUF tensor.
    pub const fn ggml_type(self) -> u32 {
        self.row().1
    }

    pub const fn descriptor(self) -> Descriptor {
        self.row().2
    }

    pub fn from_name(name: &str) -> Option<WeightFormat> {
        WeightFormat::ALL.into_iter().find(|f| f.name() == name)
    }

    pub fn from_ggml_type(number: u32) -> Option<WeightFormat> {
        WeightFormat::ALL
            .into_iter()
            .find(|f| f.ggml_type() == number)
    }

    /// Elements along K that a row must be a multiple of.
    pub const fn k_multiple(self) -> u32 {
        match self.descriptor() {
            Descriptor::Float { element_bytes } => 4 / element_bytes,
            Descriptor::Quantized(q) => q.block_len,
        }
    }

    /// True when the matmul of this format takes int8 activations.
    pub const fn takes_q8(self) -> bool {
        matches!(self.descriptor(), Descriptor::Quantized(_))
    }

    /// Bytes of one row of `k` elements as the model file stores it.
    pub const fn row_bytes(self, k: u32) -> u64 {
        match self.descriptor() {
            Descriptor::Float { element_bytes } => k as u64 * element_bytes as u64,
            Descriptor::Quantized(q) => (k / q.block_len) as u64 * q.file_block_bytes as u64,
        }
    }

    /// Bytes of one packed panel: 16 rows of `k` elements. Always a multiple of 64.
    pub const fn panel_bytes(self, k: u32) -> u64 {
        match self.descriptor() {
            Descriptor::Float { element_bytes } => {
                k as u64 * element_bytes as u64 * PANEL_ROWS as u64
            }
            Descriptor::Quantized(q) => {
                let (sections, rest) = (k / 32 / SECTION_BLOCKS, k / 32 % SECTION_BLOCKS);
                sections as u64 * q.section_bytes(SECTION_BLOCKS) as u64
                    + q.section_bytes(rest) as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panels hold the file's bytes and nothing more, before the 64-byte
    /// padding of the last section's headers.
    #[test]
    fn packed_blocks_are_no_larger_than_file_blocks() {
        for f in WeightFormat::ALL {
            if let Descriptor::Quantized(q) = f.descriptor() {
                let packed = q.header_bytes() + q.block_len / 32 * q.quant_bytes();
                assert_eq!(packed, q.file_block_bytes * PANEL_ROWS, "{}", f.name());
                let whole = SECTION_BLOCKS * 32;
                let file_bytes = f.row_bytes(whole) * PANEL_ROWS as u64;
                assert_eq!(f.panel_bytes(whole), file_bytes, "{}", f.name());
            }
            assert_eq!(f.panel_bytes(2048) % 64, 0, "{}", f.name());
        }
    }

    /// Whoever goes through the groups of four elements, high bits first, reads steps in
    /// order, each once.
    #[test]
    fn steps_lie_in_the_order_of_their_use() {
        for f in WeightFormat::ALL {
            let Descriptor::Quantized(q) = f.descriptor() else {
                continue;
            };
            let mut read = std::vec::Vec::new();
            for group in 0..8 {
                for plane in [Plane::High, Plane::Main] {
                    let bits = q.codes.of(plane);
                    let at = q.codes.step_at(plane, group * bits / 8);
                    if bits > 0 && !read.contains(&at) {
                        read.push(at);
                    }
                }
            }
            let steps: std::vec::Vec<u32> = (0..q.quant_bytes()).step_by(64).collect();
            assert_eq!(read, steps, "{}", f.name());
        }
    }

    #[test]
    fn names_and_numbers_are_unique() {
        for f in WeightFormat::ALL {
            assert_eq!(WeightFormat::from_name(f.name()), Some(f));
            assert_eq!(WeightFormat::from_ggml_type(f.ggml_type()), Some(f));
        }
    }
}
