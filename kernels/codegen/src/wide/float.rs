//! Matmul of F32, F16 and BF16 weights with f32 activations: sequential k per
//! lane, all f32 sums of a tile in registers.

use super::asm::{Address, Asm, Vector};
use super::codes::part_of;
use super::frame::{Frame, LOCALS, Local, reg, sizes};
use super::level::Level;
use crate::KernelShape;
use crate::cost::{self, Prefetch};
use iced_x86::Register;
use omex_kernels::{PANEL_ROWS, WeightFormat};

/// Steps of 64 bytes that a loop goes through at once.
const UNROLL: u32 = 4;
/// Columns in work: as a panel stays in the first-level cache, few are enough.
const COLUMNS_MAX: u32 = 24;
/// Bytes of a step.
const STEP: u32 = 64;
/// Within 128 bits: the first halves of four dwords, then their second ones.
const FIRST_THEN_SECOND: [u8; 16] = [0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15];

fn tile(frame: &Frame, level: Level) -> usize {
    let parts = level.parts();
    // Beside the sums: the weights of a step, an activation, a product and the
    // constants of a conversion.
    let others = parts * frame.format.k_multiple() as usize + 4;
    cost::tile_columns(level.registers() as usize, others, parts)
}

pub(super) fn shape(frame: &Frame, level: Level) -> KernelShape {
    let tile_columns = tile(frame, level);
    KernelShape {
        tile_columns,
        tile_rows: PANEL_ROWS,
        columns_in_work: Some(frame.columns_in_work(tile_columns, 1..=COLUMNS_MAX)),
        prefetch: begins_pages(frame).then(|| frame.prefetch()),
    }
}

/// Whether code asks for weights. Where hardware goes on to the next page by itself, it
/// reads steps as fast without.
fn begins_pages(frame: &Frame) -> bool {
    matches!(frame.prefetch(), Prefetch::Pages { .. })
}

pub(super) fn build(a: &mut Asm, frame: &Frame) {
    let end = frame.enter(a, LOCALS);
    let parts = a.level.parts();
    let tile = tile(frame, a.level);
    let columns = frame.columns_in_work(tile, 1..=COLUMNS_MAX);
    frame.columns(a, columns, |a| {
        frame.panels(a, |a| {
            // Output and residual of the tile.
            a.mov_from(reg::SUMS, Local::PanelOut.at());
            a.mov_from(reg::HEADER, Local::PanelResidual.at());
            let begin = |_: &mut Asm, _| {};
            frame.tiles(a, &sizes(tile), begin, |a, columns| {
                let sums = a.take_many(columns * parts);
                rows(a, frame, columns, &sums);
                for (column, sums) in sums.chunks(parts).enumerate() {
                    let at = frame.out_stride * column as u32;
                    let [out, residual] = [reg::SUMS, reg::HEADER].map(Address::new);
                    let bias = Address::new(reg::BIAS);
                    frame.write(a, sums, out.plus(at), residual.plus(at), bias);
                }
                a.give_many(sums);
                for r in [reg::SUMS, reg::HEADER] {
                    a.advance(r, frame.out_stride * columns as u32);
                }
            });
        });
    });
    frame.leave(a, end);
}

/// The sums of the panel's rows for the columns of a tile.
fn rows(a: &mut Asm, frame: &Frame, columns: usize, sums: &[Vector]) {
    for &sum in sums {
        a.zero(sum);
    }
    let per_step = frame.format.k_multiple();
    let steps = frame.k / per_step;
    let convert = Convert::new(a, frame.format);
    let (column, counter) = (Register::RSI, Register::RDX);
    a.mov(column, reg::TILE);
    a.mov(reg::CODES, reg::WEIGHTS);
    let run = |a: &mut Asm, count: u32| {
        if begins_pages(frame) {
            frame.fetch(a, reg::CODES, STEP * count, reg::BLOCK);
        }
        for step in 0..count {
            one_step(a, frame, &convert, columns, sums, column, step);
        }
        a.advance(reg::CODES, STEP * count);
        a.advance(column, 4 * per_step * count);
    };
    if steps >= UNROLL {
        a.set(counter, steps / UNROLL);
        a.repeat(counter, |a| run(a, UNROLL));
    }
    if !steps.is_multiple_of(UNROLL) {
        run(a, steps % UNROLL);
    }
    convert.end(a);
}

fn one_step(
    a: &mut Asm,
    frame: &Frame,
    convert: &Convert,
    columns: usize,
    sums: &[Vector],
    column: Register,
    step: u32,
) {
    let parts = a.level.parts();
    let weights = convert.load(a, Address::new(reg::CODES).plus(STEP * step));
    let [activation, product] = [a.take(), a.take()];
    for (i, weights) in weights.chunks(parts).enumerate() {
        let k = step * frame.format.k_multiple() + i as u32;
        for c in 0..columns {
            let at = frame.activation_stride * c as u32 + 4 * k;
            a.broadcast_dword(activation, Address::new(column).plus(at));
            for (&w, &sum) in weights.iter().zip(&sums[c * parts..]) {
                a.mul(product, activation, w);
                a.add(sum, sum, product);
            }
        }
    }
    a.give_many([activation, product]);
    a.give_many(weights);
}

/// Conversion of a step to f32.
enum Convert {
    F32,
    BF16,
    F16 {
        halves: Vector,
        qwords: Option<Vector>,
    },
}

impl Convert {
    fn new(a: &mut Asm, format: WeightFormat) -> Convert {
        match format {
            WeightFormat::F32 => Convert::F32,
            WeightFormat::BF16 => Convert::BF16,
            WeightFormat::F16 => {
                let halves = a.take();
                a.set_table(halves, &FIRST_THEN_SECOND);
                let qwords = (a.level.lanes() == 16).then(|| {
                    let qwords = a.take();
                    a.set_qwords(qwords, [0, 2, 4, 6, 1, 3, 5, 7]);
                    qwords
                });
                Convert::F16 { halves, qwords }
            }
            WeightFormat::Q4_0
            | WeightFormat::Q4_1
            | WeightFormat::Q5_0
            | WeightFormat::Q5_1
            | WeightFormat::Q8_0
            | WeightFormat::Q2K
            | WeightFormat::Q3K
            | WeightFormat::Q4K
            | WeightFormat::Q5K
            | WeightFormat::Q6K
            | WeightFormat::Iq4Nl
            | WeightFormat::Iq4Xs
            | WeightFormat::Mxfp4 => panic!("{} is not a float format", format.name()),
        }
    }

    fn end(self, a: &mut Asm) {
        if let Convert::F16 { halves, qwords } = self {
            a.give(halves);
            a.give_many(qwords);
        }
    }

    /// The f32 of a step by k, then part.
    fn load(&self, a: &mut Asm, at: Address) -> Vec<Vector> {
        let parts = a.level.parts();
        match self {
            Convert::F32 => {
                let weights = a.take_many(parts);
                for (part, &w) in weights.iter().enumerate() {
                    a.load(w, part_of(a, at, part));
                }
                weights
            }
            Convert::BF16 => {
                let weights = a.take_many(2 * parts);
                for part in 0..parts {
                    let [first, second] = [weights[part], weights[parts + part]];
                    a.load(second, part_of(a, at, part));
                    a.shift_dwords_left(first, second, 16);
                    a.shift_dwords_right(second, second, 16);
                    a.shift_dwords_left(second, second, 16);
                }
                weights
            }
            Convert::F16 { halves, qwords } => {
                let weights = a.take_many(2 * parts);
                for part in 0..parts {
                    let [first, second] = [weights[part], weights[parts + part]];
                    a.load(second, part_of(a, at, part));
                    a.shuffle_bytes(second, second, *halves);
                    a.even_then_odd_qwords(second, second, qwords.unwrap_or(*halves));
                    a.f32_from_f16_low(first, second);
                    a.high_half(second, second);
                    a.f32_from_f16_low(second, second);
                }
                weights
            }
        }
    }
}
