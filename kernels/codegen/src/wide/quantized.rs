//! Matmul of quantized weights with int8 activations.
//!
//! A panel is worked on in chunks of 32-blocks, whose headers are unpacked into the
//! stack frame. Few columns read their operands from the panel, because each is used
//! once or twice. For more columns a chunk's codes are unpacked too, into records that stay
//! in the first-level cache while tiles pass. Registers hold a tile's integer sums. Its f32 sums
//! have room beside them in 32 registers, and lie in the frame otherwise and between two
//! chunks.

use super::asm::{Address, Asm, Vector, When};
use super::block::{Origin, sum_at};
use super::codes::{Codes, Dot, GROUPS, part_of};
use super::frame::{Frame, LOCALS, Local, ROWS_BYTES, reg, sizes, stack};
use super::level::Level;
use super::products::{COLUMNS, Products};
use super::scales::{COMMON, Scales};
use crate::{KernelShape, cost};
use iced_x86::Register;
use omex_kernels::PANEL_ROWS;
use omex_kernels::activation::Q8Layout;
use omex_kernels::format::{Quantized, SECTION_BLOCKS};

/// 32-blocks of a chunk, at most: those of a super-block, half a section.
const CHUNK_BLOCKS: u32 = 8;
/// Bytes of the operands of a 32-block in a record.
pub(super) const OPERANDS_BYTES: u32 = 64 * GROUPS;
/// Columns in work: enough to make unpacking cheap (512 in two rounds), few enough for the
/// frame.
const COLUMNS_MIN: u32 = 24;
const COLUMNS_MAX: u32 = 264;

pub(super) const COMMON_AT: u32 = LOCALS;
const RECORDS_AT: u32 = COMMON_AT + COMMON;

pub(super) struct Kernel<'k> {
    frame: &'k Frame<'k>,
    pub(super) layout: Q8Layout,
    pub(super) codes: &'k Codes,
    pub(super) scales: Scales,
    blocks: u32,
    quant_bytes: u32,
}

/// The codes of few columns, and of many.
fn codes(frame: &Frame, q: &Quantized, level: Level) -> [Codes; 2] {
    let few = Codes::new(frame.format, q, level);
    let many = if level.has_amx() && Scales::new(q, &few).fit_tiles() {
        few.for_tiles()
    } else {
        few.clone()
    };
    [few, many]
}

pub(super) fn shape(frame: &Frame, q: &Quantized, level: Level) -> KernelShape {
    let [_, codes] = codes(frame, q, level);
    let tile_columns = Kernel::new(frame, q, &codes).tile(level);
    let columns = frame.columns_in_work(tile_columns, COLUMNS_MIN..=COLUMNS_MAX);
    KernelShape {
        tile_columns,
        tile_rows: PANEL_ROWS,
        columns_in_work: Some(columns),
        prefetch: Some(frame.prefetch()),
    }
}

pub(super) fn build(a: &mut Asm, frame: &Frame, q: &Quantized) {
    let codes = codes(frame, q, a.level);
    let [few, many] = codes.each_ref().map(|codes| Kernel::new(frame, q, codes));
    let columns = frame.columns_in_work(many.tile(a.level), COLUMNS_MIN..=COLUMNS_MAX);
    // Fields of a chunk of few columns lie where records do.
    let records_bytes = many.chunk_blocks() * many.record_bytes();
    let fields_bytes = few.header_blocks() * few.scales.fields_bytes();
    let sums_at = RECORDS_AT + records_bytes.max(fields_bytes);
    let sums_end = sums_at + columns * ROWS_BYTES;
    let products = (many.codes.dot == Dot::Tiles).then(|| many.products(sums_end));
    let products_bytes = products.as_ref().map_or(0, Products::bytes);
    let end = frame.enter(a, sums_end + products_bytes);
    let few_tile = few.few_columns(a.level);
    // Fewer columns than AMX takes at once are few, too.
    let few_max = match &products {
        Some(_) => few_tile.max(COLUMNS - 1) as u32,
        None => few_tile as u32,
    };
    let (several, few_columns) = (a.label(), a.label());
    a.mov_from(Register::RAX, Local::Columns.at());
    a.compare_with(Register::RAX, 1);
    a.jump(When::NotEqual, several);
    frame.panels(a, |a| few.column(a, sums_at));
    a.jump_to(end);
    a.bind(several);
    a.compare_with(Register::RAX, few_max + 1);
    a.jump(When::Below, few_columns);
    if let Some(products) = &products {
        products.take(a);
    }
    frame.columns(a, columns, |a| {
        frame.panels(a, |a| many.panel(a, sums_at, products.as_ref()));
    });
    if let Some(products) = &products {
        products.release(a);
    }
    a.jump_to(end);
    a.bind(few_columns);
    frame.columns(a, few_max, |a| {
        frame.panels(a, |a| few.panel_of_few(a, few_tile, sums_at));
    });
    frame.leave(a, end);
}

impl<'k> Kernel<'k> {
    fn new(frame: &'k Frame<'k>, q: &Quantized, codes: &'k Codes) -> Kernel<'k> {
        let scales = Scales::new(q, codes);
        Kernel {
            frame,
            layout: Q8Layout::new(frame.k),
            codes,
            blocks: frame.k / 32,
            scales,
            quant_bytes: q.quant_bytes(),
        }
    }

    fn record_bytes(&self) -> u32 {
        OPERANDS_BYTES + self.scales.fields_bytes()
    }

    /// Whether integer sums are added up in two steps, the second after a
    /// multiplication with a scale or a widening.
    pub(super) fn has_totals(&self) -> bool {
        match self.codes.dot {
            Dot::Dwords => self.scales.per_16,
            Dot::Words { groups } => self.scales.per_16 || groups < GROUPS,
            Dot::Signed | Dot::Tiles => false,
        }
    }

    /// Whether f32 sums stay in registers while a chunk's blocks pass, and a block's
    /// factors while its columns do.
    pub(super) fn holds_sums(&self, level: Level) -> bool {
        match self.codes.dot {
            Dot::Tiles => true,
            Dot::Dwords => level.registers() == 32 && !self.has_totals(),
            Dot::Words { .. } | Dot::Signed => false,
        }
    }

    /// 32-blocks of a chunk whose headers alone are unpacked, at most: what blocks of a
    /// header have in common is kept for one header.
    fn header_blocks(&self) -> u32 {
        match self.scales.per_16 {
            true => CHUNK_BLOCKS,
            false => SECTION_BLOCKS,
        }
    }

    /// 32-blocks of a chunk of unpacked codes, at most. Of tiles as many as can be, because
    /// the first products of a chunk are waited for.
    fn chunk_blocks(&self) -> u32 {
        match self.codes.dot {
            Dot::Tiles => self.header_blocks(),
            Dot::Dwords | Dot::Words { .. } | Dot::Signed => CHUNK_BLOCKS,
        }
    }

    fn products(&self, at: u32) -> Products {
        Products {
            at,
            records_at: RECORDS_AT,
            record_bytes: self.record_bytes(),
            column_bytes: self.layout.stride,
            parts: if self.scales.per_16 { 2 } else { 1 },
        }
    }

    /// Columns of the largest tile: what the registers hold beside a group's operands (and
    /// their magnitudes), its activations, a product and the constants.
    fn tile(&self, level: Level) -> usize {
        self.tile_of(level, level.registers() as usize)
    }

    fn tile_of(&self, level: Level, registers: usize) -> usize {
        let parts = level.parts();
        let others = match self.codes.dot {
            // Operands, product, words, scale, minimum.
            Dot::Dwords if self.holds_sums(level) => 5 * parts,
            Dot::Dwords => parts + 2,
            Dot::Words { .. } => parts + 2,
            Dot::Signed => 2 * parts + 4,
            Dot::Tiles => return COLUMNS,
        };
        let more = self.has_totals() || self.holds_sums(level);
        cost::tile_columns(registers, others, parts * (1 + more as usize))
    }

    /// Sizes of tiles of unpacked operands. AMX takes as long for one column as for ten, so
    /// that columns left over are one tile.
    fn sizes(&self, level: Level) -> Vec<usize> {
        match self.codes.dot {
            Dot::Tiles => (1..=COLUMNS).rev().collect(),
            Dot::Dwords | Dot::Words { .. } | Dot::Signed => sizes(self.tile(level)),
        }
    }

    /// Columns of the largest tile that reads its operands from the panel: unpacking them
    /// takes registers too.
    fn few_columns(&self, level: Level) -> usize {
        let registers = level.registers() as usize - self.codes.registers(level);
        self.tile_of(level, registers)
    }

    /// A panel for one column.
    fn column(&self, a: &mut Asm, sums_at: u32) {
        let mut operands = self.codes.operands(a);
        let prefetch = reg::LEFT;
        a.mov(reg::TILE, reg::ACTIVATIONS);
        a.address(reg::SUMS, stack(sums_at));
        let held = self.take_held(a, 1);
        self.zero_sums(a, 1, &held);
        a.mov(reg::CODES, reg::WEIGHTS);
        a.mov(prefetch, reg::WEIGHTS);
        a.set(reg::BLOCK, 0);
        let (chunk, block) = (a.label(), a.label());
        a.bind(chunk);
        self.set_end(a, reg::BLOCK, self.header_blocks());
        self.begin_section(a, reg::BLOCK, self.header_blocks());
        let fields = self.scales.fields_bytes();
        self.unpack_headers(a, reg::BLOCK, reg::CHUNK, fields, 0);
        a.address(reg::RECORD, stack(RECORDS_AT));
        a.bind(block);
        self.fetch(a, prefetch, reg::CHUNK);
        self.block(a, 1, &mut Origin::Panel(&mut operands), &held);
        operands.next_block(a);
        a.advance(reg::CODES, self.quant_bytes);
        a.advance(reg::RECORD, fields);
        a.advance(reg::BLOCK, 4);
        a.compare(reg::BLOCK, reg::END);
        a.jump(When::NotEqual, block);
        a.compare_with(reg::BLOCK, 4 * self.blocks);
        a.jump(When::Below, chunk);
        operands.end(a);
        a.mov_from(reg::HEADER, Local::PanelOut.at());
        a.mov_from(reg::RECORD, Local::PanelResidual.at());
        let at = [reg::HEADER, reg::RECORD, reg::BIAS].map(Address::new);
        self.write(a, 0, &held, at);
        a.give_many(held);
    }

    /// Registers for the f32 sums of `count` columns, if they are held.
    fn take_held(&self, a: &mut Asm, count: usize) -> Vec<Vector> {
        if self.holds_sums(a.level) {
            a.take_many(count * a.level.parts())
        } else {
            Vec::new()
        }
    }

    /// Sets the f32 sums of `count` columns to zero, in `held` or in the frame.
    fn zero_sums(&self, a: &mut Asm, count: usize, held: &[Vector]) {
        for &sum in held {
            a.zero(sum);
        }
        if held.is_empty() {
            let zero = a.take();
            a.zero(zero);
            for column in 0..count {
                for part in 0..a.level.parts() {
                    a.store(part_of(a, sum_at(column), part), zero);
                }
            }
            a.give(zero);
        }
    }

    /// Writes the f32 sums of a column, as [`Frame::write`].
    fn write(
        &self,
        a: &mut Asm,
        column: usize,
        held: &[Vector],
        [out, residual, bias]: [Address; 3],
    ) {
        let parts = a.level.parts();
        if !held.is_empty() {
            let sums = &held[column * parts..][..parts];
            self.frame.write(a, sums, out, residual, bias);
            return;
        }
        let sums = a.take_many(parts);
        for (part, &sum) in sums.iter().enumerate() {
            a.load(sum, part_of(a, sum_at(column), part));
        }
        self.frame.write(a, &sums, out, residual, bias);
        a.give_many(sums);
    }

    /// A panel for the columns in work, whose operands are unpacked into records.
    fn panel(&self, a: &mut Asm, sums_at: u32, products: Option<&Products>) {
        let sizes = self.sizes(a.level);
        let record = self.record_bytes();
        let begin = |_: &mut Asm| {};
        self.chunks(a, self.chunk_blocks(), |a| {
            self.unpack_headers(a, reg::CHUNK, reg::BLOCK, record, OPERANDS_BYTES);
            self.unpack_codes(a);
            if let Some(products) = products {
                products.enter(a);
            }
            let begin_size = |a: &mut Asm, columns| {
                if let Some(products) = products {
                    products.begin(a, columns);
                }
            };
            self.tiles(a, &sizes, sums_at, begin_size, |a, columns, held| {
                self.blocks(a, begin, |a| {
                    match products {
                        Some(products) => self.block_by_tiles(a, columns, products, held),
                        None => self.block(a, columns, &mut Origin::Record, held),
                    }
                    a.advance(reg::RECORD, record);
                });
            });
            if let Some(products) = products {
                products.leave(a);
            }
        });
    }

    /// The same, with operands read from the panel by each tile.
    fn panel_of_few(&self, a: &mut Asm, largest: usize, sums_at: u32) {
        let mut operands = self.codes.operands(a);
        let scratch = reg::PANELS;
        a.mov_to(Local::PanelsLeft.at(), scratch);
        self.chunks(a, self.header_blocks(), |a| {
            let fields = self.scales.fields_bytes();
            self.unpack_headers(a, reg::CHUNK, reg::BLOCK, fields, 0);
            // The next header's register says what to fetch meanwhile.
            a.mov_to(Local::ChunkHeader.at(), reg::HEADER);
            a.mov_to(Local::ChunkCodes.at(), reg::CODES);
            let begin = |a: &mut Asm| {
                a.mov_from(reg::CODES, Local::ChunkCodes.at());
                a.multiply(reg::HEADER, reg::CHUNK, self.block_bytes() / 4);
                a.advance_by(reg::HEADER, reg::WEIGHTS);
            };
            let begin_size = |_: &mut Asm, _| {};
            self.tiles(
                a,
                &sizes(largest),
                sums_at,
                begin_size,
                |a, columns, held| {
                    self.blocks(a, begin, |a| {
                        self.fetch(a, reg::HEADER, scratch);
                        self.block(a, columns, &mut Origin::Panel(&mut operands), held);
                        operands.next_block(a);
                        a.advance(reg::CODES, self.quant_bytes);
                        a.advance(reg::RECORD, fields);
                    });
                },
            );
            a.mov_from(reg::HEADER, Local::ChunkHeader.at());
        });
        a.mov_from(scratch, Local::PanelsLeft.at());
        operands.end(a);
    }

    /// Executes `chunk` for every chunk of at most `blocks` of a panel, with
    /// [`reg::HEADER`] and [`reg::CODES`] at its headers and codes, which it leaves
    /// behind them.
    fn chunks(&self, a: &mut Asm, blocks: u32, chunk: impl FnOnce(&mut Asm)) {
        a.mov(reg::CODES, reg::WEIGHTS);
        for (from, to) in [
            (Local::PanelOut, Local::TileOut),
            (Local::PanelResidual, Local::TileResidual),
        ] {
            a.mov_from(reg::BLOCK, from.at());
            a.mov_to(to.at(), reg::BLOCK);
        }
        a.set(reg::CHUNK, 0);
        let again = a.label();
        a.bind(again);
        self.set_end(a, reg::CHUNK, blocks);
        self.begin_section(a, reg::CHUNK, blocks);
        chunk(a);
        a.mov(reg::CHUNK, reg::END);
        a.compare_with(reg::CHUNK, 4 * self.blocks);
        a.jump(When::Below, again);
    }

    /// As [`Frame::fetch`], what a block has of a panel on average; `at` goes on by it.
    fn fetch(&self, a: &mut Asm, at: Register, scratch: Register) {
        let bytes = self.block_bytes();
        self.frame.fetch(a, at, bytes, scratch);
        a.advance(at, bytes);
    }

    /// Bytes of a panel per block: the next panel's follow its own.
    fn block_bytes(&self) -> u32 {
        let bytes = self.frame.panel_bytes().div_ceil(self.blocks);
        bytes.next_multiple_of(4)
    }

    /// Executes `begin`, and `block` for each block of a chunk, with [`reg::RECORD`] at the
    /// first record for the first.
    fn blocks(&self, a: &mut Asm, begin: impl Fn(&mut Asm), block: impl FnOnce(&mut Asm)) {
        let again = a.label();
        a.mov(reg::BLOCK, reg::CHUNK);
        begin(a);
        a.address(reg::RECORD, stack(RECORDS_AT));
        a.bind(again);
        block(a);
        a.advance(reg::BLOCK, 4);
        a.compare(reg::BLOCK, reg::END);
        a.jump(When::NotEqual, again);
    }

    /// Executes `tile` for every tile of the columns in work.
    fn tiles(
        &self,
        a: &mut Asm,
        sizes: &[usize],
        sums_at: u32,
        begin_size: impl FnMut(&mut Asm, usize),
        mut tile: impl FnMut(&mut Asm, usize, &[Vector]),
    ) {
        a.address(reg::SUMS, stack(sums_at));
        self.frame.tiles(a, sizes, begin_size, |a, columns| {
            let held = self.take_held(a, columns);
            self.begin_tile(a, columns, &held);
            tile(a, columns, &held);
            self.end_tile(a, columns, &held);
            a.give_many(held);
            a.advance(reg::SUMS, ROWS_BYTES * columns as u32);
        });
    }

    /// The f32 sums of a tile at the begin of a chunk.
    fn begin_tile(&self, a: &mut Asm, columns: usize, held: &[Vector]) {
        let (first, end) = (a.label(), a.label());
        a.compare_with(reg::CHUNK, 0);
        a.jump(When::Equal, first);
        for (i, &sum) in held.iter().enumerate() {
            a.load(sum, part_of(a, Address::new(reg::SUMS), i));
        }
        a.jump_to(end);
        a.bind(first);
        self.zero_sums(a, columns, held);
        a.bind(end);
    }

    /// The f32 sums of a tile at the end of a chunk. Those of the last are written here,
    /// between two tiles, because writes of all columns at once would have to wait for
    /// each other's lines of the cache.
    fn end_tile(&self, a: &mut Asm, columns: usize, held: &[Vector]) {
        let (last, end) = (a.label(), a.label());
        a.compare_with(reg::END, 4 * self.blocks);
        a.jump(When::Equal, last);
        for (i, &sum) in held.iter().enumerate() {
            a.store(part_of(a, Address::new(reg::SUMS), i), sum);
        }
        a.jump_to(end);
        a.bind(last);
        let (out, residual) = (reg::BLOCK, reg::RECORD);
        a.mov_from(out, Local::TileOut.at());
        a.mov_from(residual, Local::TileResidual.at());
        for column in 0..columns {
            let at = [out, residual, reg::BIAS].map(Address::new);
            self.write(a, column, held, at);
            a.advance(out, self.frame.out_stride);
            a.advance(residual, self.frame.out_stride);
        }
        a.mov_to(Local::TileOut.at(), out);
        a.mov_to(Local::TileResidual.at(), residual);
        a.bind(end);
    }

    /// The end of the chunk of at most `blocks` that starts at `start`.
    fn set_end(&self, a: &mut Asm, start: Register, blocks: u32) {
        a.address(reg::END, Address::new(start).plus(4 * blocks));
        if !self.blocks.is_multiple_of(blocks) {
            a.at_most(reg::END, 4 * self.blocks, reg::RECORD);
        }
    }

    /// Where the chunk of at most `blocks` from `start` on begins a section, goes to the
    /// section's headers, which follow the codes before them, and to its codes.
    fn begin_section(&self, a: &mut Asm, start: Register, blocks: u32) {
        let end = a.label();
        if self.blocks > blocks && blocks < SECTION_BLOCKS {
            a.test(start, 4 * (SECTION_BLOCKS - 1));
            a.jump(When::NotEqual, end);
        }
        a.mov(reg::HEADER, reg::CODES);
        let header_bytes = |blocks| self.scales.section_header_bytes(blocks);
        let (whole, last) = (SECTION_BLOCKS, self.blocks % SECTION_BLOCKS);
        if self.blocks < whole {
            a.advance(reg::CODES, header_bytes(last));
        } else if last == 0 {
            a.advance(reg::CODES, header_bytes(whole));
        } else {
            a.advance(reg::CODES, header_bytes(last));
            a.compare_with(start, 4 * (self.blocks - last));
            a.jump(When::Equal, end);
            a.advance(reg::CODES, header_bytes(whole) - header_bytes(last));
        }
        a.bind(end);
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
    ) {
        let per_header = self.scales.blocks_per_header();
        a.mov(counter, start);
        a.address(reg::RECORD, stack(RECORDS_AT));
        let again = a.label();
        a.bind(again);
        self.scales.unpack(
            a,
            Address::new(reg::HEADER),
            Address::new(reg::RECORD).plus(fields_at),
            stride,
            stack(COMMON_AT),
        );
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
}
