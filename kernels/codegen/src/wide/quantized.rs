//! Matmul of quantized weights with int8 activations.
//!
//! A panel is worked on in chunks of up to eight 32-blocks, whose headers are
//! unpacked into the stack frame. One column reads its operands from the panel,
//! because each is used once. For more columns a chunk's codes are unpacked too,
//! into records that stay in the first-level cache while tiles of columns pass.
//! The f32 sums lie in the frame, because the registers hold integer sums.

use super::asm::{Address, Asm, Vector, When};
use super::codes::{Codes, Dot, GROUPS, Operands, part_of};
use super::frame::{Frame, LOCALS, Local, ROWS_BYTES, reg, sizes, stack};
use super::level::Level;
use super::scales::{COMMON, FIELD, Minimum, Scales};
use crate::{KernelShape, cost};
use iced_x86::Register;
use omex_kernels::PANEL_ROWS;
use omex_kernels::activation::Q8Layout;
use omex_kernels::format::Quantized;

/// 32-blocks of a chunk: those of a super-block.
const CHUNK_BLOCKS: u32 = 8;
/// Bytes of the operands of a 32-block in a record.
const OPERANDS_BYTES: u32 = 64 * GROUPS;
/// Columns in work: enough to make unpacking cheap, few enough for the frame.
const COLUMNS_MIN: u32 = 24;
const COLUMNS_MAX: u32 = 96;
/// Panels that a single column reads at once, far apart, where that pays.
const STREAMS: u32 = 2;

const COMMON_AT: u32 = LOCALS;
const RECORDS_AT: u32 = COMMON_AT + STREAMS * COMMON;

struct Kernel<'k> {
    frame: &'k Frame<'k>,
    layout: Q8Layout,
    codes: &'k Codes,
    scales: Scales,
    blocks: u32,
    quant_bytes: u32,
}

/// Where operands come from.
enum Origin<'f, 'c> {
    /// The block's codes in the panel of a stream.
    Panel(&'f mut Operands<'c>, u32),
    /// The block's record.
    Record,
}

/// The place of `r` in a stream.
fn stream_at(r: Register, stream: u32) -> Address {
    match stream {
        0 => Address::new(r),
        n => Address::new(r).index(reg::STREAM, n),
    }
}

pub(super) fn shape(frame: &Frame, q: &Quantized, level: Level) -> KernelShape {
    let codes = Codes::new(frame.format, q, level);
    let tile_columns = Kernel::new(frame, q, &codes).tile(level);
    let columns = frame.columns_in_work(tile_columns, COLUMNS_MIN..=COLUMNS_MAX);
    KernelShape {
        tile_columns,
        tile_rows: PANEL_ROWS,
        columns_in_work: Some(columns),
        prefetch_bytes: Some(frame.prefetch_bytes()),
        two_streams_panels: frame.stream_panels_min(STREAMS).map(|n| STREAMS * n),
    }
}

pub(super) fn build(a: &mut Asm, frame: &Frame, q: &Quantized) {
    let codes = Codes::new(frame.format, q, a.level);
    let kernel = Kernel::new(frame, q, &codes);
    let largest = kernel.tile(a.level);
    let columns = frame.columns_in_work(largest, COLUMNS_MIN..=COLUMNS_MAX);
    let sums_at = RECORDS_AT + CHUNK_BLOCKS * kernel.record_bytes();
    let streams_bytes = STREAMS * CHUNK_BLOCKS * kernel.scales.fields_bytes();
    assert!(
        streams_bytes <= sums_at - RECORDS_AT,
        "fields of the streams' chunks lie where records do"
    );
    let end = frame.enter(a, sums_at + columns * ROWS_BYTES);
    let many = a.label();
    a.mov_from(Register::RAX, Local::Columns.at());
    a.compare_with(Register::RAX, 1);
    a.jump(When::NotEqual, many);
    kernel.column(a, sums_at);
    a.jump_to(end);
    a.bind(many);
    frame.columns(a, columns, |a| {
        frame.panels(a, |a| kernel.panel(a, largest, sums_at));
    });
    frame.leave(a, end);
}

impl<'k> Kernel<'k> {
    fn new(frame: &'k Frame<'k>, q: &Quantized, codes: &'k Codes) -> Kernel<'k> {
        Kernel {
            frame,
            layout: Q8Layout::new(frame.k),
            scales: Scales::new(q, codes),
            codes,
            blocks: frame.k / 32,
            quant_bytes: q.quant_bytes(),
        }
    }

    fn record_bytes(&self) -> u32 {
        OPERANDS_BYTES + self.scales.fields_bytes()
    }

    /// Whether integer sums are added up in two steps, the second after a
    /// multiplication with a scale or a widening.
    fn has_totals(&self) -> bool {
        match self.codes.dot {
            Dot::Dwords => self.scales.per_16,
            Dot::Words { groups } => self.scales.per_16 || groups < GROUPS,
            Dot::Signed => false,
        }
    }

    /// Columns of a tile: what the registers hold beside a group's operands (and
    /// their magnitudes), its activations, a product and the constants.
    fn tile(&self, level: Level) -> usize {
        let parts = level.parts();
        let others = match self.codes.dot {
            Dot::Dwords => parts + 2,
            Dot::Words { .. } => parts + 2,
            Dot::Signed => 2 * parts + 4,
        };
        let sums = parts * (1 + self.has_totals() as usize);
        cost::tile_columns(level.registers() as usize, others, sums)
    }

    /// All panels for one column.
    fn column(&self, a: &mut Asm, sums_at: u32) {
        a.mov(reg::TILE, reg::ACTIVATIONS);
        let several = self.frame.stream_panels_min(STREAMS);
        for (streams, min) in several
            .map(|min| (STREAMS, min))
            .into_iter()
            .chain([(1, 1)])
        {
            self.frame
                .streams(a, streams, min, |a| self.stream_panels(a, streams, sums_at));
        }
    }

    /// A panel of every stream.
    fn stream_panels(&self, a: &mut Asm, streams: u32, sums_at: u32) {
        let parts = a.level.parts();
        let mut operands = self.codes.operands(a);
        // Lines of a panel per block: the next panel's follow its own.
        let block_bytes = self.frame.panel_bytes().div_ceil(self.blocks);
        let prefetch = reg::LEFT;
        let zero = a.take();
        a.zero(zero);
        a.address(reg::SUMS, stack(sums_at));
        for stream in 0..streams {
            for part in 0..parts {
                a.store(part_of(a, sum_at(stream), part), zero);
            }
        }
        a.give(zero);
        let codes_at = self.frame.format.panel_header_bytes(self.frame.k) as u32;
        a.mov(reg::HEADER, reg::WEIGHTS);
        a.address(reg::CODES, Address::new(reg::WEIGHTS).plus(codes_at));
        a.address(
            prefetch,
            Address::new(reg::WEIGHTS).plus(self.frame.prefetch_bytes()),
        );
        a.set(reg::BLOCK, 0);
        let (chunk, block) = (a.label(), a.label());
        a.bind(chunk);
        self.set_end(a, reg::BLOCK);
        let fields = self.scales.fields_bytes();
        self.unpack_headers(a, reg::BLOCK, reg::CHUNK, fields, 0, streams);
        a.address(reg::RECORD, stack(RECORDS_AT));
        a.bind(block);
        for stream in 0..streams {
            for line in 0..block_bytes.div_ceil(64) {
                a.prefetch(stream_at(prefetch, stream).plus(64 * line));
            }
        }
        a.advance(prefetch, block_bytes);
        for stream in 0..streams {
            self.block(a, 1, &mut Origin::Panel(&mut operands, stream));
            operands.next_block(a);
        }
        a.advance(reg::CODES, self.quant_bytes);
        a.advance(reg::RECORD, fields);
        a.advance(reg::BLOCK, 4);
        a.compare(reg::BLOCK, reg::END);
        a.jump(When::NotEqual, block);
        a.compare_with(reg::BLOCK, 4 * self.blocks);
        a.jump(When::Below, chunk);
        operands.end(a);
        a.mov_from(reg::HEADER, Local::Out.at());
        a.mov_from(reg::RECORD, Local::Residual.at());
        a.mov(reg::CODES, reg::BIAS);
        a.mov_from(reg::END, Local::StreamOut.at());
        let sums = a.take_many(parts);
        for stream in 0..streams {
            for (part, &sum) in sums.iter().enumerate() {
                a.load(sum, part_of(a, sum_at(stream), part));
            }
            if stream > 0 {
                for r in [reg::HEADER, reg::RECORD, reg::CODES] {
                    a.advance_by(r, reg::END);
                }
            }
            let [out, residual, bias] = [reg::HEADER, reg::RECORD, reg::CODES].map(Address::new);
            self.frame.write(a, &sums, out, residual, bias);
        }
        a.give_many(sums);
    }

    /// One panel for the columns in work.
    fn panel(&self, a: &mut Asm, largest: usize, sums_at: u32) {
        let sum = a.take_many(a.level.parts());
        let sums = |a: &mut Asm| {
            a.address(reg::SUMS, stack(sums_at));
            a.mov(reg::LEFT, reg::COLUMNS);
        };
        sums(a);
        a.zero(sum[0]);
        a.repeat(reg::LEFT, |a| {
            for part in 0..a.level.parts() {
                let at = part_of(a, Address::new(reg::SUMS), part);
                a.store(at, sum[0]);
            }
            a.advance(reg::SUMS, ROWS_BYTES);
        });
        a.give_many(sum.iter().copied());

        let codes_at = self.frame.format.panel_header_bytes(self.frame.k) as u32;
        a.mov(reg::HEADER, reg::WEIGHTS);
        a.address(reg::CODES, Address::new(reg::WEIGHTS).plus(codes_at));
        a.set(reg::CHUNK, 0);
        let chunk = a.label();
        a.bind(chunk);
        self.set_end(a, reg::CHUNK);
        let record = self.record_bytes();
        self.unpack_headers(a, reg::CHUNK, reg::BLOCK, record, OPERANDS_BYTES, 1);
        self.unpack_codes(a);
        a.address(reg::SUMS, stack(sums_at));
        self.frame.tiles(a, &sizes(largest), |a, columns| {
            let block = a.label();
            a.mov(reg::BLOCK, reg::CHUNK);
            a.address(reg::RECORD, stack(RECORDS_AT));
            a.bind(block);
            self.block(a, columns, &mut Origin::Record);
            a.advance(reg::RECORD, record);
            a.advance(reg::BLOCK, 4);
            a.compare(reg::BLOCK, reg::END);
            a.jump(When::NotEqual, block);
            a.advance(reg::SUMS, ROWS_BYTES * columns as u32);
        });
        a.mov(reg::CHUNK, reg::END);
        a.compare_with(reg::CHUNK, 4 * self.blocks);
        a.jump(When::Below, chunk);

        sums(a);
        let (out, residual) = (reg::TILE, reg::BLOCK);
        a.mov_from(out, Local::PanelOut.at());
        a.mov_from(residual, Local::PanelResidual.at());
        let sum = a.take_many(a.level.parts());
        a.repeat(reg::LEFT, |a| {
            for (part, &sum) in sum.iter().enumerate() {
                let at = part_of(a, Address::new(reg::SUMS), part);
                a.load(sum, at);
            }
            let [out_at, residual_at, bias] = [out, residual, reg::BIAS].map(Address::new);
            self.frame.write(a, &sum, out_at, residual_at, bias);
            a.advance(reg::SUMS, ROWS_BYTES);
            a.advance(out, self.frame.out_stride);
            a.advance(residual, self.frame.out_stride);
        });
        a.give_many(sum);
    }

    /// The end of the chunk that starts at `start`.
    fn set_end(&self, a: &mut Asm, start: Register) {
        a.address(reg::END, Address::new(start).plus(4 * CHUNK_BLOCKS));
        if !self.blocks.is_multiple_of(CHUNK_BLOCKS) {
            a.at_most(reg::END, 4 * self.blocks, reg::RECORD);
        }
    }

    /// Unpacks the headers of the chunk from `start` on into records of
    /// `stride` bytes, whose fields are `fields_at` bytes in. `counter` is lost.
    fn unpack_headers(
        &self,
        a: &mut Asm,
        start: Register,
        counter: Register,
        stride: u32,
        fields_at: u32,
        streams: u32,
    ) {
        let per_header = self.scales.blocks_per_header();
        a.mov(counter, start);
        a.address(reg::RECORD, stack(RECORDS_AT));
        let again = a.label();
        a.bind(again);
        for stream in 0..streams {
            self.scales.unpack(
                a,
                stream_at(reg::HEADER, stream),
                Address::new(reg::RECORD).plus(fields_at + CHUNK_BLOCKS * stride * stream),
                stride,
                stack(COMMON_AT + COMMON * stream),
            );
        }
        a.advance(reg::HEADER, self.scales.header_bytes());
        a.advance(reg::RECORD, stride * per_header);
        a.advance(counter, 4 * per_header);
        a.compare(counter, reg::END);
        a.jump(When::NotEqual, again);
    }

    /// Unpacks the codes of the chunk into its records.
    fn unpack_codes(&self, a: &mut Asm) {
        let mut operands = self.codes.operands(a);
        let v = a.take();
        a.mov(reg::BLOCK, reg::CHUNK);
        a.address(reg::RECORD, stack(RECORDS_AT));
        let again = a.label();
        a.bind(again);
        for group in 0..GROUPS {
            for part in 0..a.level.parts() {
                operands.load(a, Address::new(reg::CODES), group, part, v);
                let to = Address::new(reg::RECORD).plus(64 * group);
                a.store(part_of(a, to, part), v);
            }
        }
        operands.next_block(a);
        a.advance(reg::CODES, self.quant_bytes);
        a.advance(reg::RECORD, self.record_bytes());
        a.advance(reg::BLOCK, 4);
        a.compare(reg::BLOCK, reg::END);
        a.jump(When::NotEqual, again);
        a.give(v);
        operands.end(a);
    }

    /// One 32-block for the columns of a tile.
    fn block(&self, a: &mut Asm, columns: usize, from: &mut Origin) {
        let parts = a.level.parts();
        let count = columns * parts;
        let (fields_at, stream) = match from {
            Origin::Panel(_, stream) => {
                (CHUNK_BLOCKS * self.scales.fields_bytes() * *stream, *stream)
            }
            Origin::Record => (OPERANDS_BYTES, 0),
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
        for column in 0..columns {
            let dots = &dots[column * parts..][..parts];
            self.scale(a, column, dots, fields, stream);
        }
        a.give_many(dots);
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
                    Origin::Panel(operands, stream) => {
                        operands.load(a, stream_at(reg::CODES, *stream), group, part, w)
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
                Dot::Dwords | Dot::Signed => false,
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
            Dot::Signed => return,
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

    /// Corrects a column's integer sums and adds them, scaled, to its f32 sums.
    fn scale(&self, a: &mut Asm, column: usize, dots: &[Vector], fields: Address, stream: u32) {
        let scales = &self.scales;
        let at = Address::new(reg::TILE).plus(self.column_at(column));
        let sum_at = sum_at(stream + column as u32);
        let minimum_field = fields.plus(FIELD * scales.minimum_field());
        let has_minimum = scales.minimum != Minimum::None;
        let words = (scales.offset_factor > 0 || scales.per_16 && has_minimum).then(|| {
            let words = a.take();
            a.broadcast_qword(words, at.index(reg::BLOCK, 2).plus(self.layout.sums_offset));
            a.pack_dwords(words, words, words);
            words
        });
        let product = a.take();
        if let (Some(words), true) = (words, scales.offset_factor > 0) {
            if scales.sum_shift > 0 {
                a.shift_words_left(words, words, scales.sum_shift);
            }
            if !scales.per_16 {
                a.set_dwords(product, 0x0001_0001 * scales.offset_factor);
                a.mul_add_words(words, words, product);
            }
            for (part, &dot) in dots.iter().enumerate() {
                if scales.per_16 {
                    let field = fields.plus(FIELD * scales.correction_field());
                    a.mul_add_words(product, words, part_of(a, field, part));
                    a.sub_dwords(dot, dot, product);
                } else {
                    a.sub_dwords(dot, dot, words);
                }
            }
        }
        let d = a.take();
        a.broadcast_dword(d, at.index(reg::BLOCK, 1).plus(self.layout.scales_offset));
        let (scale_field, dmin_field) = if scales.per_16 {
            let common = stack(COMMON_AT + COMMON * stream);
            (common, common.plus(FIELD))
        } else {
            (fields, fields)
        };
        for (part, &dot) in dots.iter().enumerate() {
            a.f32_from_i32(dot, dot);
            a.mul(product, d, part_of(a, scale_field, part));
            a.mul(dot, dot, product);
            let sum = part_of(a, sum_at, part);
            a.add(dot, dot, sum);
        }
        let scaled_sum = (has_minimum && !scales.per_16).then(|| {
            let at = at.index(reg::BLOCK, 1);
            a.broadcast_dword(d, at.plus(self.layout.scaled_sums_offset));
            d
        });
        for (part, &dot) in dots.iter().enumerate() {
            if has_minimum {
                let field = part_of(a, minimum_field, part);
                match (scaled_sum, words) {
                    (Some(scaled_sum), _) => a.mul(product, scaled_sum, field),
                    (None, Some(words)) => {
                        a.mul_add_words(product, words, field);
                        a.f32_from_i32(product, product);
                        a.mul(product, product, d);
                        a.mul(product, product, part_of(a, dmin_field, part));
                    }
                    (None, None) => unreachable!("minimums per 16 multiply words"),
                }
            }
            match scales.minimum {
                Minimum::None => {}
                Minimum::Added => a.add(dot, dot, product),
                Minimum::Subtracted => a.sub(dot, dot, product),
            }
            a.store(part_of(a, sum_at, part), dot);
        }
        a.give_many([product, d]);
        a.give_many(words);
    }

    /// Byte of a column of the tile.
    fn column_at(&self, column: usize) -> u32 {
        self.layout.stride * column as u32
    }
}

/// Where the f32 sums of a column, or of a stream, are.
fn sum_at(column: u32) -> Address {
    Address::new(reg::SUMS).plus(ROWS_BYTES * column)
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
