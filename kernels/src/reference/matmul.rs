use super::elementwise::Q8Blocks;
use crate::block::{Block32, float_at};
use crate::format::{Descriptor, WeightFormat};
use crate::panel::{float_offset, get_block};

const LANES: usize = crate::PANEL_ROWS as usize;

/// 16 outputs of one panel for one int8 column.
///
/// Per row, 32-blocks in ascending order:
/// `acc = acc + float(s0*dot0 + s1*dot1) * (d_w * d_a)`, then, for formats
/// with a minimum, `acc = acc - m_w * (d_a * float(m0*sum0 + m1*sum1))`.
pub fn matmul_panel_q8(
    format: WeightFormat,
    k: u32,
    panel: &[u8],
    a: Q8Blocks<'_>,
) -> [f32; LANES] {
    let Descriptor::Quantized(q) = format.descriptor() else {
        panic!("{} takes f32 activations", format.name())
    };
    let per_header = q.block_len as usize / 32;
    core::array::from_fn(|lane| {
        let mut acc = 0.0f32;
        for header in 0..(k / q.block_len) as usize {
            let raw = get_block(format, k, panel, lane, header);
            for index in 0..per_header {
                let w = Block32::new(format, &raw, index);
                let b = header * per_header + index;
                let codes = &a.codes[32 * b..32 * b + 32];
                let dot = |half: usize| -> i32 {
                    let range = 16 * half..16 * half + 16;
                    let pairs = w.values[range.clone()].iter().zip(&codes[range]);
                    pairs.map(|(&w, &a)| w as i32 * a as i32).sum()
                };
                let isum = w.s[0] * dot(0) + w.s[1] * dot(1);
                acc += isum as f32 * (w.d * a.scales[b]);
                if let Some(m) = w.m {
                    let sums = [a.sums[2 * b], a.sums[2 * b + 1]].map(i32::from);
                    let sum = w.mi[0] * sums[0] + w.mi[1] * sums[1];
                    acc -= m * (a.scales[b] * sum as f32);
                }
            }
        }
        acc
    })
}

/// 16 outputs of one float panel for one f32 column: `acc = acc + w * a` in
/// ascending k.
pub fn matmul_panel_f32(format: WeightFormat, k: u32, panel: &[u8], a: &[f32]) -> [f32; LANES] {
    let Descriptor::Float { element_bytes } = format.descriptor() else {
        panic!("{} takes int8 activations", format.name())
    };
    let mut acc = [0.0f32; LANES];
    for (i, &a) in a[..k as usize].iter().enumerate() {
        for (lane, acc) in acc.iter_mut().enumerate() {
            let at = float_offset(element_bytes as usize, lane, i);
            *acc += float_at(format, &panel[at..], 0) * a;
        }
    }
    acc
}

/// The epilogue: `acc + bias`, then `residual +`.
pub fn epilogue(
    mut acc: [f32; LANES],
    bias: Option<&[f32; LANES]>,
    residual: Option<&[f32; LANES]>,
) -> [f32; LANES] {
    if let Some(bias) = bias {
        for (acc, b) in acc.iter_mut().zip(bias) {
            *acc += b;
        }
    }
    if let Some(residual) = residual {
        for (acc, r) in acc.iter_mut().zip(residual) {
            *acc += r;
        }
    }
    acc
}
