//! Matmul of quantized weights with int8 activations.
//!
//! A pass goes through a panel in chunks of up to eight 32-blocks: the chunk's
//! headers are unpacked into a table, then its blocks follow in a loop. Headers
//! of one block are converted on the way where there are registers for it, in chunks
//! of a whole section. One column keeps its f32 sums in registers; a tile of columns
//! keeps them in the frame, because the registers hold the integer sums of rows x
//! columns. A body takes 16 rows of a block where that many integer sums fit, else 8.

use super::codes::{Codes, Constants, GROUPS, Steps};
use super::dot::{Dot, Sum};
use super::emit::{Address, Emit};
use super::frame::{Frame, Pass, QUADS};
use super::scales::{COMMON, F16ToF32, FIELD, Minimum, Scales};
use crate::{Arch, Isa, KernelShape, cost};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32X4, I8X16, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use omex_kernels::activation::Q8Layout;
use omex_kernels::format::{Quantized, SECTION_BLOCKS};

/// Bytes of a quad: in a step of codes, a field of scales and a column of sums.
const QUAD: u32 = 16;
/// f32 bytes of 16 rows.
const COLUMN: u32 = 64;
/// 32-blocks of a chunk, at most, where headers are unpacked into the table.
const CHUNK_BLOCKS: u32 = 8;

struct Kernel<'k> {
    frame: &'k Frame,
    layout: Q8Layout,
    scales: Scales,
    codes: Codes,
    dot: Dot,
    /// Columns of a tile.
    tile: usize,
    /// Quads that a body holds integer sums of: for one column, for a tile.
    column_quads: usize,
    tile_quads: usize,
    /// 32-blocks of a panel.
    blocks: u32,
    quant_bytes: u32,
}

/// Where the next 32-block lies.
#[derive(Clone, Copy)]
struct Cursor {
    codes: Value,
    activations: Value,
    scales: Value,
    sums: Value,
    /// In the table, or the header itself where no table is made.
    entry: Value,
}

/// The 32-blocks of one loop.
#[derive(Clone, Copy)]
struct Chunk {
    blocks: Value,
    start: Cursor,
}

/// How a pass goes through a panel.
struct Shape {
    /// Quads that a body holds integer sums of.
    quads: usize,
    /// 32-blocks of a chunk, at most.
    blocks: u32,
    /// Headers are converted by the body that needs them; else there is a table.
    headers: Option<F16ToF32>,
    /// High nibbles stay where they are, as 16 times their codes.
    in_place: bool,
}

/// The f32 sums of a pass.
enum Sums<'s> {
    Registers(&'s mut [Value; QUADS]),
    Frame(Value),
}

struct Scratch {
    table: Value,
    common: Value,
    sums: Value,
    partial: Value,
}

pub(super) fn build(e: &mut Emit, frame: &Frame, q: &Quantized, isa: &Isa) {
    let kernel = Kernel::new(frame, q, isa);
    let table = e.stack(CHUNK_BLOCKS * kernel.scales.entry_bytes());
    let scratch = Scratch {
        table,
        common: if kernel.scales.per_16 {
            e.stack(COMMON)
        } else {
            table
        },
        sums: e.stack(kernel.tile as u32 * COLUMN),
        partial: if kernel.scales.per_16 {
            e.stack((kernel.tile * kernel.tile_quads) as u32 * QUAD)
        } else {
            table
        },
    };
    frame.build(e, kernel.tile, |e, pass| kernel.pass(e, &scratch, &pass));
}

pub(super) fn shape(frame: &Frame, q: &Quantized, isa: &Isa) -> KernelShape {
    let kernel = Kernel::new(frame, q, isa);
    KernelShape {
        tile_columns: kernel.tile,
        tile_rows: 4 * kernel.tile_quads as u32,
        columns_in_work: None,
        prefetch: None,
    }
}

impl<'k> Kernel<'k> {
    fn new(frame: &'k Frame, q: &Quantized, isa: &Isa) -> Kernel<'k> {
        let (dot, codes) = Dot::select(frame.format, q, isa);
        let scales = Scales::new(frame.format, q);
        let groups = if scales.per_16 { GROUPS / 2 } else { GROUPS };
        let tile = match dot.sum_registers(&codes, groups) {
            1 => 4,
            _ => 2,
        };
        let quads = |columns: usize| {
            // The f32 sums, or a column's activations and what is made of them.
            let floats = if columns == 1 { QUADS + 2 } else { columns + 1 };
            let partial = scales.per_16 && columns == 1;
            let per_quad = columns * dot.sum_registers(&codes, groups)
                + dot.weight_registers()
                + if columns == 1 { codes.planes() } else { 0 }
                + partial as usize;
            // Two more convert headers.
            let fixed = floats + codes.constant_registers(false) + 2;
            if cost::fits_registers(isa.arch, QUADS * per_quad + fixed) {
                QUADS
            } else {
                QUADS / 2
            }
        };
        let (column_quads, tile_quads) = (quads(1), quads(tile));
        Kernel {
            tile,
            column_quads,
            tile_quads,
            layout: Q8Layout::new(frame.k),
            quant_bytes: q.quant_bytes(),
            frame,
            scales,
            codes,
            dot,
            blocks: frame.k / 32,
        }
    }

    fn pass(&self, e: &mut Emit, scratch: &Scratch, pass: &Pass) {
        let constants = self.codes.constants(e, self.in_place(pass.columns));
        let halves = F16ToF32::new(e);
        let shape = self.shape(e, pass.columns, halves);
        let zero = e.f32s(0.0);
        if pass.columns > 1 {
            for i in 0..pass.columns as u32 * 4 {
                e.store(zero, Address::new(scratch.sums).plus(16 * i));
            }
        }
        let scales = e.advance(pass.activations, self.layout.scales_offset as u64);
        let sums = e.advance(pass.activations, self.layout.sums_offset as u64);
        let left = e.int(self.blocks as i64);
        // A section begins where the codes before it end, the first with the panel.
        let start = pass.weights;
        let mut carried = vec![left, start, start, pass.activations, scales, sums];
        if pass.columns == 1 {
            carried.extend([zero; QUADS]);
        }
        let chunks = self.blocks.div_ceil(shape.blocks);
        let done = e.repeat(chunks, &carried, |e, v| {
            let left = v[0];
            let [header, codes] = self.begin_chunk(e, left, [v[1], v[2]], &shape);
            let blocks = self.chunk_blocks(e, left, &shape);
            let (header, entry) = match shape.headers {
                Some(_) => (header, header),
                None => {
                    let next = self.unpack(e, scratch, header, blocks, halves);
                    (next, scratch.table)
                }
            };
            let at = Cursor {
                codes,
                activations: v[3],
                scales: v[4],
                sums: v[5],
                entry,
            };
            let chunk = Chunk { blocks, start: at };
            let left = e.b.ins().isub(left, blocks);
            if pass.columns == 1 {
                let sums = v[6..].try_into().expect("four quads");
                let (at, sums) = self.chunk_of_column(e, &constants, scratch, chunk, sums, &shape);
                let mut next = vec![left, header, at.codes, at.activations, at.scales, at.sums];
                next.extend(sums);
                next
            } else {
                self.chunk_of_tile(e, &constants, scratch, chunk, &shape, pass.columns);
                let mut behind = |p, bytes: u32| {
                    let bytes = e.b.ins().imul_imm_s(blocks, bytes as i64);
                    e.b.ins().iadd(p, bytes)
                };
                vec![
                    left,
                    header,
                    behind(at.codes, self.quant_bytes),
                    behind(at.activations, 32),
                    behind(at.scales, 4),
                    behind(at.sums, 4),
                ]
            }
        });
        for column in 0..pass.columns {
            for quad in 0..QUADS {
                let sum = if pass.columns == 1 {
                    done[6 + quad]
                } else {
                    let at = COLUMN * column as u32 + 16 * quad as u32;
                    e.load(F32X4, Address::new(scratch.sums).plus(at))
                };
                self.frame.write(e, pass, column, quad, sum);
            }
        }
    }

    fn shape(&self, e: &Emit, columns: usize, halves: F16ToF32) -> Shape {
        let quads = if columns == 1 {
            self.column_quads
        } else {
            self.tile_quads
        };
        // A body of all rows converts a header once.
        let inline = quads == QUADS && e.arch == Arch::Aarch64 && self.scales.are_plain();
        Shape {
            quads,
            blocks: if inline { SECTION_BLOCKS } else { CHUNK_BLOCKS },
            headers: inline.then_some(halves),
            in_place: self.in_place(columns),
        }
    }

    fn in_place(&self, columns: usize) -> bool {
        columns == 1 && self.dot == Dot::Vnni && self.codes.nibbles_in_place()
    }

    /// Headers and codes of the next chunk, from where those before it end, with `left`
    /// blocks of the panel to go.
    fn begin_chunk(
        &self,
        e: &mut Emit,
        left: Value,
        [header, codes]: [Value; 2],
        shape: &Shape,
    ) -> [Value; 2] {
        let last = self.blocks % SECTION_BLOCKS;
        let bytes = |blocks| self.scales.section_header_bytes(blocks);
        let behind = if self.blocks < SECTION_BLOCKS {
            e.advance(codes, bytes(last))
        } else {
            let whole = e.advance(codes, bytes(SECTION_BLOCKS));
            if last == 0 {
                whole
            } else {
                let in_last = e.advance(codes, bytes(last));
                let is_last = self.is_below(e, left, SECTION_BLOCKS);
                e.b.ins().select(is_last, in_last, whole)
            }
        };
        if shape.blocks == SECTION_BLOCKS || self.blocks <= shape.blocks {
            return [codes, behind];
        }
        let place = e.b.ins().band_imm_u(left, (SECTION_BLOCKS - 1) as i64);
        let begins = e.b.ins().icmp_imm_s(IntCC::Equal, place, last as i64);
        [
            e.b.ins().select(begins, codes, header),
            e.b.ins().select(begins, behind, codes),
        ]
    }

    /// Blocks of the next chunk, with `left` of the panel to go.
    fn chunk_blocks(&self, e: &mut Emit, left: Value, shape: &Shape) -> Value {
        let whole = e.int(shape.blocks as i64);
        if self.blocks.is_multiple_of(shape.blocks) {
            return whole;
        }
        let is_last = self.is_below(e, left, shape.blocks);
        e.b.ins().select(is_last, left, whole)
    }

    fn is_below(&self, e: &mut Emit, left: Value, blocks: u32) -> Value {
        let below = IntCC::UnsignedLessThan;
        e.b.ins().icmp_imm_u(below, left, blocks as i64)
    }

    /// Unpacks the headers of a chunk of `blocks` blocks; returns the address of the
    /// next one.
    fn unpack(
        &self,
        e: &mut Emit,
        scratch: &Scratch,
        header: Value,
        blocks: Value,
        halves: F16ToF32,
    ) -> Value {
        let entries = self.scales.blocks_per_header() * self.scales.entry_bytes();
        let unpack = |e: &mut Emit, v: &[Value]| {
            self.scales.unpack(e, v[0], v[1], scratch.common, halves);
            vec![
                e.advance(v[0], self.scales.header_bytes() as u64),
                e.advance(v[1], entries as u64),
            ]
        };
        let start = [header, scratch.table];
        let next = match self.scales.blocks_per_header() {
            1 => e.repeat_dynamic(blocks, &start, unpack),
            // A super-block is a chunk.
            _ => unpack(e, &start),
        };
        next[0]
    }

    fn chunk_of_column(
        &self,
        e: &mut Emit,
        constants: &Constants,
        scratch: &Scratch,
        chunk: Chunk,
        sums: [Value; QUADS],
        shape: &Shape,
    ) -> (Cursor, [Value; QUADS]) {
        let mut carried = chunk.start.to_vec();
        carried.extend(sums);
        let v = e.repeat_dynamic(chunk.blocks, &carried, |e, v| {
            let at = Cursor::from_slice(v);
            let mut sums: [Value; QUADS] = v[Cursor::LEN..].try_into().expect("four quads");
            for first in (0..QUADS).step_by(shape.quads) {
                let body = Body {
                    kernel: self,
                    constants,
                    at,
                    common: scratch.common,
                    partial: scratch.partial,
                    columns: 1,
                    shape,
                    first_quad: first,
                };
                body.emit(e, &mut Sums::Registers(&mut sums));
            }
            let mut next = self.next(e, at, shape).to_vec();
            next.extend(sums);
            next
        });
        (
            Cursor::from_slice(&v),
            v[Cursor::LEN..].try_into().expect("four quads"),
        )
    }

    /// All of the panel's rows for all columns of a tile.
    fn chunk_of_tile(
        &self,
        e: &mut Emit,
        constants: &Constants,
        scratch: &Scratch,
        chunk: Chunk,
        shape: &Shape,
        columns: usize,
    ) {
        let at = chunk.start;
        let rows = [at.codes, at.entry, scratch.common, scratch.sums];
        let bodies = (QUADS / shape.quads) as u32;
        e.repeat(bodies, &rows, |e, rows| {
            let start = Cursor {
                codes: rows[0],
                entry: rows[1],
                ..at
            };
            e.repeat_dynamic(chunk.blocks, &start.to_vec(), |e, v| {
                let body = Body {
                    kernel: self,
                    constants,
                    at: Cursor::from_slice(v),
                    common: rows[2],
                    partial: scratch.partial,
                    columns,
                    shape,
                    first_quad: 0,
                };
                body.emit(e, &mut Sums::Frame(rows[3]));
                self.next(e, body.at, shape).to_vec()
            });
            let bytes = shape.quads as u64 * QUAD as u64;
            rows.iter().map(|&p| e.advance(p, bytes)).collect()
        });
    }

    fn next(&self, e: &mut Emit, at: Cursor, shape: &Shape) -> Cursor {
        let entry = match shape.headers {
            Some(_) => self.scales.header_bytes(),
            None => self.scales.entry_bytes(),
        };
        Cursor {
            codes: e.advance(at.codes, self.quant_bytes as u64),
            activations: e.advance(at.activations, 32),
            scales: e.advance(at.scales, 4),
            sums: e.advance(at.sums, 4),
            entry: e.advance(at.entry, entry as u64),
        }
    }
}

impl Cursor {
    const LEN: usize = 5;

    fn to_vec(self) -> Vec<Value> {
        vec![
            self.codes,
            self.activations,
            self.scales,
            self.sums,
            self.entry,
        ]
    }

    fn from_slice(v: &[Value]) -> Cursor {
        Cursor {
            codes: v[0],
            activations: v[1],
            scales: v[2],
            sums: v[3],
            entry: v[4],
        }
    }
}

/// One 32-block: `quads` quads from `first_quad` on, all columns of the pass.
struct Body<'b, 'k> {
    kernel: &'b Kernel<'k>,
    constants: &'b Constants,
    at: Cursor,
    common: Value,
    partial: Value,
    columns: usize,
    shape: &'b Shape,
    first_quad: usize,
}

impl Body<'_, '_> {
    fn emit(&self, e: &mut Emit, sums: &mut Sums) {
        let scales = &self.kernel.scales;
        if !scales.per_16 {
            let dots = self.dots(e, 0..GROUPS);
            let [mut scale, mut minimum] = self.scale_and_minimum(e);
            for c in 0..self.columns {
                let da = self.splat(e, F32X4, self.at.scales, c, 0);
                let scaled_sum = (scales.minimum != Minimum::None).then(|| {
                    let offset =
                        self.kernel.layout.scaled_sums_offset - self.kernel.layout.scales_offset;
                    self.splat(e, F32X4, self.at.scales, c, offset)
                });
                for q in 0..self.shape.quads {
                    let dot = e.f32_from_int(dots[c * self.shape.quads + q]);
                    let dw = scale.load(e, q);
                    let d = e.b.ins().fmul(da, dw);
                    let product = e.b.ins().fmul(dot, d);
                    let mut sum = self.add(e, sums, c, q, product);
                    if let Some(scaled_sum) = scaled_sum {
                        let m = minimum.load(e, q);
                        let product = e.b.ins().fmul(scaled_sum, m);
                        sum = self.apply_minimum(e, sum, product);
                    }
                    self.put(e, sums, c, q, sum);
                }
            }
            return;
        }

        // All products of dots and scales are integers below 2^24, so f32
        // holds them exactly and their sum is that of the i32.
        let dots = self.dots(e, 0..GROUPS / 2);
        let mut partial = Vec::new();
        let mut scale = self.field(e, self.at.entry, 0);
        for (i, dot) in dots.into_iter().enumerate() {
            let dot = e.f32_from_int(dot);
            let s0 = scale.load(e, i % self.shape.quads);
            let product = e.b.ins().fmul(dot, s0);
            if self.columns > 1 {
                e.store(product, Address::new(self.partial).plus(QUAD * i as u32));
            }
            partial.push(product);
        }
        let dots = self.dots(e, GROUPS / 2..GROUPS);
        let mut scale = self.field(e, self.at.entry, 1);
        let mut d_w = self.field(e, self.common, 0);
        for c in 0..self.columns {
            let da = self.splat(e, F32X4, self.at.scales, c, 0);
            let group_sums = (scales.minimum != Minimum::None).then(|| {
                [0, 2].map(|offset| {
                    let column = self.kernel.layout.stride * c as u32;
                    let sum = e.load_i16(Address::new(self.at.sums).plus(column + offset));
                    let sum = e.b.ins().splat(I32X4, sum);
                    e.f32_from_int(sum)
                })
            });
            for q in 0..self.shape.quads {
                let i = c * self.shape.quads + q;
                let dot = e.f32_from_int(dots[i]);
                let s1 = scale.load(e, q);
                let product = e.b.ins().fmul(dot, s1);
                let first = if self.columns > 1 {
                    e.load(F32X4, Address::new(self.partial).plus(QUAD * i as u32))
                } else {
                    partial[i]
                };
                let isum = e.b.ins().fadd(product, first);
                let d = d_w.load(e, q);
                let d = e.b.ins().fmul(da, d);
                let product = e.b.ins().fmul(isum, d);
                let mut sum = self.add(e, sums, c, q, product);
                if let Some([u0, u1]) = group_sums {
                    let m0 = self.quad_of(e, self.at.entry, scales.minimum_field(), q);
                    let product = e.b.ins().fmul(u0, m0);
                    let m1 = self.quad_of(e, self.at.entry, scales.minimum_field() + 1, q);
                    let total = e.mul_add(product, u1, m1);
                    let scaled = e.b.ins().fmul(da, total);
                    let dmin = self.quad_of(e, self.common, 1, q);
                    let product = e.b.ins().fmul(scaled, dmin);
                    sum = self.apply_minimum(e, sum, product);
                }
                self.put(e, sums, c, q, sum);
            }
        }
    }

    /// Integer dot products of some groups, by column, then quad.
    fn dots(&self, e: &mut Emit, groups: std::ops::Range<u32>) -> Vec<Value> {
        let kernel = self.kernel;
        let parts = if self.shape.in_place { 2 } else { 1 };
        let mut dots = Vec::new();
        for c in 0..self.columns {
            let correction = self.correction(e, c, &groups);
            for _ in 0..self.shape.quads {
                dots.push(Sum::new(correction));
                dots.extend((1..parts).map(|_| Sum::new(None)));
            }
        }
        let keep = self.steps_fit(e, &groups);
        let mut steps: [_; QUADS] = std::array::from_fn(|_| Steps::new(keep));
        // x86 merges loads into broadcasts; elsewhere lanes of one load are cheaper.
        let by_lane = self.columns == 1 || e.arch == Arch::Aarch64;
        let mut four_groups = vec![None; self.columns];
        for group in groups {
            let mut weights = Vec::with_capacity(self.shape.quads);
            for (q, steps) in steps.iter_mut().enumerate().take(self.shape.quads) {
                let at = Address::new(self.at.codes).plus(QUAD * (self.first_quad + q) as u32);
                let codes = kernel.codes.load(e, self.constants, steps, at, group);
                weights.push(kernel.dot.weights(e, codes));
            }
            for c in 0..self.columns {
                let splat = if by_lane {
                    let whole = match four_groups[c] {
                        Some(whole) if !group.is_multiple_of(4) => whole,
                        Some(_) | None => {
                            let column = kernel.layout.stride * c as u32;
                            let at = Address::new(self.at.activations);
                            e.load(I8X16, at.plus(column + 4 * group))
                        }
                    };
                    four_groups[c] = Some(whole);
                    e.splat_lane(whole, group % 4)
                } else {
                    self.splat(e, I8X16, self.at.activations, c, 4 * group)
                };
                let a = kernel.dot.activations(e, splat);
                for (q, w) in weights.iter().enumerate() {
                    let dot =
                        &mut dots[(c * self.shape.quads + q) * parts + group as usize % parts];
                    *dot = kernel.dot.step(e, &kernel.codes, *dot, *w, a);
                }
            }
        }
        dots.chunks(parts)
            .map(|sums| {
                let low = kernel.dot.finish(e, sums[0]);
                match sums.get(1) {
                    None => low,
                    Some(high) => {
                        let high = kernel.dot.finish(e, *high);
                        let high = e.shift_right_signed(high, 4);
                        e.b.ins().iadd(low, high)
                    }
                }
            })
            .collect()
    }

    /// Whether a step of codes may stay in a register for its other groups: the
    /// f32 sums of one column, the integer sums, the constants, the operands
    /// and the steps must fit into the registers.
    fn steps_fit(&self, e: &Emit, groups: &std::ops::Range<u32>) -> bool {
        let Kernel { dot, codes, .. } = self.kernel;
        let groups = groups.end - groups.start;
        let parts = if self.shape.in_place { 2 } else { 1 };
        let per_quad =
            dot.sum_registers(codes, groups) * parts + dot.weight_registers() + codes.planes();
        let activations = 2;
        let values = QUADS
            + self.shape.quads * per_quad
            + codes.constant_registers(self.shape.in_place)
            + activations;
        self.columns == 1 && cost::fits_registers(e.arch, values)
    }

    /// What the codes' offset adds to the dot products of `groups`, negated.
    fn correction(
        &self,
        e: &mut Emit,
        column: usize,
        groups: &std::ops::Range<u32>,
    ) -> Option<Value> {
        let offset = self.kernel.codes.offset;
        if offset == 0 {
            return None;
        }
        let at = Address::new(self.at.sums).plus(self.kernel.layout.stride * column as u32);
        let mut sum: Option<Value> = None;
        for half in groups.start / 4..groups.end / 4 {
            let part = e.load_i16(at.plus(2 * half));
            sum = Some(match sum {
                Some(sum) => e.b.ins().iadd(sum, part),
                None => part,
            });
        }
        let product = e.b.ins().imul_imm_s(sum.expect("a half"), -offset as i64);
        Some(e.b.ins().splat(I32X4, product))
    }

    fn splat(
        &self,
        e: &mut Emit,
        ty: cranelift_codegen::ir::Type,
        base: Value,
        column: usize,
        offset: u32,
    ) -> Value {
        let at = Address::new(base).plus(self.kernel.layout.stride * column as u32 + offset);
        e.load_splat(ty, at)
    }

    fn quad_of(&self, e: &mut Emit, base: Value, field: u32, q: usize) -> Value {
        self.field(e, base, field).load(e, q)
    }

    /// `d_w` and `m_w` of a block with one scale.
    fn scale_and_minimum(&self, e: &mut Emit) -> [Field; 2] {
        let scales = &self.kernel.scales;
        match self.shape.headers {
            Some(halves) => scales
                .convert(e, self.at.entry, halves)
                .map(Field::Registers),
            None => [0, scales.minimum_field()].map(|field| self.field(e, self.at.entry, field)),
        }
    }

    /// The body's quads of a field, which all columns use.
    fn field(&self, e: &Emit, base: Value, field: u32) -> Field {
        let first = Address::new(base).plus(FIELD * field + QUAD * self.first_quad as u32);
        match e.arch {
            // Loads merge into multiplications.
            Arch::X86_64 => Field::Memory(first),
            Arch::Aarch64 => Field::LoadedOnce(first, [None; QUADS]),
        }
    }

    fn sum_address(&self, base: Value, c: usize, q: usize) -> Address {
        Address::new(base).plus(COLUMN * c as u32 + QUAD * (self.first_quad + q) as u32)
    }

    fn add(&self, e: &mut Emit, sums: &Sums, c: usize, q: usize, term: Value) -> Value {
        let sum = match sums {
            Sums::Registers(sums) => sums[self.first_quad + q],
            Sums::Frame(base) => e.load(F32X4, self.sum_address(*base, c, q)),
        };
        e.b.ins().fadd(term, sum)
    }

    fn put(&self, e: &mut Emit, sums: &mut Sums, c: usize, q: usize, sum: Value) {
        match sums {
            Sums::Registers(sums) => sums[self.first_quad + q] = sum,
            Sums::Frame(base) => e.store(sum, self.sum_address(*base, c, q)),
        }
    }

    fn apply_minimum(&self, e: &mut Emit, sum: Value, product: Value) -> Value {
        match self.kernel.scales.minimum {
            Minimum::Added => e.b.ins().fadd(sum, product),
            Minimum::Subtracted => e.b.ins().fsub(sum, product),
            Minimum::None => panic!("the format has no minimum"),
        }
    }
}

/// The quads of a field of scales.
enum Field {
    Registers([Value; QUADS]),
    Memory(Address),
    LoadedOnce(Address, [Option<Value>; QUADS]),
}

impl Field {
    fn load(&mut self, e: &mut Emit, q: usize) -> Value {
        let place = |first: &Address| first.plus(QUAD * q as u32);
        match self {
            Field::Registers(values) => values[q],
            Field::Memory(first) => e.load(F32X4, place(first)),
            Field::LoadedOnce(first, loaded) => {
                *loaded[q].get_or_insert_with(|| e.load(F32X4, place(first)))
            }
        }
    }
}
