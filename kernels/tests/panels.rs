//! Packing keeps every bit of every format, and padding stays silent.

use omex_kernels::WeightFormat;
use omex_kernels::activation::Q8Layout;
use omex_kernels::block::{RawBlock, dequantize_row};
use omex_kernels::format::Descriptor;
use omex_kernels::panel::{dequantize_lane, get_block, pack_panel};
use omex_kernels::reference::{Q8Blocks, Q8BlocksMut, matmul_panel_f32, matmul_panel_q8, quantize};
use proptest::prelude::*;

/// A row-major row of random codes whose scales are finite.
fn random_row(format: WeightFormat, k: u32, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes: Vec<u8> = (0..format.row_bytes(k))
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    match format.descriptor() {
        Descriptor::Float { element_bytes } => {
            for element in bytes.chunks_exact_mut(element_bytes as usize) {
                let top = element.len() - 1;
                element[top] &= 0xbb;
            }
        }
        Descriptor::Quantized(q) => {
            for block in bytes.chunks_exact_mut(q.file_block_bytes as usize) {
                while RawBlock::from_file(format, block).scale_is_not_finite(&q) {
                    for byte in block.iter_mut() {
                        *byte = byte.wrapping_mul(5).wrapping_add(17) & 0xbf;
                    }
                }
            }
        }
    }
    bytes
}

fn shape() -> impl Strategy<Value = (WeightFormat, u32, usize, u64)> {
    (
        0..WeightFormat::ALL.len(),
        1u32..=32,
        1usize..=16,
        any::<u64>(),
    )
        .prop_map(|(f, blocks, rows, seed)| {
            let format = WeightFormat::ALL[f];
            let unit = format.k_multiple().max(32);
            let k = unit * blocks.min(5 * 256 / unit);
            (format, k, rows, seed)
        })
}

proptest! {
    #[test]
    fn a_panel_gives_back_every_row((format, k, rows, seed) in shape()) {
        let file: Vec<Vec<u8>> = (0..rows).map(|r| random_row(format, k, seed ^ r as u64)).collect();
        let mut panel = vec![0xaa; format.panel_bytes(k) as usize];
        pack_panel(format, k, &file.concat(), &mut panel).unwrap();
        for (lane, row) in file.iter().enumerate() {
            let (mut want, mut got) = (vec![0f32; k as usize], vec![1f32; k as usize]);
            dequantize_row(format, row, &mut want);
            dequantize_lane(format, &panel, lane, &mut got);
            prop_assert!(want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()));
            if let Descriptor::Quantized(q) = format.descriptor() {
                for (b, bytes) in row.chunks_exact(q.file_block_bytes as usize).enumerate() {
                    prop_assert_eq!(get_block(format, k, &panel, lane, b), RawBlock::from_file(format, bytes));
                }
            }
        }
        for lane in rows..16 {
            let mut padding = vec![1f32; k as usize];
            dequantize_lane(format, &panel, lane, &mut padding);
            prop_assert!(padding.iter().all(|&x| x == 0.0));
        }
    }

    /// The int8 contract computes what the dequantized values say, up to the
    /// rounding of its activations: against f64 on the same int8 activations.
    #[test]
    fn matmul_agrees_with_dequantized_weights((format, k, rows, seed) in shape()) {
        let file: Vec<u8> = (0..rows).flat_map(|r| random_row(format, k, seed ^ r as u64)).collect();
        let mut panel = vec![0; format.panel_bytes(k) as usize];
        pack_panel(format, k, &file, &mut panel).unwrap();
        let x: Vec<f32> = (0..k).map(|i| (((i as u64 * 2654435761) ^ seed) % 2001) as f32 / 1000.0 - 1.0).collect();
        let blocks = k as usize / 32;
        let mut codes = vec![0i8; k as usize];
        let (mut scales, mut scaled_sums) = (vec![0f32; blocks], vec![0f32; blocks]);
        let mut sums = vec![0i16; 2 * blocks];
        let out = Q8BlocksMut { codes: &mut codes, scales: &mut scales, scaled_sums: &mut scaled_sums, sums: &mut sums };
        quantize(&x, out).unwrap();
        let (got, a): ([f32; 16], Vec<f64>) = if format.takes_q8() {
            let blocks = Q8Blocks { codes: &codes, scales: &scales, scaled_sums: &scaled_sums, sums: &sums };
            let a = codes.iter().enumerate().map(|(i, &c)| c as f64 * scales[i / 32] as f64).collect();
            (matmul_panel_q8(format, k, &panel, blocks), a)
        } else {
            (matmul_panel_f32(format, k, &panel, &x), x.iter().map(|&v| v as f64).collect())
        };
        for (lane, got) in got.iter().enumerate().take(rows) {
            let mut w = vec![0f32; k as usize];
            dequantize_lane(format, &panel, lane, &mut w);
            let terms = w.iter().zip(&a).map(|(&w, &a)| w as f64 * a);
            let (want, magnitude) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
            if magnitude < 1e37 {
                // Minimum and dot terms cancel, so the bound is on their sizes.
                let bound = 1e-4 * magnitude.abs() + 1e-3 * want.abs() + 1e-30;
                prop_assert!((*got as f64 - want).abs() <= bound, "{} lane {lane}: {got} {want} {magnitude}", format.name());
            }
        }
    }
}

#[test]
fn columns_are_aligned_records() {
    for k in (32..4096).step_by(32) {
        let l = Q8Layout::new(k);
        assert!(l.scales_offset >= k && l.scaled_sums_offset >= l.scales_offset + k / 8);
        assert!(l.sums_offset >= l.scaled_sums_offset + k / 8 && l.stride >= l.sums_offset + k / 8);
        assert!(
            [
                l.scales_offset,
                l.scaled_sums_offset,
                l.sums_offset,
                l.stride
            ]
            .iter()
            .all(|o| o % 64 == 0)
        );
    }
}
