//! The packed layout: 16 rows of a matrix interleaved into one panel.
//!
//! A panel of a quantized format is a row of sections of [`SECTION_BLOCKS`]
//! 32-blocks, the last of which may have fewer. A section is a header region
//! followed by a code region. The header region has, per block, planes of 16
//! entries (one per row): d, then dmin, then the sub-scale planes; it ends padded
//! to 64 bytes. The code region has, per 32-block, the steps of the main plane, each
//! step of the high-bit plane before those that hold the rest of its elements. So a
//! kernel that unpacks a section's headers before its codes reads a panel in order,
//! which hardware follows best.
//!
//! All planes are made of 64-byte steps, byte `4 * row + j` of a step belonging
//! to the row's j-th element of a group of four consecutive k:
//!
//! - 8 bits: step g holds group g.
//! - 4 bits: step s holds group 2s in the low nibbles, 2s + 1 in the high ones.
//! - 2 bits: step s holds group 4s + f in bit pair f.
//! - 1 bit: the single step holds group g in bit g.
//!
//! Float panels are steps of 64 bytes as well: 16 rows x (1 f32 | 2 halves).

use crate::PANEL_ROWS;
use crate::block::{Block32, RawBlock, float_at};
use crate::format::{
    BlockScale, CodeBits, Descriptor, Plane, Quantized, SECTION_BLOCKS, SubScales, WeightFormat,
};

const LANES: usize = PANEL_ROWS as usize;

/// The planes of the 6-bit sub-scales of a block: `count` scales as nibble
/// vectors (low nibble: scale i, high nibble: scale i + count / 2), then 2-bit
/// vectors (pair f of vector v: the high bits of scale 4v + f).
fn six_bit_get(plane: &[u8], count: usize, lane: usize, i: usize) -> u8 {
    let half = count / 2;
    let low = plane[LANES * (i % half) + lane] >> (4 * (i / half)) & 15;
    let high = plane[LANES * (half + i / 4) + lane] >> (2 * (i % 4)) & 3;
    low | high << 4
}

fn six_bit_put(plane: &mut [u8], count: usize, lane: usize, i: usize, value: u8) {
    let half = count / 2;
    plane[LANES * (i % half) + lane] |= (value & 15) << (4 * (i / half));
    plane[LANES * (half + i / 4) + lane] |= (value >> 4 & 3) << (2 * (i % 4));
}

/// Position of element `k` (0..32) of `lane` in a plane: byte among the codes of the
/// 32-block, and shift.
fn plane_position(codes: CodeBits, plane: Plane, lane: usize, k: usize) -> (usize, u32) {
    let bit = (k / 4) as u32 * codes.of(plane);
    let step = codes.step_at(plane, bit / 8) as usize;
    (step + 4 * lane + k % 4, bit % 8)
}

struct Regions {
    header: usize,
    codes: usize,
}

fn regions(q: &Quantized, k: u32, block: usize) -> Regions {
    let per_header = q.block_len / 32;
    let first = block as u32 * per_header;
    let (section, in_section) = (first / SECTION_BLOCKS, first % SECTION_BLOCKS);
    let start = section as usize * q.section_bytes(SECTION_BLOCKS) as usize;
    let blocks = (k / 32 - section * SECTION_BLOCKS).min(SECTION_BLOCKS);
    let header = in_section / per_header * q.header_bytes();
    let codes = q.section_header_bytes(blocks) + in_section * q.quant_bytes();
    Regions {
        header: start + header as usize,
        codes: start + codes as usize,
    }
}

/// Writes `raw` as block `block` of row `lane` into a zeroed panel of `k` columns.
pub fn put_block(
    format: WeightFormat,
    k: u32,
    panel: &mut [u8],
    lane: usize,
    block: usize,
    raw: &RawBlock,
) {
    let Descriptor::Quantized(q) = format.descriptor() else {
        panic!("{} has no blocks", format.name())
    };
    let at = regions(&q, k, block);
    let header = &mut panel[at.header..at.header + q.header_bytes() as usize];
    let mut sub = match q.scale {
        BlockScale::D => {
            header[2 * lane..2 * lane + 2].copy_from_slice(&raw.d.to_le_bytes());
            2 * LANES
        }
        BlockScale::DAndMin => {
            header[2 * lane..2 * lane + 2].copy_from_slice(&raw.d.to_le_bytes());
            let m = 2 * LANES + 2 * lane;
            header[m..m + 2].copy_from_slice(&raw.dmin.to_le_bytes());
            4 * LANES
        }
        BlockScale::E8M0 => {
            header[lane] = raw.d as u8;
            LANES
        }
    };
    match q.sub_scales {
        SubScales::None => {}
        SubScales::SixBit { scales, mins } => {
            let count = scales as usize;
            for i in 0..count {
                six_bit_put(&mut header[sub..], count, lane, i, raw.scales[i]);
            }
            sub += count * 6 / 8 * LANES;
            for i in 0..if mins { count } else { 0 } {
                six_bit_put(&mut header[sub..], count, lane, i, raw.mins[i]);
            }
        }
        SubScales::NibblePairs => {
            for i in 0..16 {
                header[sub + LANES * i + lane] = raw.scales[i] | raw.mins[i] << 4;
            }
        }
        SubScales::Int8 => {
            for i in 0..16 {
                header[sub + LANES * i + lane] = raw.scales[i];
            }
        }
    }
    for b in 0..q.block_len as usize / 32 {
        let base = at.codes + b * q.quant_bytes() as usize;
        for k in 0..32 {
            let code = raw.codes[32 * b + k];
            let (byte, shift) = plane_position(q.codes, Plane::Main, lane, k);
            let mask = (0xff >> (8 - q.codes.low)) as u8;
            panel[base + byte] |= (code & mask) << shift;
            if q.codes.high > 0 {
                let (byte, shift) = plane_position(q.codes, Plane::High, lane, k);
                panel[base + byte] |= code >> q.codes.low << shift;
            }
        }
    }
}

/// Reads block `block` of row `lane` back out of a panel of `k` columns.
pub fn get_block(
    format: WeightFormat,
    k: u32,
    panel: &[u8],
    lane: usize,
    block: usize,
) -> RawBlock {
    let Descriptor::Quantized(q) = format.descriptor() else {
        panic!("{} has no blocks", format.name())
    };
    let at = regions(&q, k, block);
    let header = &panel[at.header..at.header + q.header_bytes() as usize];
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let mut raw = RawBlock::ZERO;
    let mut sub = match q.scale {
        BlockScale::D => {
            raw.d = half(2 * lane);
            2 * LANES
        }
        BlockScale::DAndMin => {
            raw.d = half(2 * lane);
            raw.dmin = half(2 * LANES + 2 * lane);
            4 * LANES
        }
        BlockScale::E8M0 => {
            raw.d = header[lane] as u16;
            LANES
        }
    };
    match q.sub_scales {
        SubScales::None => {}
        SubScales::SixBit { scales, mins } => {
            let count = scales as usize;
            for i in 0..count {
                raw.scales[i] = six_bit_get(&header[sub..], count, lane, i);
            }
            sub += count * 6 / 8 * LANES;
            for i in 0..if mins { count } else { 0 } {
                raw.mins[i] = six_bit_get(&header[sub..], count, lane, i);
            }
        }
        SubScales::NibblePairs => {
            for i in 0..16 {
                raw.scales[i] = header[sub + LANES * i + lane] & 15;
                raw.mins[i] = header[sub + LANES * i + lane] >> 4;
            }
        }
        SubScales::Int8 => {
            for i in 0..16 {
                raw.scales[i] = header[sub + LANES * i + lane];
            }
        }
    }
    for b in 0..q.block_len as usize / 32 {
        let base = at.codes + b * q.quant_bytes() as usize;
        for k in 0..32 {
            let (byte, shift) = plane_position(q.codes, Plane::Main, lane, k);
            let mask = (0xff >> (8 - q.codes.low)) as u8;
            let mut code = panel[base + byte] >> shift & mask;
            if q.codes.high > 0 {
                let (byte, shift) = plane_position(q.codes, Plane::High, lane, k);
                let mask = (1 << q.codes.high) - 1;
                code |= (panel[base + byte] >> shift & mask) << q.codes.low;
            }
            raw.codes[32 * b + k] = code;
        }
    }
    raw
}

/// Byte offset of element `k` of row `lane` in a float panel.
pub const fn float_offset(element_bytes: usize, lane: usize, k: usize) -> usize {
    let per_step = 4 / element_bytes;
    64 * (k / per_step) + 4 * lane + element_bytes * (k % per_step)
}

/// A value that a packed model must not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// Row within the panel and byte offset within the row's file bytes.
    pub lane: u32,
    pub byte: u64,
}

/// Packs up to 16 rows of file bytes (`rows` holds whole rows, one after the
/// other) into `panel`, which is overwritten; missing rows are zero.
///
/// Errors: the first NaN or infinite scale or element.
pub fn pack_panel(
    format: WeightFormat,
    k: u32,
    rows: &[u8],
    panel: &mut [u8],
) -> Result<(), NotFinite> {
    assert_eq!(panel.len() as u64, format.panel_bytes(k), "panel size");
    panel.fill(0);
    for (lane, row) in rows.chunks_exact(format.row_bytes(k) as usize).enumerate() {
        match format.descriptor() {
            Descriptor::Float { element_bytes } => {
                let size = element_bytes as usize;
                for (i, element) in row.chunks_exact(size).enumerate() {
                    if !float_at(format, row, i).is_finite() {
                        let byte = (i * size) as u64;
                        return Err(NotFinite {
                            lane: lane as u32,
                            byte,
                        });
                    }
                    let at = float_offset(size, lane, i);
                    panel[at..at + size].copy_from_slice(element);
                }
            }
            Descriptor::Quantized(q) => {
                for (i, bytes) in row.chunks_exact(q.file_block_bytes as usize).enumerate() {
                    let raw = RawBlock::from_file(format, bytes);
                    if raw.scale_is_not_finite(&q) {
                        let byte = i as u64 * q.file_block_bytes as u64;
                        return Err(NotFinite {
                            lane: lane as u32,
                            byte,
                        });
                    }
                    put_block(format, k, panel, lane, i, &raw);
                }
            }
        }
    }
    Ok(())
}

/// Dequantizes row `lane` of a panel into `out` (`k` elements).
pub fn dequantize_lane(format: WeightFormat, panel: &[u8], lane: usize, out: &mut [f32]) {
    let k = out.len() as u32;
    match format.descriptor() {
        Descriptor::Float { element_bytes } => {
            let size = element_bytes as usize;
            for (i, o) in out.iter_mut().enumerate() {
                *o = float_at(format, &panel[float_offset(size, lane, i)..], 0);
            }
        }
        Descriptor::Quantized(q) => {
            for (b, out) in out.chunks_exact_mut(q.block_len as usize).enumerate() {
                let raw = get_block(format, k, panel, lane, b);
                for (index, out) in out.chunks_exact_mut(32).enumerate() {
                    let block = Block32::new(format, &raw, index);
                    for (i, o) in out.iter_mut().enumerate() {
                        *o = block.dequantize(i);
                    }
                }
            }
        }
    }
}
