//! Block headers: scales of 16 rows, unpacked into fields of 64 bytes, one lane
//! per row.
//!
//! | scales | fields of a 32-block | common to the header |
//! |---|---|---|
//! | part of d | f32 `d_w`, [f32 `m_w`] | |
//! | integers per 16 | `s0`, `s1`, [correction], [minimums] | f32 `d`, [f32 `dmin`] |
//!
//! `s` is what a sum of a half is multiplied with: i32, twice the same word where sums
//! are pairs of words, or f32 for tiles. The correction is the words `-offset (s0, s1)`,
//! whose product with `(sum0, sum1)` takes away what the codes' offset adds; minimums
//! are the words `(m0, m1)`.

use super::asm::{Address, Asm, Vector};
use super::codes::{Codes, Dot, part_of};
use omex_kernels::block::scales_per_16;
use omex_kernels::format::{BlockScale, Quantized, SubScales};

pub(super) const FIELD: u32 = 64;
/// Bytes of what is common to a header.
pub(super) const COMMON: u32 = 2 * FIELD;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Minimum {
    None,
    Added,
    Subtracted,
}

pub(super) struct Scales {
    q: Quantized,
    /// What sub-scales are stored too large by.
    sub_offset: u8,
    pub(super) per_16: bool,
    pub(super) minimum: Minimum,
    dot: Dot,
    /// That of the operands.
    offset: u32,
}

impl Scales {
    pub(super) fn new(q: &Quantized, codes: &Codes) -> Scales {
        let minimum = match (q.scale, q.sub_scales) {
            (BlockScale::D | BlockScale::E8M0, _) => Minimum::None,
            (BlockScale::DAndMin, SubScales::None) => Minimum::Added,
            (
                BlockScale::DAndMin,
                SubScales::SixBit { .. } | SubScales::NibblePairs | SubScales::Int8,
            ) => Minimum::Subtracted,
        };
        let signed_six_bit = matches!(q.sub_scales, SubScales::SixBit { mins: false, .. });
        Scales {
            q: *q,
            sub_offset: if signed_six_bit { 32 } else { 0 },
            per_16: scales_per_16(q),
            minimum,
            dot: codes.dot,
            offset: codes.offset,
        }
    }

    /// 32-blocks that share a header.
    pub(super) fn blocks_per_header(&self) -> u32 {
        self.q.block_len / 32
    }

    pub(super) fn header_bytes(&self) -> u32 {
        self.q.header_bytes()
    }

    pub(super) fn section_header_bytes(&self, blocks: u32) -> u32 {
        self.q.section_header_bytes(blocks)
    }

    fn has_minimum(&self) -> bool {
        self.minimum != Minimum::None
    }

    pub(super) fn has_correction(&self) -> bool {
        self.offset > 0
    }

    /// What a sum of activation codes is multiplied with to take away what the
    /// operands' offset adds, as a pair of words.
    pub(super) fn correction_words(&self) -> u32 {
        u32::from(self.offset.wrapping_neg() as u16) * 0x0001_0001
    }

    pub(super) fn correction_field(&self) -> u32 {
        2
    }

    pub(super) fn minimum_field(&self) -> u32 {
        match self.per_16 {
            true => 2 + self.has_correction() as u32,
            false => 1,
        }
    }

    /// Whether tiles are worth their scaling, which is too long where halves have minimums
    /// of their own, too (Q2_K by AMX: 0.83 times the speed).
    pub(super) fn fit_tiles(&self) -> bool {
        !self.per_16 || self.minimum == Minimum::None
    }

    pub(super) fn fields_bytes(&self) -> u32 {
        FIELD * (self.minimum_field() + self.has_minimum() as u32)
    }

    /// Unpacks a header into the fields of its blocks, which lie `stride` bytes
    /// apart, and the common part.
    pub(super) fn unpack(
        &self,
        a: &mut Asm,
        header: Address,
        fields: Address,
        stride: u32,
        common: Address,
    ) {
        let d = self.block_scale(a, header);
        let (dmin, sub) = match self.q.scale {
            BlockScale::D => (None, header.plus(32)),
            BlockScale::DAndMin => (Some(self.block_scale(a, header.plus(32))), header.plus(64)),
            BlockScale::E8M0 => (None, header.plus(16)),
        };
        let mut constants = SubConstants::new(a, self);
        if self.q.sub_scales == SubScales::None {
            store(a, &d, fields);
            if let Some(m) = &dmin {
                store(a, m, fields.plus(FIELD));
            }
        } else if self.per_16 {
            store(a, &d, common);
            if let Some(m) = &dmin {
                store(a, m, common.plus(FIELD));
            }
            for block in 0..self.blocks_per_header() {
                self.unpack_pair(a, &constants, sub, block, fields.plus(stride * block));
            }
        } else {
            for block in 0..self.blocks_per_header() {
                let at = fields.plus(stride * block);
                let (scale, minimum) = self.sub_scale(a, &constants, sub, block);
                self.store_scaled(a, scale, &d, at);
                if let (Some(minimum), Some(dmin)) = (minimum, &dmin) {
                    self.store_scaled(a, minimum, dmin, at.plus(FIELD));
                }
            }
        }
        constants.end(a);
        a.give_many(d);
        a.give_many(dmin.into_iter().flatten());
    }

    /// `d * float(sub-scale)`. Frees `rows`.
    fn store_scaled(&self, a: &mut Asm, rows: Vector, d: &[Vector], at: Address) {
        let wide = a.widen_rows(rows, self.sub_offset != 0);
        for (&v, &d) in wide.iter().zip(d) {
            a.f32_from_i32(v, v);
            a.mul(v, v, d);
        }
        store(a, &wide, at);
        a.give_many(wide);
        a.give(rows);
    }

    /// The fields of a block with scales per 16.
    fn unpack_pair(
        &self,
        a: &mut Asm,
        constants: &SubConstants,
        sub: Address,
        block: u32,
        at: Address,
    ) {
        let signed = self.sub_offset != 0 || self.q.sub_scales == SubScales::Int8;
        let (s0, m0) = self.sub_scale(a, constants, sub, 2 * block);
        let (s1, m1) = self.sub_scale(a, constants, sub, 2 * block + 1);
        // Scales are bytes and offsets at most 128, so products fit in 16 bits.
        if let Some(offset) = constants.correction {
            let pairs = a.pair_rows(s0, s1, signed);
            for &v in &pairs {
                a.mul_words(v, v, offset);
            }
            store(a, &pairs, at.plus(FIELD * self.correction_field()));
            a.give_many(pairs);
        }
        for (i, s) in [s0, s1].into_iter().enumerate() {
            let wide = match self.dot {
                Dot::Words { .. } | Dot::Signed => a.pair_rows(s, s, signed),
                Dot::Dwords | Dot::Tiles => a.widen_rows(s, signed),
            };
            if self.dot == Dot::Tiles {
                wide.iter().for_each(|&v| a.f32_from_i32(v, v));
            }
            store(a, &wide, at.plus(FIELD * i as u32));
            a.give_many(wide);
            a.give(s);
        }
        if let (Some(m0), Some(m1)) = (m0, m1) {
            let pairs = a.pair_rows(m0, m1, false);
            store(a, &pairs, at.plus(FIELD * self.minimum_field()));
            a.give_many(pairs);
            a.give_many([m0, m1]);
        }
    }

    /// Scale and minimum `i` of the 16 rows, as bytes.
    fn sub_scale(
        &self,
        a: &mut Asm,
        constants: &SubConstants,
        sub: Address,
        i: u32,
    ) -> (Vector, Option<Vector>) {
        match self.q.sub_scales {
            SubScales::None => panic!("no sub-scales"),
            SubScales::Int8 => {
                let scale = a.take();
                a.load_rows(scale, sub.plus(16 * i));
                (scale, None)
            }
            SubScales::NibblePairs => {
                let [scale, minimum] = [a.take(), a.take()];
                a.load_rows(scale, sub.plus(16 * i));
                a.load_rows(minimum, sub.plus(16 * i));
                a.shift_rows(minimum, -4);
                for v in [scale, minimum] {
                    a.and_rows(v, v, constants.low());
                }
                (scale, Some(minimum))
            }
            SubScales::SixBit { scales, mins } => {
                let scale = self.six_bit(a, constants, sub, scales, i);
                let mins = mins.then(|| {
                    let plane = sub.plus(scales * 6 / 8 * 16);
                    self.six_bit(a, constants, plane, scales, i)
                });
                (scale, mins)
            }
        }
    }

    fn six_bit(
        &self,
        a: &mut Asm,
        constants: &SubConstants,
        plane: Address,
        count: u32,
        i: u32,
    ) -> Vector {
        let half = count / 2;
        let [value, high] = [a.take(), a.take()];
        a.load_rows(value, plane.plus(16 * (i % half)));
        a.shift_rows(value, -4 * (i / half) as i32);
        a.and_rows(value, value, constants.low());
        a.load_rows(high, plane.plus(16 * (half + i / 4)));
        a.shift_rows(high, 4 - 2 * (i % 4) as i32);
        a.and_rows(high, high, constants.high.expect("a mask of the high bits"));
        a.or_rows(value, value, high);
        if let Some(offset) = constants.offset {
            a.sub_rows(value, value, offset);
        }
        a.give(high);
        value
    }

    /// A plane of d or dmin as f32.
    fn block_scale(&self, a: &mut Asm, at: Address) -> Vec<Vector> {
        if self.q.scale == BlockScale::E8M0 {
            let rows = a.take();
            a.load_rows(rows, at);
            let exponents = a.widen_rows(rows, false);
            a.give(rows);
            half_powers_of_two(a, &exponents);
            return exponents;
        }
        let vectors = a.take_many(a.level.parts());
        for (part, &v) in vectors.iter().enumerate() {
            a.f32_from_f16(v, at.plus(2 * a.level.lanes() * part as u32));
        }
        vectors
    }
}

/// `2^(e - 128)` in place. Above 1 that is the exponent less one at its place, and
/// below a denormal; as integers the right one is the larger.
fn half_powers_of_two(a: &mut Asm, exponents: &[Vector]) {
    let [one, denormal] = [a.take(), a.take()];
    a.set_dwords(one, 1);
    for &e in exponents {
        a.add_dwords(denormal, e, one);
        a.shift_dwords_left(denormal, denormal, 21);
        a.sub_dwords(e, e, one);
        a.shift_dwords_left(e, e, 23);
        a.max_dwords(e, e, denormal);
    }
    a.give_many([one, denormal]);
}

/// Masks for the bytes of sub-scales.
struct SubConstants {
    low: Option<Vector>,
    high: Option<Vector>,
    offset: Option<Vector>,
    correction: Option<Vector>,
}

impl SubConstants {
    fn new(a: &mut Asm, scales: &Scales) -> SubConstants {
        let six_bit = matches!(scales.q.sub_scales, SubScales::SixBit { .. });
        let nibbles = six_bit || scales.q.sub_scales == SubScales::NibblePairs;
        let mut set = |wanted: bool, value: u8| {
            wanted.then(|| {
                let v = a.take();
                a.set_bytes(v, value);
                v
            })
        };
        SubConstants {
            low: set(nibbles, 0x0f),
            high: set(six_bit, 0x30),
            offset: set(scales.sub_offset != 0, scales.sub_offset),
            correction: (scales.per_16 && scales.has_correction()).then(|| {
                let v = a.take();
                a.set_dwords(v, scales.correction_words());
                v
            }),
        }
    }

    fn low(&self) -> Vector {
        self.low.expect("a mask of nibbles")
    }

    fn end(&mut self, a: &mut Asm) {
        let all = [
            self.low.take(),
            self.high.take(),
            self.offset.take(),
            self.correction.take(),
        ];
        a.give_many(all.into_iter().flatten());
    }
}

fn store(a: &mut Asm, parts: &[Vector], at: Address) {
    for (part, &v) in parts.iter().enumerate() {
        a.store(part_of(a, at, part), v);
    }
}
