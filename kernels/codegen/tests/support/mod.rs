//! Executable blobs and random weights for the tests of generated code.
#![allow(dead_code, reason = "every test binary uses a part")]

pub(crate) mod emulate;
pub(crate) mod exec;

use omex_kernels::WeightFormat;
use omex_kernels::activation::Q8Layout;
use omex_kernels::format::{BlockScale, Descriptor};
use omex_kernels::panel::pack_panel;

/// xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    pub(crate) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

/// What random numbers look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Magnitudes of a model.
    Usual,
    /// Codes and activations at their extremes; zero, negative, denormal and
    /// huge scales.
    Extreme,
    /// Every byte of codes and sub-scales is `byte`, scales are the largest or the
    /// smallest, and activations are 127 or -127, of one sign in most blocks.
    Largest { byte: u8 },
}

fn random_f16(r: &mut Random, data: Data) -> u16 {
    match data {
        // 2^-9 .. 2^-5, both signs.
        Data::Usual => (r.below(2) << 15 | (6 + r.below(4)) << 10 | r.below(1024)) as u16,
        Data::Extreme => r.pick(&[
            0, 0x8000, 1, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x3c00, 0x2e66,
        ]),
        Data::Largest { .. } => r.pick(&[0x7bff, 0xfbff, 0x7bff, 0x8001]),
    }
}

/// File bytes of `rows` rows with finite scales.
pub(crate) fn random_rows(
    r: &mut Random,
    format: WeightFormat,
    rows: u32,
    k: u32,
    data: Data,
) -> Vec<u8> {
    let mut bytes = vec![0u8; (rows as u64 * format.row_bytes(k)) as usize];
    match format.descriptor() {
        Descriptor::Float { element_bytes: 4 } => {
            for out in bytes.chunks_exact_mut(4) {
                let x = match data {
                    Data::Usual => (r.below(2001) as f32 - 1000.0) / 777.0,
                    Data::Extreme => {
                        r.pick(&[0.0, -0.0, 1e-40, -1e-45, 1e18, -1e18, 1.0, 3e-20, -7.5])
                    }
                    Data::Largest { .. } => r.pick(&[1e35, -1e35, 1e35, -1e-40]),
                };
                out.copy_from_slice(&x.to_le_bytes());
            }
        }
        Descriptor::Float { .. } => {
            for out in bytes.chunks_exact_mut(2) {
                let mut bits = random_f16(r, data);
                if format == WeightFormat::BF16 {
                    bits = match data {
                        Data::Usual => {
                            (r.below(2) << 15 | (115 + r.below(12)) << 7 | r.below(128)) as u16
                        }
                        Data::Extreme => r.pick(&[0, 0x8000, 1, 0x807f, 0x5e00, 0xdeff, 0x3f80]),
                        Data::Largest { .. } => r.pick(&[0x7a00, 0xfa00, 0x7a00, 0x8001]),
                    };
                }
                out.copy_from_slice(&bits.to_le_bytes());
            }
        }
        Descriptor::Quantized(q) => {
            for block in bytes.chunks_exact_mut(q.file_block_bytes as usize) {
                for b in block.iter_mut() {
                    *b = match data {
                        Data::Usual => r.next() as u8,
                        Data::Extreme => r.pick(&[0, 0xff, 0x80, 0x7f, 0x0f, 0xf0]),
                        Data::Largest { byte } => byte,
                    };
                }
                let mut put = |at: usize| {
                    block[at..at + 2].copy_from_slice(&random_f16(r, data).to_le_bytes())
                };
                // Where ggml stores d and dmin.
                match (format, q.scale) {
                    (WeightFormat::Q2K, _) => [80, 82].map(&mut put).len(),
                    (WeightFormat::Q3K, _) => [108].map(&mut put).len(),
                    (WeightFormat::Q6K, _) => [208].map(&mut put).len(),
                    (_, BlockScale::D) => [0].map(&mut put).len(),
                    (_, BlockScale::DAndMin) => [0, 2].map(&mut put).len(),
                    (_, BlockScale::E8M0) => {
                        block[0] = match data {
                            Data::Usual => 118 + r.below(6) as u8,
                            Data::Extreme => r.pick(&[0, 1, 2, 127, 150]),
                            Data::Largest { .. } => r.pick(&[227, 0, 227]),
                        };
                        1
                    }
                };
            }
        }
    }
    bytes
}

/// Panels of `rows` rows of file bytes.
pub(crate) fn pack(format: WeightFormat, rows: u32, k: u32, bytes: &[u8]) -> Vec<u8> {
    let row = format.row_bytes(k) as usize;
    let panel = format.panel_bytes(k) as usize;
    let mut packed = vec![0u8; rows.div_ceil(16) as usize * panel];
    for (rows, panel) in bytes.chunks(16 * row).zip(packed.chunks_exact_mut(panel)) {
        pack_panel(format, k, rows, panel).expect("finite scales");
    }
    packed
}

/// Int8 activation records of `columns` columns.
pub(crate) fn random_q8(r: &mut Random, k: u32, columns: u32, data: Data) -> Vec<u8> {
    let layout = Q8Layout::new(k);
    let mut bytes = vec![0u8; (layout.stride * columns) as usize];
    for record in bytes.chunks_exact_mut(layout.stride as usize) {
        for b in 0..k / 32 {
            let mut put = |at: u32, v: &[u8]| record[at as usize..][..v.len()].copy_from_slice(v);
            let fixed = r.pick(&[127i8, -127]);
            let mode = r.below(3);
            let codes: [i8; 32] = std::array::from_fn(|_| match (data, mode) {
                (Data::Usual, _) => (r.below(255) as i32 - 127) as i8,
                (Data::Extreme, 0) => fixed,
                (Data::Extreme, _) => r.pick(&[127, -127, 0, 1]),
                (Data::Largest { .. }, 0 | 1) => fixed,
                (Data::Largest { .. }, _) => r.pick(&[127, -127]),
            });
            let scale = match data {
                Data::Usual => (1 + r.below(1000)) as f32 / 12345.0,
                Data::Extreme => r.pick(&[0.0, 1e-42, 1.0, 1e20, 3e-39, 0.007]),
                Data::Largest { .. } => 1.0,
            };
            let halves = [0, 16].map(|h| codes[h..h + 16].iter().map(|&c| c as i32).sum::<i32>());
            put(layout.scales_offset + 4 * b, &scale.to_le_bytes());
            let scaled = scale * (halves[0] + halves[1]) as f32;
            put(layout.scaled_sums_offset + 4 * b, &scaled.to_le_bytes());
            for (half, sum) in (0..).zip(halves) {
                let at = layout.sums_offset + 4 * b + 2 * half;
                put(at, &(sum as i16).to_le_bytes());
            }
            for (i, code) in codes.iter().enumerate() {
                record[(32 * b) as usize + i] = *code as u8;
            }
        }
    }
    bytes
}
