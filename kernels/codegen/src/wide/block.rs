//! One 32-block for the columns of a tile: integer sums, and their scaling.

use super::asm::{Address, Asm, Source, Vector};
use super::codes::{Dot, GROUPS, Operands, part_of};
use super::frame::{ROWS_BYTES, reg, stack};
use super::products::Products;
use super::quantized::{COMMON_AT, Kernel, OPERANDS_BYTES};
use super::scales::{FIELD, Minimum};

/// Where operands come from.
pub(super) enum Origin<'f, 'c> {
    /// The block's codes in the panel.
    Panel(&'f mut Operands<'c>),
    /// The block's record.
    Record,
}

impl Kernel<'_> {
    /// One 32-block for the columns of a tile, whose f32 sums are `held` or lie in the
    /// frame.
    pub(super) fn block(&self, a: &mut Asm, columns: usize, from: &mut Origin, held: &[Vector]) {
        let parts = a.level.parts();
        let count = columns * parts;
        let fields_at = match from {
            Origin::Panel(_) => 0,
            Origin::Record => OPERANDS_BYTES,
        };
        let fields = Address::new(reg::RECORD).plus(fields_at);
        let mut integers = Integers {
            sums: a.take_many(count),
            totals: if self.has_totals() {
                a.take_many(count)
            } else {
                Vec::new()
            },
            pending: 0,
            flushed: false,
        };
        let halves = if self.scales.per_16 { 2 } else { 1 };
        for half in 0..halves {
            let groups = GROUPS / halves;
            let factor = self.scales.per_16.then(|| fields.plus(FIELD * half));
            let groups = groups * half..groups * (half + 1);
            self.dots(a, columns, from, &mut integers, groups, factor);
        }
        let dots = if self.has_totals() {
            a.give_many(integers.sums);
            integers.totals
        } else {
            integers.sums
        };
        let factors = self.factors(a, fields);
        for column in 0..columns {
            let sums = &dots[column * parts..][..parts];
            self.convert(a, column, sums, &factors);
            self.scale(a, column, sums, &factors, held);
        }
        a.give_many(dots);
        a.give_many(factors.registers);
    }

    /// The same, whose integer sums are `products`, and the next block's products.
    pub(super) fn block_by_tiles(
        &self,
        a: &mut Asm,
        columns: usize,
        products: &Products,
        held: &[Vector],
    ) {
        products.compute_next(a, columns);
        let factors = self.factors(a, Address::new(reg::RECORD).plus(OPERANDS_BYTES));
        let [sum, half] = [a.take(), a.take()];
        for column in 0..columns {
            a.f32_from_i32(sum, products.of_column(0, columns, column));
            if let [s0, s1] = factors.halves[..] {
                // Exact in f32: 16 codes up to 32 times activations up to 127 times scales
                // up to 128, twice, are below 2^24.
                a.f32_from_i32(half, products.of_column(1, columns, column));
                a.mul(sum, sum, s0);
                a.mul(half, half, s1);
                a.add(sum, sum, half);
            }
            self.scale(a, column, &[sum], &factors, held);
        }
        products.store_next(a);
        a.give_many([sum, half]);
        a.give_many(factors.registers);
    }

    /// Adds the products of some groups to the integer sums. `factor` is the
    /// field that sums of pairs of words, or of dwords, are multiplied with.
    fn dots(
        &self,
        a: &mut Asm,
        columns: usize,
        from: &mut Origin,
        integers: &mut Integers,
        groups: std::ops::Range<u32>,
        factor: Option<Address>,
    ) {
        let parts = a.level.parts();
        let signed = self.codes.dot == Dot::Signed;
        let magnitudes = if signed {
            a.take_many(parts)
        } else {
            Vec::new()
        };
        let ones = signed.then(|| {
            let ones = a.take();
            a.set_dwords(ones, 0x0001_0001);
            ones
        });
        let zero = (signed && a.level.lanes() == 16).then(|| {
            let zero = a.take();
            a.zero(zero);
            zero
        });
        for group in groups.clone() {
            let weights = a.take_many(parts);
            for (part, &w) in weights.iter().enumerate() {
                match from {
                    Origin::Panel(operands) => {
                        operands.load(a, Address::new(reg::CODES), group, part, w)
                    }
                    Origin::Record => {
                        let at = Address::new(reg::RECORD).plus(64 * group);
                        a.load(w, part_of(a, at, part));
                    }
                }
                if signed {
                    a.abs_bytes(magnitudes[part], w);
                }
            }
            let [activations, product] = [a.take(), a.take()];
            for column in 0..columns {
                let at = Address::new(reg::TILE)
                    .index(reg::BLOCK, 8)
                    .plus(self.column_at(column) + 4 * group);
                if self.holds_sums(a.level) {
                    let sum = integers.sums[column];
                    if integers.pending == 0 {
                        a.zero(sum);
                    }
                    a.dot_bytes(sum, weights[0], Source::Broadcast(at));
                    continue;
                }
                a.broadcast_dword(activations, at);
                for (part, &w) in weights.iter().enumerate() {
                    let sum = integers.sums[column * parts + part];
                    let first = integers.pending == 0;
                    match self.codes.dot {
                        Dot::Dwords => {
                            if first {
                                a.zero(sum);
                            }
                            a.dot_bytes(sum, w, activations);
                        }
                        Dot::Tiles => unreachable!("tiles are multiplied as a whole"),
                        Dot::Words { .. } if first => a.mul_add_bytes(sum, w, activations),
                        Dot::Words { .. } => {
                            a.mul_add_bytes(product, w, activations);
                            a.add_words(sum, sum, product);
                        }
                        Dot::Signed => {
                            a.apply_sign(product, activations, w, zero);
                            a.mul_add_bytes(product, magnitudes[part], product);
                            let ones = ones.expect("set above");
                            if first {
                                a.mul_add_words(sum, product, ones);
                            } else {
                                a.mul_add_words(product, product, ones);
                                a.add_dwords(sum, sum, product);
                            }
                        }
                    }
                }
            }
            a.give_many([activations, product]);
            a.give_many(weights);
            integers.pending += 1;
            let last = group + 1 == groups.end;
            let full = match self.codes.dot {
                Dot::Dwords | Dot::Signed | Dot::Tiles => false,
                Dot::Words { groups } => integers.pending == groups,
            };
            if last || full {
                self.flush(a, parts, integers, factor);
            }
        }
        a.give_many(magnitudes);
        a.give_many(ones.into_iter().chain(zero));
    }

    /// Multiplies the sums and adds them to the totals, or widens them in place.
    fn flush(&self, a: &mut Asm, parts: usize, integers: &mut Integers, factor: Option<Address>) {
        integers.pending = 0;
        let words = match self.codes.dot {
            Dot::Signed | Dot::Tiles => return,
            Dot::Dwords if factor.is_none() => return,
            Dot::Dwords => false,
            Dot::Words { .. } => true,
        };
        let ones = factor.is_none().then(|| {
            let ones = a.take();
            a.set_dwords(ones, 0x0001_0001);
            ones
        });
        let product = a.take();
        for (i, &sum) in integers.sums.iter().enumerate() {
            let to = match integers.totals.get(i) {
                None => sum,
                Some(_) if integers.flushed => product,
                Some(&total) => total,
            };
            match (ones, factor) {
                (Some(ones), _) => a.mul_add_words(to, sum, ones),
                (None, Some(field)) => {
                    let field = part_of(a, field, i % parts);
                    if words {
                        a.mul_add_words(to, sum, field);
                    } else {
                        a.mul_dwords(to, sum, field);
                    }
                }
                (None, None) => unreachable!("ones stand for no factor"),
            }
            if to == product {
                a.add_dwords(integers.totals[i], integers.totals[i], product);
            }
        }
        integers.flushed = true;
        a.give(product);
        a.give_many(ones);
    }

    /// What a block's sums are multiplied with in all columns.
    fn factors(&self, a: &mut Asm, fields: Address) -> Factors {
        let common = stack(COMMON_AT);
        let scale = if self.scales.per_16 { common } else { fields };
        let minimum = (self.scales.minimum != Minimum::None)
            .then(|| fields.plus(FIELD * self.scales.minimum_field()));
        let is_held = self.holds_sums(a.level);
        let mut registers = Vec::new();
        let mut factor = |a: &mut Asm, at: Address| -> Vec<Source> {
            let parts = 0..a.level.parts();
            parts
                .map(|part| {
                    let at = part_of(a, at, part);
                    if !is_held {
                        return Source::Memory(at);
                    }
                    let v = a.take();
                    a.load(v, at);
                    registers.push(v);
                    Source::Vector(v)
                })
                .collect()
        };
        let scale = factor(a, scale);
        let halves = match self.codes.dot == Dot::Tiles && self.scales.per_16 {
            true => [0, FIELD].map(|at| factor(a, fields.plus(at))).concat(),
            false => Vec::new(),
        };
        let minimum = minimum.map_or_else(Vec::new, |at| factor(a, at));
        let correction = match (self.scales.has_correction(), self.scales.per_16) {
            (false, _) => Vec::new(),
            (true, true) => factor(a, fields.plus(FIELD * self.scales.correction_field())),
            (true, false) => {
                let v = a.take();
                a.set_dwords(v, self.scales.correction_words());
                registers.push(v);
                vec![Source::Vector(v); a.level.parts()]
            }
        };
        Factors {
            scale,
            halves,
            minimum,
            correction,
            dmin: common.plus(FIELD),
            registers,
        }
    }

    /// A column's 32 bits at `at` in every lane: in `v`, or as operands of instructions
    /// whose other factor is held.
    fn of_column(&self, a: &mut Asm, at: Address, v: Vector) -> Source {
        if self.holds_sums(a.level) {
            return Source::Broadcast(at);
        }
        a.broadcast_dword(v, at);
        Source::Vector(v)
    }

    /// Corrects a column's integer sums and makes them f32.
    fn convert(&self, a: &mut Asm, column: usize, dots: &[Vector], factors: &Factors) {
        if !factors.correction.is_empty() {
            let [v, product] = [a.take(), a.take()];
            let words_at = self.of_block(column, self.layout.sums_offset);
            let words = self.of_column(a, words_at, v);
            for (&dot, &correction) in dots.iter().zip(&factors.correction) {
                a.dot_words(dot, words, correction, product);
            }
            a.give_many([v, product]);
        }
        for &dot in dots {
            a.f32_from_i32(dot, dot);
        }
    }

    /// Adds a column's sums of a block, scaled, to its f32 sums, which are `held` or lie
    /// in the frame.
    fn scale(
        &self,
        a: &mut Asm,
        column: usize,
        dots: &[Vector],
        factors: &Factors,
        held: &[Vector],
    ) {
        let scales = &self.scales;
        let has_minimum = scales.minimum != Minimum::None;
        let product = a.take();
        let v = a.take();
        let words = (has_minimum && scales.per_16).then(|| {
            let words = a.take();
            a.broadcast_dword(words, self.of_block(column, self.layout.sums_offset));
            words
        });
        let d = self.of_column(a, self.of_block(column, self.layout.scales_offset), v);
        let sums = match held {
            [] => dots,
            held => &held[column * dots.len()..][..dots.len()],
        };
        for (part, (&dot, &sum)) in dots.iter().zip(sums).enumerate() {
            a.product(product, d, factors.scale[part]);
            a.mul(dot, dot, product);
            if held.is_empty() {
                a.add(dot, dot, part_of(a, sum_at(column), part));
            } else {
                a.add(sum, sum, dot);
            }
        }
        let scaled_sum = (has_minimum && !scales.per_16)
            .then(|| self.of_column(a, self.of_block(column, self.layout.scaled_sums_offset), v));
        for (part, &sum) in sums.iter().enumerate() {
            if has_minimum {
                let field = factors.minimum[part];
                match (scaled_sum, words) {
                    (Some(scaled_sum), _) => a.product(product, scaled_sum, field),
                    (None, Some(words)) => {
                        a.mul_add_words(product, words, field);
                        a.f32_from_i32(product, product);
                        a.product(product, Source::Vector(product), d);
                        a.mul(product, product, part_of(a, factors.dmin, part));
                    }
                    (None, None) => unreachable!("minimums per 16 multiply words"),
                }
            }
            match scales.minimum {
                Minimum::None => {}
                Minimum::Added => a.add(sum, sum, product),
                Minimum::Subtracted => a.sub(sum, sum, product),
            }
            if held.is_empty() {
                a.store(part_of(a, sum_at(column), part), sum);
            }
        }
        a.give_many([product, v]);
        a.give_many(words);
    }

    /// What a column has of the current block among the values at `offset`.
    fn of_block(&self, column: usize, offset: u32) -> Address {
        Address::new(reg::TILE)
            .plus(self.column_at(column) + offset)
            .index(reg::BLOCK, 1)
    }

    /// Byte of a column of the tile.
    fn column_at(&self, column: usize) -> u32 {
        self.layout.stride * column as u32
    }
}

/// Where the f32 sums of a column are.
pub(super) fn sum_at(column: usize) -> Address {
    Address::new(reg::SUMS).plus(ROWS_BYTES * column as u32)
}

/// What a block's sums are multiplied with, by part: in registers, or in memory.
struct Factors {
    scale: Vec<Source>,
    /// The scales of two halves, where sums are f32 before they are multiplied with them.
    halves: Vec<Source>,
    /// Empty where a format has none.
    minimum: Vec<Source>,
    /// What takes the operands' offset away, as pairs of words; empty where there is
    /// none.
    correction: Vec<Source>,
    /// The header's factor of minimums where scales are per 16.
    dmin: Address,
    /// Where they are, as far as they are in registers.
    registers: Vec<Vector>,
}

/// Integer sums by column, then part.
struct Integers {
    sums: Vec<Vector>,
    /// What sums were added to, where they are added up in two steps.
    totals: Vec<Vector>,
    /// Groups in `sums`.
    pending: u32,
    /// Whether `totals` have values.
    flushed: bool,
}
