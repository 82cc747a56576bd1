//! Quantized codes: from the bit planes of a panel to int8 operands.

use super::emit::{Address, Emit};
use crate::Arch;
use cranelift_codegen::ir::types::I8X16;
use cranelift_codegen::ir::{InstBuilder, Value};
use omex_kernels::WeightFormat;
use omex_kernels::block::{IQ4_VALUES, MXFP4_VALUES};
use omex_kernels::format::{CodeBits, Plane, Quantized};

/// Groups of four k in a 32-block.
pub(super) const GROUPS: u32 = 8;

/// How the operands of a dot product are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Domain {
    U8,
    I8,
}

enum Map {
    /// The code itself.
    Plain,
    /// Two's complement with the sign flipped: value + 128.
    FlipSign,
    /// One of 16 values.
    Table([u8; 16]),
}

/// The operands of one format in one domain.
pub(super) struct Codes {
    bits: CodeBits,
    map: Map,
    /// What every operand is larger than the value that it stands for.
    pub(super) offset: i32,
    /// The largest magnitude of an operand.
    pub(super) magnitude_max: i32,
}

/// Constants in registers while a pass executes.
pub(super) struct Constants {
    low_mask: Option<Value>,
    high_nibble_mask: Option<Value>,
    high_mask: Option<Value>,
    table: Option<Value>,
}

impl Codes {
    pub(super) fn new(format: WeightFormat, q: &Quantized, domain: Domain) -> Codes {
        let bits = q.codes;
        let plain = |offset| Codes {
            bits,
            map: Map::Plain,
            offset,
            magnitude_max: (1 << (bits.low + bits.high)) - 1,
        };
        let table = |values: &[i8; 16], bias: i32| {
            let offset = if domain == Domain::U8 { bias } else { 0 };
            let operands = values.map(|v| v as i32 + offset);
            Codes {
                bits,
                map: Map::Table(operands.map(|v| v as u8)),
                offset,
                magnitude_max: operands.into_iter().map(i32::abs).max().expect("16 values"),
            }
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
            WeightFormat::Q8_0 => match domain {
                Domain::U8 => Codes {
                    bits,
                    map: Map::FlipSign,
                    offset: 128,
                    magnitude_max: 255,
                },
                Domain::I8 => Codes {
                    bits,
                    map: Map::Plain,
                    offset: 0,
                    magnitude_max: 128,
                },
            },
            WeightFormat::Iq4Nl | WeightFormat::Iq4Xs => table(&IQ4_VALUES, 128),
            WeightFormat::Mxfp4 => table(&MXFP4_VALUES, 12),
        }
    }

    /// True if a high nibble may stay where it is, as 16 times its code.
    pub(super) fn nibbles_in_place(&self) -> bool {
        self.bits.low == 4 && self.bits.high == 0 && matches!(self.map, Map::Plain)
    }

    /// Planes that the bits of a code lie in.
    pub(super) fn planes(&self) -> usize {
        1 + (self.bits.high > 0) as usize
    }

    /// Registers that [`Codes::constants`] occupy.
    pub(super) fn constant_registers(&self, in_place: bool) -> usize {
        (self.bits.low < 8) as usize
            + in_place as usize
            + (self.bits.high > 0) as usize
            + !matches!(self.map, Map::Plain) as usize
    }

    pub(super) fn constants(&self, e: &mut Emit, in_place: bool) -> Constants {
        let mask = |e: &mut Emit, bits: u32, at: u32| {
            (bits > 0 && bits < 8).then(|| e.bytes([(((1u32 << bits) - 1) << at) as u8; 16]))
        };
        Constants {
            low_mask: mask(e, self.bits.low, 0),
            high_nibble_mask: if in_place { mask(e, 4, 4) } else { None },
            high_mask: mask(e, self.bits.high, self.bits.low),
            table: match &self.map {
                Map::Plain => None,
                Map::FlipSign => Some(e.bytes([0x80; 16])),
                Map::Table(values) => Some(e.bytes(*values)),
            },
        }
    }

    /// The operands of group `group` of the four rows whose part of the first
    /// step of the 32-block lies at `at`. With `in_place`, groups with odd
    /// numbers are 16 times as large.
    pub(super) fn load(
        &self,
        e: &mut Emit,
        constants: &Constants,
        steps: &mut Steps,
        at: Address,
        group: u32,
    ) -> Value {
        if let Some(high_nibble) = constants.high_nibble_mask {
            let step = steps.load(e, self.bits, Plane::Main, at, group / 2);
            let mask = if group.is_multiple_of(2) {
                constants.low_mask
            } else {
                Some(high_nibble)
            };
            return e.b.ins().band(mask.expect("a mask of nibbles"), step);
        }
        let mut field = |plane, to, mask: Option<Value>| {
            let bits = self.bits.of(plane);
            let step = steps.load(e, self.bits, plane, at, group * bits / 8);
            match mask {
                Some(mask) => e.byte_field(step, bits, group * bits % 8, to, mask),
                None => step,
            }
        };
        // In the order of memory.
        let high =
            (self.bits.high > 0).then(|| field(Plane::High, self.bits.low, constants.high_mask));
        let low = field(Plane::Main, 0, constants.low_mask);
        let code = match high {
            Some(high) => e.b.ins().bor(low, high),
            None => low,
        };
        match (&self.map, constants.table) {
            (Map::FlipSign, Some(sign)) => e.b.ins().bxor(sign, code),
            (Map::Table(_), Some(table)) => match e.arch {
                Arch::X86_64 => e.b.ins().x86_pshufb(table, code),
                Arch::Aarch64 => e.b.ins().swizzle(table, code),
            },
            (Map::Plain, _) => code,
            (Map::FlipSign | Map::Table(_), None) => panic!("constants of another format"),
        }
    }
}

/// The step of each plane that was loaded last, if it may stay in a register
/// until the next group needs it.
pub(super) struct Steps {
    keep: bool,
    last: [Option<(u32, Value)>; 2],
}

impl Steps {
    pub(super) fn new(keep: bool) -> Steps {
        Steps {
            keep,
            last: [None; 2],
        }
    }

    fn load(
        &mut self,
        e: &mut Emit,
        codes: CodeBits,
        plane: Plane,
        at: Address,
        step: u32,
    ) -> Value {
        let held = &mut self.last[plane as usize];
        match *held {
            Some((last, value)) if self.keep && last == step => value,
            Some(_) | None => {
                let value = e.load(I8X16, at.plus(codes.step_at(plane, step)));
                *held = Some((step, value));
                value
            }
        }
    }
}
