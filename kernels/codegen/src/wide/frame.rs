//! The function around a matmul: general registers, stack frame, epilogue.

use super::asm::{Address, Asm, Label, Vector, When};
use super::codes::part_of;
use crate::Isa;
use crate::cost::{self, Prefetch};
use iced_x86::Register;
use omex_kernels::abi::MatmulArgs;
use omex_kernels::spec::Activation;
use omex_kernels::{WeightFormat, pad_to_panel};
use std::mem::offset_of;
use std::ops::RangeInclusive;

/// What general registers hold. `RBP` keeps the caller's stack.
pub(super) mod reg {
    use iced_x86::Register;

    /// The current panel.
    pub(crate) const WEIGHTS: Register = Register::R8;
    /// Panels to go.
    pub(crate) const PANELS: Register = Register::R9;
    /// The bias of the current panel.
    pub(crate) const BIAS: Register = Register::RBX;
    /// The first column of the columns in work.
    pub(crate) const ACTIVATIONS: Register = Register::R15;
    /// Columns in work.
    pub(crate) const COLUMNS: Register = Register::R14;
    /// The first column of a tile.
    pub(crate) const TILE: Register = Register::RCX;
    /// Columns to go.
    pub(crate) const LEFT: Register = Register::R11;
    /// The next header.
    pub(crate) const HEADER: Register = Register::R13;
    /// The next 32-block's codes, or the next step of a float panel.
    pub(crate) const CODES: Register = Register::R10;
    /// Four times the index of a 32-block: the distance of its scale in a column.
    pub(crate) const BLOCK: Register = Register::RAX;
    /// The same, where the chunk starts.
    pub(crate) const CHUNK: Register = Register::R12;
    /// The same, behind the chunk's last block.
    pub(crate) const END: Register = Register::RDX;
    /// The current unpacked block.
    pub(crate) const RECORD: Register = Register::RSI;
    /// The f32 sums of the tile.
    pub(crate) const SUMS: Register = Register::RDI;
}

/// Registers that a function gives back as they were.
const SAVED: [Register; 6] = [
    Register::RBP,
    Register::RBX,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Bytes of 16 rows of f32.
pub(super) const ROWS_BYTES: u32 = 64;
/// Bytes of a cache line, or of a part of one.
const LINE_BYTES: u32 = 64;
/// What hardware fetches ahead within.
const PAGE_BYTES: u32 = 4096;
/// Bytes of the locals at the start of the stack frame.
pub(super) const LOCALS: u32 = 128;

/// A value in the stack frame.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Local {
    /// Columns to go.
    Columns,
    Weights,
    Panels,
    Bias,
    /// Output and residual of the columns in work, at the first panel.
    Out,
    Residual,
    /// The same at the current panel.
    PanelOut,
    PanelResidual,
    /// The same at the next tile.
    TileOut,
    TileResidual,
    /// The codes of the current chunk, and the header behind its own.
    ChunkCodes,
    ChunkHeader,
    /// Panels to go, and the current one, while their registers are needed.
    PanelsLeft,
    PanelWeights,
    /// Behind the records of the current chunk.
    RecordsEnd,
    /// Columns to go from the tile on whose operands are loaded.
    ColumnsAhead,
}

const _: () = assert!(8 * (Local::ColumnsAhead as u32 + 1) <= LOCALS);

impl Local {
    pub(super) fn at(self) -> Address {
        stack(8 * self as u32)
    }
}

pub(super) fn stack(offset: u32) -> Address {
    Address::new(Register::RSP).plus(offset)
}

/// The shape of a matmul.
pub(super) struct Frame<'i> {
    pub(super) format: WeightFormat,
    pub(super) k: u32,
    /// Bytes between columns.
    pub(super) activation_stride: u32,
    pub(super) out_stride: u32,
    bias: bool,
    residual: bool,
    isa: &'i Isa,
}

impl Frame<'_> {
    pub(super) fn new(
        format: WeightFormat,
        rows: u32,
        k: u32,
        bias: bool,
        residual: bool,
        isa: &Isa,
    ) -> Frame<'_> {
        let activation = Activation::for_weights(format).stride_bytes(k);
        Frame {
            format,
            k,
            activation_stride: u32::try_from(activation).expect("validated extents"),
            out_stride: pad_to_panel(rows) * 4,
            bias,
            residual,
            isa,
        }
    }

    /// As [`cost::columns_in_work`].
    pub(super) fn columns_in_work(&self, tile: usize, range: RangeInclusive<u32>) -> u32 {
        cost::columns_in_work(self.isa, self.activation_stride, tile, range)
    }

    /// As [`cost::prefetch`].
    pub(super) fn prefetch(&self) -> Prefetch {
        cost::prefetch(self.isa)
    }

    /// Asks for weights ahead of those at `at`, as many as make up for `bytes` bytes of
    /// progress. `scratch` is lost.
    pub(super) fn fetch(&self, a: &mut Asm, at: Register, bytes: u32, scratch: Register) {
        match self.prefetch() {
            Prefetch::Lines { bytes: ahead } => {
                for line in 0..bytes.div_ceil(LINE_BYTES) {
                    a.prefetch(Address::new(at).plus(ahead + LINE_BYTES * line));
                }
            }
            Prefetch::Pages { pages } => {
                // Back by three quarters of the way into the page.
                a.mov(scratch, at);
                a.mask(scratch, PAGE_BYTES - 1);
                a.multiply(scratch, scratch, 3);
                a.shift_right(scratch, 2);
                a.negate(scratch);
                let first = Address::new(at).index(scratch, 1).plus(PAGE_BYTES * pages);
                for line in 0..bytes.div_ceil(4 * LINE_BYTES) {
                    a.prefetch(first.plus(LINE_BYTES * line));
                }
            }
        }
    }

    pub(super) fn panel_bytes(&self) -> u32 {
        u32::try_from(self.format.panel_bytes(self.k)).expect("validated extents")
    }

    /// Saves registers, makes a frame of `bytes` bytes aligned to 64 and fills
    /// its locals. Returns a label before the function's end, where a call
    /// without work goes at once.
    pub(super) fn enter(&self, a: &mut Asm, bytes: u32) -> Label {
        for r in SAVED {
            a.push_register(r);
        }
        a.mov(Register::RBP, Register::RSP);
        a.retreat(Register::RSP, bytes.next_multiple_of(64));
        a.align_down(Register::RSP, 64);
        let end = a.label();
        let mut arguments = vec![
            (offset_of!(MatmulArgs, weights), Local::Weights),
            (offset_of!(MatmulArgs, out), Local::Out),
            (offset_of!(MatmulArgs, panels), Local::Panels),
            (offset_of!(MatmulArgs, columns), Local::Columns),
        ];
        if self.bias {
            arguments.push((offset_of!(MatmulArgs, bias), Local::Bias));
        }
        if self.residual {
            arguments.push((offset_of!(MatmulArgs, residual), Local::Residual));
        }
        let argument = |at: usize| Address::new(Register::RDI).plus(at as u32);
        a.mov_from(
            reg::ACTIVATIONS,
            argument(offset_of!(MatmulArgs, activations)),
        );
        for (at, local) in arguments {
            a.mov_from(Register::RAX, argument(at));
            a.mov_to(local.at(), Register::RAX);
            if matches!(local, Local::Panels | Local::Columns) {
                a.compare_with(Register::RAX, 0);
                a.jump(When::Equal, end);
            }
        }
        end
    }

    pub(super) fn leave(&self, a: &mut Asm, end: Label) {
        a.bind(end);
        a.mov(Register::RSP, Register::RBP);
        for r in SAVED.into_iter().rev() {
            a.pop_register(r);
        }
        a.end();
        a.ret();
    }

    /// Executes `panel` with [`reg::WEIGHTS`] at every panel, for the columns in
    /// work, whose output is at [`Local::Out`].
    pub(super) fn panels(&self, a: &mut Asm, panel: impl FnOnce(&mut Asm)) {
        a.mov_from(reg::WEIGHTS, Local::Weights.at());
        a.mov_from(reg::PANELS, Local::Panels.at());
        for (from, to) in [
            (Local::Out, Local::PanelOut),
            (Local::Residual, Local::PanelResidual),
        ] {
            a.mov_from(Register::RAX, from.at());
            a.mov_to(to.at(), Register::RAX);
        }
        if self.bias {
            a.mov_from(reg::BIAS, Local::Bias.at());
        }
        a.repeat(reg::PANELS, |a| {
            panel(a);
            a.advance(reg::WEIGHTS, self.panel_bytes());
            for local in [Local::PanelOut, Local::PanelResidual] {
                a.advance_at(local.at(), ROWS_BYTES);
            }
            a.advance(reg::BIAS, ROWS_BYTES);
        });
    }

    /// Executes `work` for at most `count` columns at a time until all are done.
    pub(super) fn columns(&self, a: &mut Asm, count: u32, work: impl FnOnce(&mut Asm)) {
        let again = a.label();
        a.bind(again);
        a.mov_from(reg::COLUMNS, Local::Columns.at());
        a.at_most(reg::COLUMNS, count, Register::RAX);
        work(a);
        a.multiply(Register::RAX, reg::COLUMNS, self.activation_stride);
        a.advance_by(reg::ACTIVATIONS, Register::RAX);
        a.multiply(Register::RAX, reg::COLUMNS, self.out_stride);
        for local in [Local::Out, Local::Residual] {
            a.advance_at_by(local.at(), Register::RAX);
        }
        a.retreat_at(Local::Columns.at(), reg::COLUMNS);
        a.jump(When::NotEqual, again);
    }

    /// Goes through the columns in work in tiles of the sizes, largest first: `tile`
    /// is executed with [`reg::TILE`] at the first column of each, `begin` before all of
    /// a size.
    pub(super) fn tiles(
        &self,
        a: &mut Asm,
        sizes: &[usize],
        mut begin: impl FnMut(&mut Asm, usize),
        mut tile: impl FnMut(&mut Asm, usize),
    ) {
        a.mov(reg::TILE, reg::ACTIVATIONS);
        a.mov(reg::LEFT, reg::COLUMNS);
        for &size in sizes {
            let (again, next) = (a.label(), a.label());
            a.compare_with(reg::LEFT, size as u32);
            a.jump(When::Below, next);
            begin(a, size);
            a.bind(again);
            tile(a, size);
            a.advance(reg::TILE, self.activation_stride * size as u32);
            a.retreat(reg::LEFT, size as u32);
            a.compare_with(reg::LEFT, size as u32);
            a.jump(When::AboveOrEqual, again);
            a.bind(next);
        }
    }

    /// Adds bias and residual, which are at `bias` and `residual`, to the sums of a
    /// panel's rows, one vector per part, and writes them at `out`.
    pub(super) fn write(
        &self,
        a: &mut Asm,
        sums: &[Vector],
        out: Address,
        residual: Address,
        bias: Address,
    ) {
        for (part, &sum) in sums.iter().enumerate() {
            if self.bias {
                let bias = part_of(a, bias, part);
                a.add(sum, sum, bias);
            }
            if self.residual {
                let residual = part_of(a, residual, part);
                a.add(sum, sum, residual);
            }
            a.store(part_of(a, out, part), sum);
        }
    }
}

/// Tile sizes: `largest`, and each about two thirds of the one before, down to one
/// column. Few columns then take two tiles, at most.
pub(super) fn sizes(largest: usize) -> Vec<usize> {
    let next = |n: &usize| (*n > 1).then(|| n - (n / 3).max(1));
    std::iter::successors(Some(largest), next).collect()
}
