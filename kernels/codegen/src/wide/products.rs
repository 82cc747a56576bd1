//! Integer products of 32-blocks by AMX: 16 columns and 16 rows at a time.
//!
//! A record's operands are what AMX takes as its second matrix: eight rows of four k of each
//! of 16 rows. The first are the columns' activations as they are. The products come back
//! by way of the stack frame, because no instruction moves them to vector registers.
//!
//! The blocks of all tiles of a size are one sequence, of which three are in work: while one
//! is scaled, the next one's products are computed and the operands of the third loaded.
//!
//! Smaller tiles compute the products of the columns before them again: to give AMX registers
//! other shapes takes hundreds of cycles.

use super::asm::{Address, Asm, When};
use super::codes::GROUPS;
use super::frame::{Local, ROWS_BYTES, reg, stack};
use iced_x86::Register;

/// Columns of the largest tile, and the fewest of a call.
pub(super) const COLUMNS: usize = 16;

/// Bytes of a 32-block's activations.
const BLOCK_BYTES: u32 = 4 * GROUPS;
/// Bytes in the frame of the products of a part.
const PART_BYTES: u32 = COLUMNS as u32 * ROWS_BYTES;

/// General registers that [`Products`] need: the activations and the record of the block
/// whose operands are loaded next, bytes from a column and from a row of operands to the
/// next.
const ACTIVATIONS: Register = reg::PANELS;
const RECORD: Register = reg::CODES;
const COLUMN_STRIDE: Register = reg::HEADER;
const ROW_STRIDE: Register = reg::WEIGHTS;
const KEPT: [(Register, Local); 4] = [
    (ACTIVATIONS, Local::PanelsLeft),
    (RECORD, Local::ChunkCodes),
    (COLUMN_STRIDE, Local::ChunkHeader),
    (ROW_STRIDE, Local::PanelWeights),
];

/// The products of the blocks in the records.
pub(super) struct Products {
    /// Their place in the frame.
    pub(super) at: u32,
    /// The records' place in the frame.
    pub(super) records_at: u32,
    /// Bytes from a record to the next.
    pub(super) record_bytes: u32,
    /// Bytes from a column to the next.
    pub(super) column_bytes: u32,
    /// Parts of a block that are added up each for itself: the block, or its halves.
    pub(super) parts: u32,
}

impl Products {
    /// Bytes in the frame.
    pub(super) fn bytes(&self) -> u32 {
        self.parts * PART_BYTES
    }

    /// Takes the AMX registers, until [`Products::release`].
    pub(super) fn take(&self, a: &mut Asm) {
        // Intel SDM volume 1, 18.3: the palette, then bytes per row and rows of each register.
        let mut configuration = [0u8; 64];
        configuration[0] = 1;
        for [products, activations, operands] in self.registers() {
            for (register, bytes, rows) in [
                (products, ROWS_BYTES, COLUMNS as u32),
                (activations, BLOCK_BYTES / self.parts, COLUMNS as u32),
                (operands, ROWS_BYTES, GROUPS / self.parts),
            ] {
                let n = register.number();
                configuration[16 + 2 * n] = bytes as u8;
                configuration[48 + n] = rows as u8;
            }
        }
        a.configure_tiles(&configuration);
    }

    pub(super) fn release(&self, a: &mut Asm) {
        a.release_tiles();
    }

    /// Takes the general registers, until [`Products::leave`]. The records end at
    /// [`reg::RECORD`].
    pub(super) fn enter(&self, a: &mut Asm) {
        for (register, local) in KEPT {
            a.mov_to(local.at(), register);
        }
        a.mov_to(Local::RecordsEnd.at(), reg::RECORD);
        a.set(ROW_STRIDE, ROWS_BYTES);
        a.set(COLUMN_STRIDE, self.column_bytes);
    }

    pub(super) fn leave(&self, a: &mut Asm) {
        for (register, local) in KEPT {
            a.mov_from(register, local.at());
        }
    }

    /// Stores the products of the first block of the tiles of so many columns.
    pub(super) fn begin(&self, a: &mut Asm, columns: usize) {
        let activations = Address::new(reg::TILE).index(reg::CHUNK, BLOCK_BYTES / 4);
        a.address(ACTIVATIONS, activations);
        a.retreat(ACTIVATIONS, before(columns) * self.column_bytes);
        a.address(RECORD, stack(self.records_at));
        a.mov_to(Local::ColumnsAhead.at(), reg::LEFT);
        self.load(a, columns);
        self.compute_next(a, columns);
        self.store_next(a);
    }

    /// Computes those of the block after the one that is stored.
    pub(super) fn compute_next(&self, a: &mut Asm, columns: usize) {
        for [products, activations, operands] in self.registers() {
            a.zero_tile(products);
            a.multiply_tiles(products, activations, operands);
        }
        self.load(a, columns);
    }

    /// Stores what [`Products::compute_next`] computed. Much work in between hides the time
    /// until it is there.
    pub(super) fn store_next(&self, a: &mut Asm) {
        for (part, [products, ..]) in (0..).zip(self.registers()) {
            a.store_tile(stack(self.at + part * PART_BYTES), ROW_STRIDE, products);
        }
    }

    /// The 16 rows of a column of a tile of so many.
    pub(super) fn of_column(&self, part: u32, columns: usize, column: usize) -> Address {
        let row = before(columns) + column as u32;
        stack(self.at + part * PART_BYTES + row * ROWS_BYTES)
    }

    /// AMX registers of each part's products, activations and operands.
    fn registers(&self) -> impl Iterator<Item = [Register; 3]> + use<> {
        (0..self.parts).map(|part| [0, 1, 2].map(|i| Register::TMM0 + 3 * part + i))
    }

    /// Loads a block's operands and goes on to the next block. The last tile's last is
    /// followed by its first, so that loads stay within the columns.
    fn load(&self, a: &mut Asm, columns: usize) {
        for (part, [_, activations, operands]) in (0..).zip(self.registers()) {
            let [of_columns, of_rows] = [BLOCK_BYTES, GROUPS * ROWS_BYTES].map(|n| n / self.parts);
            let activations_at = Address::new(ACTIVATIONS).plus(part * of_columns);
            a.load_tile(activations, activations_at, COLUMN_STRIDE);
            let operands_at = Address::new(RECORD).plus(part * of_rows);
            a.load_tile(operands, operands_at, ROW_STRIDE);
        }
        let (first, end) = (a.label(), a.label());
        a.advance(ACTIVATIONS, BLOCK_BYTES);
        a.advance(RECORD, self.record_bytes);
        a.compare_at(RECORD, Local::RecordsEnd.at());
        a.jump(When::NotEqual, end);
        let back = RECORD;
        a.mov(back, reg::CHUNK);
        a.retreat_by(back, reg::END);
        a.address(
            ACTIVATIONS,
            Address::new(ACTIVATIONS).index(back, BLOCK_BYTES / 4),
        );
        let left = RECORD;
        a.mov_from(left, Local::ColumnsAhead.at());
        a.retreat(left, columns as u32);
        a.compare_with(left, columns as u32);
        a.jump(When::Below, first);
        a.mov_to(Local::ColumnsAhead.at(), left);
        a.advance(ACTIVATIONS, columns as u32 * self.column_bytes);
        a.bind(first);
        a.address(RECORD, stack(self.records_at));
        a.bind(end);
    }
}

/// Columns before a tile's own.
fn before(columns: usize) -> u32 {
    (COLUMNS - columns) as u32
}
