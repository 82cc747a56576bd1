//! The loops over panels and columns, and the epilogue.

use super::emit::{Address, Emit};
use cranelift_codegen::ir::types::{F32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use omex_kernels::abi::MatmulArgs;
use omex_kernels::spec::Activation;
use omex_kernels::{WeightFormat, pad_to_panel};
use std::mem::offset_of;

/// Vectors of four rows in a panel.
pub(super) const QUADS: usize = 4;
/// Bytes of the 16 rows of one column of output.
pub(super) const OUT_BYTES: u32 = 64;

/// The shape of a matmul.
pub(super) struct Frame {
    pub(super) format: WeightFormat,
    pub(super) k: u32,
    /// Bytes between columns.
    pub(super) activation_stride: u32,
    out_stride: u32,
    bias: bool,
    residual: bool,
}

/// What one pass over a panel reads and writes: `columns` columns, whose
/// pointers are those of the first.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) weights: Value,
    pub(super) activations: Value,
    out: Value,
    bias: Value,
    residual: Value,
    pub(super) columns: usize,
}

impl Frame {
    pub(super) fn new(
        format: WeightFormat,
        rows: u32,
        k: u32,
        bias: bool,
        residual: bool,
    ) -> Frame {
        let activation = Activation::for_weights(format).stride_bytes(k);
        Frame {
            format,
            k,
            activation_stride: u32::try_from(activation).expect("validated extents"),
            out_stride: pad_to_panel(rows) * 4,
            bias,
            residual,
        }
    }

    /// For every panel: tiles of `tile` columns (a power of two), then what
    /// remains one by one. A panel stays in the cache for all columns.
    pub(super) fn build(&self, e: &mut Emit, tile: usize, mut pass: impl FnMut(&mut Emit, Pass)) {
        let mut argument = |at: usize| e.load(I64, Address::new(e.args).plus(at as u32));
        let weights = argument(offset_of!(MatmulArgs, weights));
        let activations = argument(offset_of!(MatmulArgs, activations));
        let out = argument(offset_of!(MatmulArgs, out));
        let panels = argument(offset_of!(MatmulArgs, panels));
        let columns = argument(offset_of!(MatmulArgs, columns));
        let bias = if self.bias {
            argument(offset_of!(MatmulArgs, bias))
        } else {
            out
        };
        let residual = if self.residual {
            argument(offset_of!(MatmulArgs, residual))
        } else {
            out
        };

        let tiles = e.b.ins().ushr_imm_u(columns, tile.ilog2() as i64);
        let singles = e.b.ins().band_imm_u(columns, tile as i64 - 1);
        let panel_bytes = self.format.panel_bytes(self.k);
        e.repeat_dynamic(panels, &[weights, out, bias, residual], |e, v| {
            let (weights, bias) = (v[0], v[2]);
            let mut rest = vec![activations, v[1], v[3]];
            for (count, columns) in [(tiles, tile), (singles, 1)] {
                rest = e.repeat_dynamic(count, &rest, |e, v| {
                    let (activations, out, residual) = (v[0], v[1], v[2]);
                    pass(
                        e,
                        Pass {
                            weights,
                            activations,
                            out,
                            bias,
                            residual,
                            columns,
                        },
                    );
                    let step = self.out_stride as u64 * columns as u64;
                    vec![
                        e.advance(activations, self.activation_stride as u64 * columns as u64),
                        e.advance(out, step),
                        e.advance(residual, step),
                    ]
                });
            }
            vec![
                e.advance(weights, panel_bytes),
                e.advance(v[1], OUT_BYTES as u64),
                e.advance(bias, OUT_BYTES as u64),
                e.advance(v[3], OUT_BYTES as u64),
            ]
        });
    }

    /// Writes the sums of rows `4 * quad ..` of one of the pass's columns.
    pub(super) fn write(&self, e: &mut Emit, pass: &Pass, column: usize, quad: usize, sum: Value) {
        let row = 16 * quad as u32;
        let at = self.out_stride * column as u32 + row;
        let mut result = sum;
        if self.bias {
            let bias = e.load(F32X4, Address::new(pass.bias).plus(row));
            result = e.b.ins().fadd(result, bias);
        }
        if self.residual {
            let residual = e.load(F32X4, Address::new(pass.residual).plus(at));
            result = e.b.ins().fadd(residual, result);
        }
        e.store(result, Address::new(pass.out).plus(at));
    }
}
