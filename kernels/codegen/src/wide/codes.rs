//! Quantized codes: from the bit planes of a panel to operands of byte
//! multiplications.

use super::asm::{Address, Asm, Vector};
use super::level::Level;
use omex_kernels::WeightFormat;
use omex_kernels::block::{IQ4_VALUES, MXFP4_VALUES};
use omex_kernels::format::{CodeBits, Plane, Quantized};

/// Groups of four k in a 32-block.
pub(super) const GROUPS: u32 = 8;
/// Largest magnitude of an activation code.
const ACTIVATION_MAX: i32 = 127;

#[derive(Clone)]
enum Map {
    /// The code itself.
    Plain,
    /// Two's complement with the sign flipped: value + 128.
    FlipSign,
    /// So much less than the code.
    Less(u8),
    /// One of 16 values.
    Table([u8; 16]),
}

/// How operands are multiplied with activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dot {
    /// `vpdpbusd` on unsigned operands, exact in i32.
    Dwords,
    /// `vpmaddubsw` on unsigned operands: so many groups fit in the 16-bit sums.
    Words { groups: u32 },
    /// `vpmaddubsw` on magnitudes, the signs moved to the activations: the sum of
    /// two products is at most 128 * 127 * 2, so that a group just fits.
    Signed,
    /// `tdpbssd`, exact in i32.
    Tiles,
}

/// The operands of one format at one level.
#[derive(Clone)]
pub(super) struct Codes {
    bits: CodeBits,
    map: Map,
    /// What every operand is larger than the value that it stands for: 0 or a
    /// power of two.
    pub(super) offset: u32,
    pub(super) dot: Dot,
}

impl Codes {
    pub(super) fn new(format: WeightFormat, q: &Quantized, level: Level) -> Codes {
        let bits = q.codes;
        let unsigned = |map: Map, offset: u32, max: i32| {
            let groups = i16::MAX as i32 / (2 * ACTIVATION_MAX * max);
            let dot = if level.has_vnni() {
                Dot::Dwords
            } else {
                assert!(groups > 0, "operands up to {max} do not fit in 16 bits");
                Dot::Words {
                    groups: groups as u32,
                }
            };
            Codes {
                bits,
                map,
                offset,
                dot,
            }
        };
        let plain = |offset| unsigned(Map::Plain, offset, (1 << (bits.low + bits.high)) - 1);
        let table = |values: [i8; 16], offset: u32| {
            let operands = values.map(|v| (v as i32 + offset as i32) as u8);
            let max = operands.into_iter().max().expect("16 values");
            unsigned(Map::Table(operands), offset, max as i32)
        };
        let signed = |map| Codes {
            bits,
            map,
            offset: 0,
            dot: Dot::Signed,
        };
        match format {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => {
                panic!("{} has no codes", format.name())
            }
            WeightFormat::Q4_1
            | WeightFormat::Q5_1
            | WeightFormat::Q2K
            | WeightFormat::Q4K
            | WeightFormat::Q5K => plain(0),
            WeightFormat::Q3K => plain(4),
            WeightFormat::Q4_0 => plain(8),
            WeightFormat::Q5_0 => plain(16),
            WeightFormat::Q6K => plain(32),
            WeightFormat::Q8_0 if level.has_vnni() => unsigned(Map::FlipSign, 128, 255),
            WeightFormat::Q8_0 => signed(Map::Plain),
            WeightFormat::Iq4Nl | WeightFormat::Iq4Xs if level.has_vnni() => table(IQ4_VALUES, 128),
            WeightFormat::Iq4Nl | WeightFormat::Iq4Xs => {
                signed(Map::Table(IQ4_VALUES.map(|v| v as u8)))
            }
            WeightFormat::Mxfp4 => table(MXFP4_VALUES, 16),
        }
    }

    /// The same for tiles, whose operands are signed and thus need no offset.
    pub(super) fn for_tiles(&self) -> Codes {
        let offset = self.offset as u8;
        Codes {
            bits: self.bits,
            map: match self.map {
                Map::Plain if offset == 0 => Map::Plain,
                Map::Plain => Map::Less(offset),
                Map::FlipSign => Map::Plain,
                Map::Table(operands) => Map::Table(operands.map(|v| v.wrapping_sub(offset))),
                Map::Less(_) => unreachable!("codes for tiles"),
            },
            offset: 0,
            dot: Dot::Tiles,
        }
    }

    /// Registers that [`Operands`] take for themselves: constants, steps, and a field
    /// that another joins.
    pub(super) fn registers(&self, level: Level) -> usize {
        let CodeBits { low, high } = self.bits;
        let planes = (low < 8) as usize + (high > 0) as usize;
        let map = !matches!(self.map, Map::Plain) as usize;
        planes * (1 + level.parts()) + map + (high > 0) as usize
    }

    /// Puts the constants of [`Operands::load`] into registers.
    pub(super) fn operands<'c>(&'c self, a: &mut Asm) -> Operands<'c> {
        let bytes = |a: &mut Asm, value: u8| {
            let v = a.take();
            a.set_bytes(v, value);
            v
        };
        let ones = |count: u32| ((1u32 << count) - 1) as u8;
        let CodeBits { low, high } = self.bits;
        Operands {
            codes: self,
            low_mask: (low < 8).then(|| bytes(a, ones(low))),
            high_mask: (high > 0).then(|| bytes(a, ones(high) << low)),
            map: match &self.map {
                Map::Plain => None,
                Map::FlipSign => Some(bytes(a, 0x80)),
                Map::Less(offset) => Some(bytes(a, *offset)),
                Map::Table(table) => {
                    let v = a.take();
                    a.set_table(v, table);
                    Some(v)
                }
            },
            steps: Vec::new(),
        }
    }
}

/// Reads operands of one 32-block after the other.
pub(super) struct Operands<'c> {
    codes: &'c Codes,
    low_mask: Option<Vector>,
    high_mask: Option<Vector>,
    map: Option<Vector>,
    /// Per plane and part of the rows: the step that is in a register.
    steps: Vec<(Plane, usize, u32, Vector)>,
}

impl Operands<'_> {
    /// Loads the operands of a group for one part of the 16 rows. `at` is the
    /// block's codes.
    pub(super) fn load(&mut self, a: &mut Asm, at: Address, group: u32, part: usize, to: Vector) {
        let low = self.codes.bits.low;
        if let Some(mask) = self.high_mask {
            let (step, bit) = self.step(a, at, Plane::High, group, part);
            let field = if bit > low {
                a.shift_words_right(to, step, bit - low);
                to
            } else if bit < low {
                a.shift_words_left(to, step, low - bit);
                to
            } else {
                step
            };
            a.and(to, field, mask);
        }
        match self.low_mask {
            None => {
                let at = at.plus(self.codes.bits.step_at(Plane::Main, group));
                a.load(to, part_of(a, at, part));
            }
            Some(mask) => {
                let (step, bit) = self.step(a, at, Plane::Main, group, part);
                let joins = self.high_mask.is_some();
                let field = if joins { a.take() } else { to };
                let shifted = if bit > 0 {
                    a.shift_words_right(field, step, bit);
                    field
                } else {
                    step
                };
                if joins {
                    a.or_masked(to, shifted, mask, field);
                    a.give(field);
                } else {
                    a.and(to, shifted, mask);
                }
            }
        }
        match (&self.codes.map, self.map) {
            (Map::FlipSign, Some(sign)) => a.xor(to, to, sign),
            (Map::Table(_), Some(table)) => a.shuffle_bytes(to, table, to),
            (Map::Less(_), Some(offset)) => a.sub_bytes(to, to, offset),
            (Map::Plain, _) => {}
            (Map::FlipSign | Map::Less(_) | Map::Table(_), None) => {
                unreachable!("set by `operands`")
            }
        }
    }

    /// The register with a group's step of a plane, and the group's first bit.
    fn step(
        &mut self,
        a: &mut Asm,
        codes_at: Address,
        plane: Plane,
        group: u32,
        part: usize,
    ) -> (Vector, u32) {
        let bit = group * self.codes.bits.of(plane);
        let (step, bit) = (bit / 8, bit % 8);
        let held = self
            .steps
            .iter_mut()
            .find(|(p, of, _, _)| (*p, *of) == (plane, part));
        let at = codes_at.plus(self.codes.bits.step_at(plane, step));
        let at = part_of(a, at, part);
        let v = match held {
            Some((_, _, held, v)) => {
                if *held != step {
                    a.load(*v, at);
                    *held = step;
                }
                *v
            }
            None => {
                let v = a.take();
                a.load(v, at);
                self.steps.push((plane, part, step, v));
                v
            }
        };
        (v, bit)
    }

    /// Forgets the block's steps.
    pub(super) fn next_block(&mut self, a: &mut Asm) {
        a.give_many(self.steps.drain(..).map(|(_, _, _, v)| v));
    }

    /// Frees the registers of the constants.
    pub(super) fn end(mut self, a: &mut Asm) {
        self.next_block(a);
        let constants = [self.low_mask, self.high_mask, self.map];
        a.give_many(constants.into_iter().flatten());
    }
}

/// Part `part` of 16 lanes of four bytes at `at`.
pub(super) fn part_of(a: &Asm, at: Address, part: usize) -> Address {
    at.plus(a.level.bytes() * part as u32)
}
