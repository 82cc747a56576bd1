//! Integer products of 32-blocks by AMX: 16 columns and 16 rows at a time.
//!
//! A record's operands are what AMX takes as its second matrix: eight rows of four k of each
//! of 16 rows. The first are the columns' activations as they are. The products come back
//! by way of the stack frame, because no instruction moves them to vector registers.

use super::asm::{Address, Asm, When};
use super::codes::GROUPS;
use super::frame::{Local, ROWS_BYTES, reg, stack};
use iced_x86::Register;

/// Columns of a tile.
pub(super) const COLUMNS: usize = 16;
/// Bytes in the frame: the products of a block while those of the next are computed.
pub(super) const BYTES: u32 = TURNS.len() as u32 * TURN_BYTES;

const TURN_BYTES: u32 = COLUMNS as u32 * ROWS_BYTES;
/// Bytes of a 32-block's activations.
const BLOCK_BYTES: u32 = 4 * GROUPS;

/// Where the products of a block go, so that two blocks are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Even,
    Odd,
}

pub(super) const TURNS: [Turn; 2] = [Turn::Even, Turn::Odd];

impl Turn {
    fn other(self) -> Turn {
        match self {
            Turn::Even => Turn::Odd,
            Turn::Odd => Turn::Even,
        }
    }

    /// AMX registers of the products, the activations and the operands.
    fn registers(self) -> [Register; 3] {
        let first = Register::TMM0 + 3 * self as u32;
        [first, first + 1, first + 2]
    }

    fn at(self) -> u32 {
        self as u32 * TURN_BYTES
    }
}

/// General registers that [`Products`] need, beside the block and the record.
const SCRATCH: Register = reg::PANELS;
const ROW_STRIDE: Register = reg::CODES;
const COLUMN_STRIDE: Register = reg::HEADER;
const KEPT: [(Register, Local); 3] = [
    (SCRATCH, Local::PanelsLeft),
    (ROW_STRIDE, Local::ChunkCodes),
    (COLUMN_STRIDE, Local::ChunkHeader),
];

/// Gives the AMX registers their shapes, until [`end`].
pub(super) fn begin(a: &mut Asm) {
    // Intel SDM volume 1, 18.3: the palette, then bytes per row and rows of each register.
    let mut configuration = [0u8; 64];
    configuration[0] = 1;
    for [products, activations, operands] in TURNS.map(Turn::registers) {
        for (register, bytes, rows) in [
            (products, ROWS_BYTES, COLUMNS as u32),
            (activations, BLOCK_BYTES, COLUMNS as u32),
            (operands, ROWS_BYTES, GROUPS),
        ] {
            let n = register.number();
            configuration[16 + 2 * n] = bytes as u8;
            configuration[48 + n] = rows as u8;
        }
    }
    a.configure_tiles(&configuration);
}

pub(super) fn end(a: &mut Asm) {
    a.release_tiles();
}

/// The products of a tile's blocks, one block after the other.
pub(super) struct Products {
    /// Their place in the frame.
    pub(super) at: u32,
    /// Bytes from a record to the next.
    pub(super) record: u32,
    /// Bytes from a column to the next.
    pub(super) column: u32,
}

impl Products {
    /// Takes the general registers, until [`Products::leave`].
    pub(super) fn enter(&self, a: &mut Asm) {
        for (register, local) in KEPT {
            a.mov_to(local.at(), register);
        }
        a.set(ROW_STRIDE, ROWS_BYTES);
        a.set(COLUMN_STRIDE, self.column);
    }

    pub(super) fn leave(&self, a: &mut Asm) {
        for (register, local) in KEPT {
            a.mov_from(register, local.at());
        }
    }

    /// Computes and stores those of the block of [`reg::BLOCK`].
    pub(super) fn first(&self, a: &mut Asm) {
        self.compute(a, Turn::Even, 0);
        self.store(a, Turn::Even);
    }

    /// Computes those of the block after it, if the chunk has one. Storing them at once
    /// would hold up what follows until they are there.
    pub(super) fn compute_next(&self, a: &mut Asm, turn: Turn) {
        let end = a.label();
        a.address(SCRATCH, Address::new(reg::BLOCK).plus(4));
        a.compare(SCRATCH, reg::END);
        a.jump(When::Equal, end);
        self.compute(a, turn.other(), 1);
        a.bind(end);
    }

    fn compute(&self, a: &mut Asm, turn: Turn, blocks_ahead: u32) {
        let [products, activations, operands] = turn.registers();
        a.address(SCRATCH, Address::new(reg::TILE).index(reg::BLOCK, 8));
        let activations_at = Address::new(SCRATCH).plus(BLOCK_BYTES * blocks_ahead);
        let operands_at = Address::new(reg::RECORD).plus(self.record * blocks_ahead);
        a.zero_tile(products);
        a.load_tile(activations, activations_at, COLUMN_STRIDE);
        a.load_tile(operands, operands_at, ROW_STRIDE);
        a.multiply_tiles(products, activations, operands);
    }

    pub(super) fn store_next(&self, a: &mut Asm, turn: Turn) {
        self.store(a, turn.other());
    }

    fn store(&self, a: &mut Asm, turn: Turn) {
        let [products, ..] = turn.registers();
        a.store_tile(stack(self.at + turn.at()), ROW_STRIDE, products);
    }

    /// The 16 rows of a column.
    pub(super) fn of_column(&self, turn: Turn, column: usize) -> Address {
        stack(self.at + turn.at() + ROWS_BYTES * column as u32)
    }
}
