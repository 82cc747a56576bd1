//! Elements that are computed in runs and written as f32 or as int8 blocks.

use crate::elementwise;
use crate::lanes::Lanes;
use crate::reference::{self, NonFinite, Q8BlocksMut, SumOfSquares};
use crate::spec::GateFunction;

/// Elements between two quantizations: whole blocks that fit beside what they are
/// computed from in the nearest cache.
const RUN: usize = 256;

/// Where a run of elements goes.
#[derive(Debug)]
pub enum Output<'a> {
    F32(&'a mut [f32]),
    Q8(Q8BlocksMut<'a>),
}

/// A vector whose elements can be computed from any one on.
pub trait Elements {
    fn count(&self) -> usize;
    /// Writes the elements from `first` on, a multiple of 16.
    fn fill<V: Lanes>(&self, first: usize, part: &mut [f32]);
}

/// Writes all elements.
///
/// Errors: a NaN or infinity that is to be quantized.
#[inline(always)]
pub fn write<V: Lanes>(elements: impl Elements, output: Output<'_>) -> Result<(), NonFinite> {
    match output {
        Output::F32(out) => {
            assert_eq!(out.len(), elements.count());
            elements.fill::<V>(0, out);
            Ok(())
        }
        Output::Q8(mut out) => {
            assert_eq!(out.codes.len(), elements.count());
            let mut run = [0.0f32; RUN];
            let mut result = Ok(());
            let mut first = 0;
            while first < elements.count() {
                let run = &mut run[..RUN.min(elements.count() - first)];
                elements.fill::<V>(first, run);
                let blocks = out.part(first, run.len());
                result = result.and(elementwise::quantize::<V>(run, blocks));
                first += RUN;
            }
            result
        }
    }
}

impl Elements for &[f32] {
    fn count(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn fill<V: Lanes>(&self, first: usize, part: &mut [f32]) {
        part.copy_from_slice(&self[first..first + part.len()]);
    }
}

/// `function(gate) * up`.
#[derive(Clone, Copy, Debug)]
pub struct Gated<'a> {
    pub function: GateFunction,
    pub gate: &'a [f32],
    pub up: &'a [f32],
}

impl Elements for Gated<'_> {
    fn count(&self) -> usize {
        self.gate.len()
    }

    #[inline(always)]
    fn fill<V: Lanes>(&self, first: usize, part: &mut [f32]) {
        let end = first + part.len();
        let (gate, up) = (&self.gate[first..end], &self.up[first..end]);
        elementwise::gate::<V>(self.function, gate, up, part);
    }
}

/// `(x - mean) * r * weight`, then plus `bias`, then plus `residual`.
#[derive(Clone, Copy, Debug)]
pub struct Normalized<'a> {
    pub x: &'a [f32],
    /// Of a LayerNorm.
    pub mean: Option<f32>,
    pub r: f32,
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub residual: Option<&'a [f32]>,
}

impl Normalized<'_> {
    /// `1 / sqrt(mean square + eps)` of the elements.
    ///
    /// Errors: a sum of squares that is NaN or infinite.
    #[inline(always)]
    pub fn rms_reciprocal<V: Lanes>(&self, eps: f32) -> Result<f32, NonFinite> {
        let mut squares = SumOfSquares::default();
        let mut run = [0.0f32; RUN];
        let mut first = 0;
        while first < self.x.len() {
            let run = &mut run[..RUN.min(self.x.len() - first)];
            self.fill::<V>(first, run);
            elementwise::add_squares::<V>(&mut squares, run);
            first += RUN;
        }
        squares.reciprocal(self.x.len(), eps)
    }
}

impl Elements for Normalized<'_> {
    fn count(&self) -> usize {
        self.x.len()
    }

    #[inline(always)]
    fn fill<V: Lanes>(&self, first: usize, part: &mut [f32]) {
        let end = first + part.len();
        let (x, weight) = (&self.x[first..end], &self.weight[first..end]);
        match self.mean {
            None => elementwise::rms_scale::<V>(x, self.r, weight, part),
            Some(mean) => reference::layer_scale(x, mean, self.r, weight, part),
        }
        if let Some(bias) = self.bias {
            elementwise::add::<V>(&bias[first..end], part);
        }
        if let Some(residual) = self.residual {
            elementwise::add::<V>(&residual[first..end], part);
        }
    }
}

/// RMSNorm of normalized elements, which are computed again, which spares a buffer.
#[derive(Clone, Copy, Debug)]
pub struct NormalizedTwice<'a> {
    pub inner: Normalized<'a>,
    pub r: f32,
    pub weight: &'a [f32],
}

impl Elements for NormalizedTwice<'_> {
    fn count(&self) -> usize {
        self.inner.count()
    }

    #[inline(always)]
    fn fill<V: Lanes>(&self, first: usize, part: &mut [f32]) {
        self.inner.fill::<V>(first, part);
        let weight = &self.weight[first..first + part.len()];
        elementwise::rms_scale_in_place::<V>(part, self.r, weight);
    }
}
