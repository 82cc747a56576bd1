//! Block headers: f16 scales and integer sub-scales of 16 rows, unpacked into
//! a table of f32 in the stack frame.
//!
//! The table has one entry per 32-block, made of fields of 16 f32:
//! - scale in `d` (legacy formats, Q4_K, Q5_K, IQ4_XS): `d_w`, then `m_w` if
//!   there is a minimum;
//! - integer scales per 16: `s0`, `s1`, then `m0`, `m1` if there is a minimum.
//!   `d` and `dmin` stand once, in the table's common part.

use super::emit::{Address, Emit};
use super::frame::QUADS;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32X4, I8X16, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use omex_kernels::WeightFormat;
use omex_kernels::block::scales_per_16;
use omex_kernels::format::{BlockScale, Quantized, SubScales};

/// Bytes of a field: 16 rows of f32.
pub(super) const FIELD: u32 = 64;
/// Bytes of the common part: d and dmin.
pub(super) const COMMON: u32 = 2 * FIELD;

/// Conversion of f16 bits at the places of an f32: masks away copies of the
/// sign, then corrects the exponent. Denormal halves come out exact, by way of
/// denormal f32, which some CPUs are slow at.
#[derive(Clone, Copy)]
pub(super) struct F16ToF32 {
    mask: Value,
    factor: Value,
}

impl F16ToF32 {
    pub(super) fn new(e: &mut Emit) -> F16ToF32 {
        let mask = e.u32s(0x8fff_e000);
        let factor = e.f32s(f32::from_bits((127 + 112) << 23));
        F16ToF32 { mask, factor }
    }

    /// `spread` holds the sign in bits 28.. and the magnitude in bits 13..28.
    pub(super) fn convert(self, e: &mut Emit, spread: Value) -> Value {
        let bits = e.b.ins().band(spread, self.mask);
        let small = e.cast(F32X4, bits);
        e.b.ins().fmul(small, self.factor)
    }

    /// The same without denormal operands, in more instructions: for
    /// super-block scales, where denormal halves are common. Exponent 0 gets
    /// the exponent and the implied one of the smallest normal half, which is
    /// then subtracted.
    fn convert_denormals(self, e: &mut Emit, spread: Value) -> Value {
        let (exponent, sign) = (e.u32s(0x0f80_0000), e.u32s(1 << 31));
        let (bias, smallest, zero) = (e.u32s(112 << 23), e.u32s(113 << 23), e.u32s(0));
        let bits = e.b.ins().band(spread, self.mask);
        let exponent = e.b.ins().band(bits, exponent);
        let denormal = e.b.ins().icmp(IntCC::Equal, exponent, zero);
        let normal = e.b.ins().iadd(bits, bias);
        let one_more = e.shift_left(denormal, 23);
        let value = e.b.ins().isub(normal, one_more);
        let sign = e.b.ins().band(bits, sign);
        let implied = e.b.ins().bor(sign, smallest);
        let implied = e.b.ins().band(implied, denormal);
        let (value, implied) = (e.cast(F32X4, value), e.cast(F32X4, implied));
        e.b.ins().fsub(value, implied)
    }
}

pub(super) struct Scales {
    q: Quantized,
    /// What sub-scales are stored too large by.
    sub_offset: u8,
    pub(super) per_16: bool,
    pub(super) minimum: Minimum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Minimum {
    None,
    Added,
    Subtracted,
}

impl Scales {
    pub(super) fn new(format: WeightFormat, q: &Quantized) -> Scales {
        let minimum = match (q.scale, q.sub_scales) {
            (BlockScale::D | BlockScale::E8M0, _) => Minimum::None,
            (BlockScale::DAndMin, SubScales::None) => Minimum::Added,
            (
                BlockScale::DAndMin,
                SubScales::SixBit { .. } | SubScales::NibblePairs | SubScales::Int8,
            ) => Minimum::Subtracted,
        };
        let signed_six_bit = matches!(q.sub_scales, SubScales::SixBit { mins: false, .. });
        assert_eq!(
            signed_six_bit,
            matches!(format, WeightFormat::Q3K | WeightFormat::Iq4Xs)
        );
        Scales {
            q: *q,
            sub_offset: if signed_six_bit { 32 } else { 0 },
            per_16: scales_per_16(q),
            minimum,
        }
    }

    /// 32-blocks that share a header.
    pub(super) fn blocks_per_header(&self) -> u32 {
        self.q.block_len / 32
    }

    pub(super) fn header_bytes(&self) -> u32 {
        self.q.header_bytes()
    }

    pub(super) fn section_header_bytes(&self, blocks: u32) -> u64 {
        self.q.section_header_bytes(blocks) as u64
    }

    fn scales_per_block(&self) -> u32 {
        if self.per_16 { 2 } else { 1 }
    }

    /// Field of the first minimum of an entry.
    pub(super) fn minimum_field(&self) -> u32 {
        self.scales_per_block()
    }

    pub(super) fn entry_bytes(&self) -> u32 {
        let kinds = if self.minimum == Minimum::None { 1 } else { 2 };
        self.scales_per_block() * kinds * FIELD
    }

    /// Whether a header is d, and a minimum where there is one, of one block.
    pub(super) fn are_plain(&self) -> bool {
        self.q.sub_scales == SubScales::None && self.blocks_per_header() == 1
    }

    /// The scales and minimums of a plain header; without minimums, the scales twice.
    pub(super) fn convert(
        &self,
        e: &mut Emit,
        header: Value,
        halves: F16ToF32,
    ) -> [[Value; QUADS]; 2] {
        let header = Address::new(header);
        let d = self.plane(e, header, halves);
        match self.minimum {
            Minimum::None => [d, d],
            Minimum::Added | Minimum::Subtracted => [d, self.plane(e, header.plus(32), halves)],
        }
    }

    /// Unpacks one header into its entries at `table` and the common part.
    pub(super) fn unpack(
        &self,
        e: &mut Emit,
        header: Value,
        table: Value,
        common: Value,
        halves: F16ToF32,
    ) {
        let header = Address::new(header);
        let d = self.plane(e, header, halves);
        let (dmin, sub) = match self.q.scale {
            BlockScale::D => (None, header.plus(32)),
            BlockScale::DAndMin => (
                Some(self.plane(e, header.plus(32), halves)),
                header.plus(64),
            ),
            BlockScale::E8M0 => (None, header.plus(16)),
        };
        let (table, common) = (Address::new(table), Address::new(common));
        if self.q.sub_scales == SubScales::None {
            store_field(e, d, table);
            if let Some(m) = dmin {
                store_field(e, m, table.plus(FIELD));
            }
            return;
        }
        if self.per_16 {
            store_field(e, d, common);
            if let Some(m) = dmin {
                store_field(e, m, common.plus(FIELD));
            }
        }
        let per_block = self.scales_per_block();
        for i in 0..self.blocks_per_header() * per_block {
            let at = table.plus(i / per_block * self.entry_bytes() + i % per_block * FIELD);
            let (scale, minimum) = self.sub_scale(e, sub, i);
            self.store_sub_scale(e, scale, d, at);
            if let (Some(dmin), Some(minimum)) = (dmin, minimum) {
                self.store_sub_scale(e, minimum, dmin, at.plus(self.minimum_field() * FIELD));
            }
        }
    }

    fn store_sub_scale(&self, e: &mut Emit, scale: Value, d: [Value; QUADS], at: Address) {
        let signed = self.sub_offset != 0 || self.q.sub_scales == SubScales::Int8;
        let scale = e.widen_bytes(scale, signed);
        for (quad, (scale, d)) in scale.into_iter().zip(d).enumerate() {
            let mut value = e.f32_from_int(scale);
            if !self.per_16 {
                value = e.b.ins().fmul(d, value);
            }
            e.store(value, at.plus(16 * quad as u32));
        }
    }

    /// Scale and minimum `i` of the 16 rows, as bytes.
    fn sub_scale(&self, e: &mut Emit, sub: Address, i: u32) -> (Value, Option<Value>) {
        match self.q.sub_scales {
            SubScales::None => panic!("no sub-scales"),
            SubScales::Int8 => (e.load(I8X16, sub.plus(16 * i)), None),
            SubScales::NibblePairs => {
                let pair = e.load(I8X16, sub.plus(16 * i));
                let mask = e.bytes([15; 16]);
                (
                    e.byte_field(pair, 4, 0, 0, mask),
                    Some(e.byte_field(pair, 4, 4, 0, mask)),
                )
            }
            SubScales::SixBit { scales, mins } => {
                let scale = self.six_bit(e, sub, scales, i);
                let mins = mins.then(|| self.six_bit(e, sub.plus(scales * 6 / 8 * 16), scales, i));
                (scale, mins)
            }
        }
    }

    fn six_bit(&self, e: &mut Emit, plane: Address, count: u32, i: u32) -> Value {
        let half = count / 2;
        let (low_mask, high_mask) = (e.bytes([0x0f; 16]), e.bytes([0x30; 16]));
        let low = e.load(I8X16, plane.plus(16 * (i % half)));
        let low = e.byte_field(low, 4, 4 * (i / half), 0, low_mask);
        let high = e.load(I8X16, plane.plus(16 * (half + i / 4)));
        let high = e.byte_field(high, 2, 2 * (i % 4), 4, high_mask);
        let value = e.b.ins().bor(low, high);
        if self.sub_offset == 0 {
            return value;
        }
        let offset = e.bytes([self.sub_offset; 16]);
        e.b.ins().isub(value, offset)
    }

    /// A plane of d or dmin as f32.
    fn plane(&self, e: &mut Emit, at: Address, halves: F16ToF32) -> [Value; QUADS] {
        if self.q.scale == BlockScale::E8M0 {
            let bytes = e.load(I8X16, at);
            return e
                .widen_bytes(bytes, false)
                .map(|exponent| half_power_of_two(e, exponent));
        }
        std::array::from_fn(|quad| {
            let half = e.load_i16x4(at.plus(8 * quad as u32));
            let spread = e.shift_left(half, 13);
            if self.q.sub_scales == SubScales::None {
                halves.convert(e, spread)
            } else {
                halves.convert_denormals(e, spread)
            }
        })
    }
}

/// `2^(exponent - 128)`: the exponent less one at its place, and the two
/// denormal values below.
fn half_power_of_two(e: &mut Emit, exponent: Value) -> Value {
    let (one, two) = (e.u32s(1), e.u32s(2));
    let less = e.b.ins().isub(exponent, one);
    let normal = e.shift_left(less, 23);
    let more = e.b.ins().iadd(exponent, one);
    let denormal = e.shift_left(more, 21);
    let is_denormal = e.b.ins().icmp(IntCC::SignedLessThan, exponent, two);
    let bits = e.b.ins().bitselect(is_denormal, denormal, normal);
    assert_eq!(e.b.func.dfg.value_type(bits), I32X4);
    e.cast(F32X4, bits)
}

fn store_field(e: &mut Emit, values: [Value; QUADS], at: Address) {
    for (quad, value) in values.into_iter().enumerate() {
        e.store(value, at.plus(16 * quad as u32));
    }
}
