//! Matmul of quantized weights with int8 activations.
//!
//! A pass goes through a panel in chunks of up to eight 32-blocks: the chunk's
//! headers are unpacked into a table, then its blocks follow in a loop. One
//! column keeps its f32 sums in registers and takes all 16 rows of a block; a
//! tile of columns takes 8 rows at a time and keeps its f32 sums in the frame,
//! because the registers hold the integer sums of rows x columns.

use super::codes::{Codes, Constants, GROUPS, Steps};
use super::dot::{Dot, Sum};
use super::emit::{Address, Emit};
use super::frame::{Frame, Pass, QUADS};
use super::scales::{COMMON, F16ToF32, FIELD, Minimum, Scales};
use crate::{Arch, Isa};
use cranelift_codegen::ir::types::{F32X4, I8X16, I32, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use omex_kernels::activation::Q8Layout;
use omex_kernels::format::Quantized;

/// Quads that a block body holds integer sums of.
const BODY_QUADS: usize = 2;
/// Bytes of 8 rows: in a step of codes, a field of scales and a column of sums.
const HALF_PANEL: u64 = 32;
/// f32 bytes of 16 rows.
const COLUMN: u32 = 64;

struct Kernel<'k> {
    frame: &'k Frame,
    layout: Q8Layout,
    scales: Scales,
    codes: Codes,
    dot: Dot,
    /// 32-blocks per chunk.
    chunk: u32,
    quant_bytes: u32,
}

/// Where the next 32-block lies.
#[derive(Clone, Copy)]
struct Cursor {
    codes: Value,
    activations: Value,
    scales: Value,
    sums: Value,
    entry: Value,
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
    let (dot, codes) = Dot::select(frame.format, q, isa);
    let scales = Scales::new(frame.format, q);
    let blocks = frame.k / 32;
    let chunk = (1..=8u32)
        .rev()
        .find(|n| blocks.is_multiple_of(*n) && n.is_multiple_of(scales.blocks_per_header()))
        .expect("K is a multiple of the block length");
    let groups = if scales.per_16 { GROUPS / 2 } else { GROUPS };
    let tile = match dot.sum_registers(&codes, groups) {
        1 => 4,
        _ => 2,
    };
    let kernel = Kernel {
        layout: Q8Layout::new(frame.k),
        quant_bytes: q.quant_bytes(),
        frame,
        scales,
        codes,
        dot,
        chunk,
    };
    let table = e.stack(chunk * kernel.scales.entry_bytes());
    let scratch = Scratch {
        table,
        common: if kernel.scales.per_16 {
            e.stack(COMMON)
        } else {
            table
        },
        sums: e.stack(tile as u32 * COLUMN),
        partial: if kernel.scales.per_16 {
            e.stack((tile * BODY_QUADS) as u32 * 16)
        } else {
            table
        },
    };
    frame.build(e, tile, |e, pass| kernel.pass(e, &scratch, &pass));
}

impl Kernel<'_> {
    fn pass(&self, e: &mut Emit, scratch: &Scratch, pass: &Pass) {
        let in_place = pass.columns == 1 && self.dot == Dot::Vnni && self.codes.nibbles_in_place();
        let constants = self.codes.constants(e, in_place);
        let halves = F16ToF32::new(e);
        let zero = e.f32s(0.0);
        if pass.columns > 1 {
            for i in 0..pass.columns as u32 * 4 {
                e.store(zero, Address::new(scratch.sums).plus(16 * i));
            }
        }
        let codes = e.advance(
            pass.weights,
            self.frame.format.panel_header_bytes(self.frame.k),
        );
        let scales = e.advance(pass.activations, self.layout.scales_offset as u64);
        let sums = e.advance(pass.activations, self.layout.sums_offset as u64);
        let mut carried = vec![pass.weights, codes, pass.activations, scales, sums];
        if pass.columns == 1 {
            carried.extend([zero; QUADS]);
        }
        let chunks = self.frame.k / 32 / self.chunk;
        let done = e.repeat(chunks, &carried, |e, v| {
            let header = self.unpack(e, scratch, v[0], halves);
            let at = Cursor {
                codes: v[1],
                activations: v[2],
                scales: v[3],
                sums: v[4],
                entry: scratch.table,
            };
            if pass.columns == 1 {
                let sums = v[5..].try_into().expect("four quads");
                let (at, sums) = self.chunk_of_column(e, &constants, scratch, at, sums, in_place);
                let mut next = vec![header, at.codes, at.activations, at.scales, at.sums];
                next.extend(sums);
                next
            } else {
                self.chunk_of_tile(e, &constants, scratch, at, pass.columns);
                let blocks = self.chunk as u64;
                vec![
                    header,
                    e.advance(at.codes, blocks * self.quant_bytes as u64),
                    e.advance(at.activations, blocks * 32),
                    e.advance(at.scales, blocks * 4),
                    e.advance(at.sums, blocks * 8),
                ]
            }
        });
        for column in 0..pass.columns {
            for quad in 0..QUADS {
                let sum = if pass.columns == 1 {
                    done[5 + quad]
                } else {
                    let at = COLUMN * column as u32 + 16 * quad as u32;
                    e.load(F32X4, Address::new(scratch.sums).plus(at))
                };
                self.frame.write(e, pass, column, quad, sum);
            }
        }
    }

    /// Unpacks the headers of a chunk; returns the address of the next one.
    fn unpack(&self, e: &mut Emit, scratch: &Scratch, header: Value, halves: F16ToF32) -> Value {
        let headers = self.chunk / self.scales.blocks_per_header();
        let entries = self.scales.blocks_per_header() * self.scales.entry_bytes();
        let next = e.repeat(headers, &[header, scratch.table], |e, v| {
            self.scales.unpack(e, v[0], v[1], scratch.common, halves);
            vec![
                e.advance(v[0], self.scales.header_bytes() as u64),
                e.advance(v[1], entries as u64),
            ]
        });
        next[0]
    }

    fn chunk_of_column(
        &self,
        e: &mut Emit,
        constants: &Constants,
        scratch: &Scratch,
        at: Cursor,
        sums: [Value; QUADS],
        in_place: bool,
    ) -> (Cursor, [Value; QUADS]) {
        let mut carried = at.to_vec();
        carried.extend(sums);
        let v = e.repeat(self.chunk, &carried, |e, v| {
            let at = Cursor::from_slice(v);
            let mut sums: [Value; QUADS] = v[Cursor::LEN..].try_into().expect("four quads");
            for first in (0..QUADS).step_by(BODY_QUADS) {
                let body = Body {
                    kernel: self,
                    constants,
                    at,
                    common: scratch.common,
                    partial: scratch.partial,
                    columns: 1,
                    first_quad: first,
                    in_place,
                };
                body.emit(e, &mut Sums::Registers(&mut sums));
            }
            let mut next = self.next(e, at).to_vec();
            next.extend(sums);
            next
        });
        (
            Cursor::from_slice(&v),
            v[Cursor::LEN..].try_into().expect("four quads"),
        )
    }

    /// Both halves of the panel's rows for all columns of a tile.
    fn chunk_of_tile(
        &self,
        e: &mut Emit,
        constants: &Constants,
        scratch: &Scratch,
        at: Cursor,
        columns: usize,
    ) {
        let halves = [at.codes, scratch.table, scratch.common, scratch.sums];
        e.repeat(2, &halves, |e, half| {
            let start = Cursor {
                codes: half[0],
                entry: half[1],
                ..at
            };
            e.repeat(self.chunk, &start.to_vec(), |e, v| {
                let body = Body {
                    kernel: self,
                    constants,
                    at: Cursor::from_slice(v),
                    common: half[2],
                    partial: scratch.partial,
                    columns,
                    first_quad: 0,
                    in_place: false,
                };
                body.emit(e, &mut Sums::Frame(half[3]));
                self.next(e, body.at).to_vec()
            });
            half.iter().map(|&p| e.advance(p, HALF_PANEL)).collect()
        });
    }

    fn next(&self, e: &mut Emit, at: Cursor) -> Cursor {
        Cursor {
            codes: e.advance(at.codes, self.quant_bytes as u64),
            activations: e.advance(at.activations, 32),
            scales: e.advance(at.scales, 4),
            sums: e.advance(at.sums, 8),
            entry: e.advance(at.entry, self.scales.entry_bytes() as u64),
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

/// One 32-block: two quads from `first_quad` on, all columns of the pass.
struct Body<'b, 'k> {
    kernel: &'b Kernel<'k>,
    constants: &'b Constants,
    at: Cursor,
    common: Value,
    partial: Value,
    columns: usize,
    first_quad: usize,
    in_place: bool,
}

impl Body<'_, '_> {
    fn emit(&self, e: &mut Emit, sums: &mut Sums) {
        let scales = &self.kernel.scales;
        if !scales.per_16 {
            let dots = self.dots(e, 0..GROUPS);
            for c in 0..self.columns {
                let da = self.splat(e, F32X4, self.at.scales, c, 0);
                let scaled_sum = (scales.minimum != Minimum::None).then(|| {
                    let offset =
                        self.kernel.layout.scaled_sums_offset - self.kernel.layout.scales_offset;
                    self.splat(e, F32X4, self.at.scales, c, offset)
                });
                for q in 0..BODY_QUADS {
                    let dot = e.f32_from_int(dots[c * BODY_QUADS + q]);
                    let dw = self.entry(e, 0, q);
                    let d = e.b.ins().fmul(da, dw);
                    let product = e.b.ins().fmul(dot, d);
                    let mut sum = self.add(e, sums, c, q, product);
                    if let Some(scaled_sum) = scaled_sum {
                        let m = self.entry(e, scales.minimum_field(), q);
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
        for (i, dot) in dots.into_iter().enumerate() {
            let dot = e.f32_from_int(dot);
            let s0 = self.entry(e, 0, i % BODY_QUADS);
            let product = e.b.ins().fmul(dot, s0);
            if self.columns > 1 {
                e.store(product, Address::new(self.partial).plus(16 * i as u32));
            }
            partial.push(product);
        }
        let dots = self.dots(e, GROUPS / 2..GROUPS);
        for c in 0..self.columns {
            let da = self.splat(e, F32X4, self.at.scales, c, 0);
            let group_sums = (scales.minimum != Minimum::None).then(|| {
                [0, 4].map(|offset| {
                    let sum = self.splat(e, I32X4, self.at.sums, c, offset);
                    e.f32_from_int(sum)
                })
            });
            for q in 0..BODY_QUADS {
                let i = c * BODY_QUADS + q;
                let dot = e.f32_from_int(dots[i]);
                let s1 = self.entry(e, 1, q);
                let product = e.b.ins().fmul(dot, s1);
                let first = if self.columns > 1 {
                    e.load(F32X4, Address::new(self.partial).plus(16 * i as u32))
                } else {
                    partial[i]
                };
                let isum = e.b.ins().fadd(product, first);
                let d = self.common(e, 0, q);
                let d = e.b.ins().fmul(da, d);
                let product = e.b.ins().fmul(isum, d);
                let mut sum = self.add(e, sums, c, q, product);
                if let Some([u0, u1]) = group_sums {
                    let m0 = self.entry(e, scales.minimum_field(), q);
                    let product = e.b.ins().fmul(u0, m0);
                    let m1 = self.entry(e, scales.minimum_field() + 1, q);
                    let total = e.mul_add(product, u1, m1);
                    let scaled = e.b.ins().fmul(da, total);
                    let dmin = self.common(e, 1, q);
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
        let parts = if self.in_place { 2 } else { 1 };
        let mut dots = Vec::new();
        for c in 0..self.columns {
            let correction = self.correction(e, c, &groups);
            for _ in 0..BODY_QUADS {
                dots.push(Sum::new(correction));
                dots.extend((1..parts).map(|_| Sum::new(None)));
            }
        }
        let keep = self.steps_fit(e, &groups);
        let mut steps: [_; BODY_QUADS] = std::array::from_fn(|_| Steps::new(keep));
        let mut four_groups = None;
        for group in groups {
            let weights: [_; BODY_QUADS] = std::array::from_fn(|q| {
                let at = Address::new(self.at.codes).plus(16 * (self.first_quad + q) as u32);
                let codes = kernel
                    .codes
                    .load(e, self.constants, &mut steps[q], at, group);
                kernel.dot.weights(e, codes)
            });
            for c in 0..self.columns {
                let splat = if self.columns == 1 {
                    let whole = match four_groups {
                        Some(whole) if !group.is_multiple_of(4) => whole,
                        Some(_) | None => {
                            e.load(I8X16, Address::new(self.at.activations).plus(4 * group))
                        }
                    };
                    four_groups = Some(whole);
                    e.splat_lane(whole, group % 4)
                } else {
                    self.splat(e, I8X16, self.at.activations, c, 4 * group)
                };
                let a = kernel.dot.activations(e, splat);
                for (q, w) in weights.into_iter().enumerate() {
                    let dot = &mut dots[(c * BODY_QUADS + q) * parts + group as usize % parts];
                    *dot = kernel.dot.step(e, &kernel.codes, *dot, w, a);
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
        let registers = match e.arch {
            Arch::X86_64 => 16,
            Arch::Aarch64 => 32,
        };
        let groups = groups.end - groups.start;
        let parts = if self.in_place { 2 } else { 1 };
        let per_quad =
            dot.sum_registers(codes, groups) * parts + dot.weight_registers() + codes.planes();
        let activations = 2;
        self.columns == 1
            && QUADS + BODY_QUADS * per_quad + self.constants.registers() + activations <= registers
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
            let part = e.load(I32, at.plus(4 * half));
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

    fn entry(&self, e: &mut Emit, field: u32, q: usize) -> Value {
        self.field(e, self.at.entry, field, q)
    }

    fn common(&self, e: &mut Emit, field: u32, q: usize) -> Value {
        self.field(e, self.common, field, q)
    }

    fn field(&self, e: &mut Emit, base: Value, field: u32, q: usize) -> Value {
        let at = Address::new(base).plus(FIELD * field + 16 * (self.first_quad + q) as u32);
        e.load(F32X4, at)
    }

    fn sum_address(&self, base: Value, c: usize, q: usize) -> Address {
        Address::new(base).plus(COLUMN * c as u32 + 16 * (self.first_quad + q) as u32)
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
