//! Exact int8 dot products: four rows, four k each, into four i32 lanes.

use super::codes::{Codes, Domain};
use super::emit::Emit;
use crate::{Arch, Feature, Isa};
use cranelift_codegen::ir::types::{I8X16, I16X8, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use omex_kernels::WeightFormat;
use omex_kernels::format::Quantized;

/// How an instruction set multiplies operands of weights with activations in
/// [-127, 127].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dot {
    /// x86 VNNI `vpdpbusd`: u8 weights.
    Vnni,
    /// SSSE3 `pmaddubsw`: u8 weights up to 127, so that no pair sum saturates;
    /// as many sums are added in i16 as fit, then `pmaddwd` widens.
    Maddubs,
    /// `pmaddwd` on widened operands: any i8 weights.
    Madd16,
    /// aarch64 `sdot`: i8 weights.
    Sdot,
    /// NEON `smull`: products added in i16 as long as they fit.
    Neon16,
}

/// An operand and its widened halves, which cranelift folds or computes once.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    whole: Value,
    low: Value,
    high: Value,
}

/// A dot product of four rows under construction.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    /// i32x4; `None` is zero.
    total: Option<Value>,
    /// Partial sums that are not in `total` yet.
    partial: [Option<Value>; 2],
    /// Steps in `partial`.
    pending: i32,
}

impl Sum {
    pub(super) fn new(initial: Option<Value>) -> Sum {
        Sum {
            total: initial,
            partial: [None; 2],
            pending: 0,
        }
    }
}

impl Dot {
    /// The fastest exact way, and the operands that it needs.
    pub(super) fn select(format: WeightFormat, q: &Quantized, isa: &Isa) -> (Dot, Codes) {
        let unsigned = Codes::new(format, q, Domain::U8);
        let signed = Codes::new(format, q, Domain::I8);
        let vnni = isa.has(Feature::Avx) && isa.has(Feature::AvxVnni)
            || isa.has(Feature::Avx512Vl) && isa.has(Feature::Avx512Vnni);
        match isa.arch {
            Arch::X86_64 if vnni => (Dot::Vnni, unsigned),
            Arch::X86_64 if unsigned.magnitude_max <= 127 => (Dot::Maddubs, unsigned),
            Arch::X86_64 => (Dot::Madd16, signed),
            Arch::Aarch64 if isa.has(Feature::Dotprod) => (Dot::Sdot, signed),
            Arch::Aarch64 => (Dot::Neon16, signed),
        }
    }

    /// Registers that one sum over `groups` groups occupies.
    pub(super) fn sum_registers(self, codes: &Codes, groups: u32) -> usize {
        match self {
            Dot::Vnni | Dot::Sdot => 1,
            Dot::Maddubs => 1 + (groups as i32 * self.step_max(codes) > i16::MAX as i32) as usize,
            Dot::Madd16 => 2,
            Dot::Neon16 => 2 + (groups as i32 * self.step_max(codes) > i16::MAX as i32) as usize,
        }
    }

    /// Registers that the operands of one group of four rows occupy.
    pub(super) fn weight_registers(self) -> usize {
        match self {
            Dot::Vnni | Dot::Maddubs | Dot::Sdot | Dot::Neon16 => 1,
            Dot::Madd16 => 2,
        }
    }

    /// Largest magnitude of an i16 partial sum of one step.
    fn step_max(self, codes: &Codes) -> i32 {
        match self {
            Dot::Maddubs => 2 * 127 * codes.magnitude_max,
            Dot::Neon16 => 127 * codes.magnitude_max,
            Dot::Vnni | Dot::Madd16 | Dot::Sdot => 0,
        }
    }

    pub(super) fn weights(self, e: &mut Emit, whole: Value) -> Operand {
        let (low, high) = match self {
            Dot::Vnni | Dot::Maddubs => (e.b.ins().uwiden_low(whole), e.b.ins().uwiden_high(whole)),
            Dot::Madd16 | Dot::Sdot | Dot::Neon16 => {
                (e.b.ins().swiden_low(whole), e.b.ins().swiden_high(whole))
            }
        };
        Operand { whole, low, high }
    }

    /// `splat` holds four activations in every lane.
    pub(super) fn activations(self, e: &mut Emit, splat: Value) -> Operand {
        let whole = e.cast(I8X16, splat);
        let low = e.b.ins().swiden_low(whole);
        let high = match self {
            // Both halves are equal, and widening the low one is cheaper.
            Dot::Madd16 => low,
            Dot::Vnni | Dot::Maddubs | Dot::Sdot | Dot::Neon16 => e.b.ins().swiden_high(whole),
        };
        Operand { whole, low, high }
    }

    /// `sum + w . a`.
    pub(super) fn step(
        self,
        e: &mut Emit,
        codes: &Codes,
        mut sum: Sum,
        w: Operand,
        a: Operand,
    ) -> Sum {
        match self {
            Dot::Vnni | Dot::Sdot => {
                let total = match sum.total {
                    Some(total) => total,
                    None => e.vector(I32X4, [0; 16]),
                };
                sum.total = Some(dot_tree(e, total, w, a));
            }
            Dot::Maddubs => {
                let pairs = e.b.ins().x86_pmaddubsw(a.whole, w.whole);
                sum = self.flush_if(e, sum, self.step_max(codes));
                sum.partial[0] = Some(add(e, sum.partial[0], pairs));
            }
            Dot::Madd16 => {
                for (i, (w, a)) in [(w.low, a.low), (w.high, a.high)].into_iter().enumerate() {
                    let products = madd_words(e, w, a);
                    sum.partial[i] = Some(add(e, sum.partial[i], products));
                }
            }
            Dot::Neon16 => {
                sum = self.flush_if(e, sum, self.step_max(codes));
                for (i, (w, a)) in [(w.low, a.low), (w.high, a.high)].into_iter().enumerate() {
                    let products = e.b.ins().imul(w, a);
                    sum.partial[i] = Some(add(e, sum.partial[i], products));
                }
            }
        }
        sum
    }

    /// The finished i32x4.
    pub(super) fn finish(self, e: &mut Emit, sum: Sum) -> Value {
        let sum = self.flush(e, sum);
        match sum.total {
            Some(total) => total,
            None => e.vector(I32X4, [0; 16]),
        }
    }

    /// Makes room for one more step of magnitude `step_max` in the i16 partials.
    fn flush_if(self, e: &mut Emit, sum: Sum, step_max: i32) -> Sum {
        let mut sum = if (sum.pending + 1) * step_max > i16::MAX as i32 {
            self.flush(e, sum)
        } else {
            sum
        };
        sum.pending += 1;
        sum
    }

    fn flush(self, e: &mut Emit, sum: Sum) -> Sum {
        let rows = match (self, sum.partial) {
            (_, [None, _]) => return sum,
            (Dot::Maddubs, [Some(pairs), _]) => {
                let (low, high) = (e.b.ins().swiden_low(pairs), e.b.ins().swiden_high(pairs));
                e.b.ins().iadd_pairwise(low, high)
            }
            (Dot::Madd16, [Some(low), Some(high)]) => e.b.ins().iadd_pairwise(low, high),
            (Dot::Neon16, [Some(low), Some(high)]) => {
                let mut pairs = |v: Value| {
                    let (low, high) = (e.b.ins().swiden_low(v), e.b.ins().swiden_high(v));
                    e.b.ins().iadd_pairwise(low, high)
                };
                let (low, high) = (pairs(low), pairs(high));
                e.b.ins().iadd_pairwise(low, high)
            }
            (Dot::Vnni | Dot::Sdot | Dot::Madd16 | Dot::Neon16, [Some(_), _]) => {
                panic!("{self:?} has no such partial sums")
            }
        };
        Sum::new(Some(add(e, sum.total, rows)))
    }
}

fn add(e: &mut Emit, sum: Option<Value>, term: Value) -> Value {
    match sum {
        Some(sum) => e.b.ins().iadd(sum, term),
        None => term,
    }
}

/// The tree that cranelift folds into one `vpdpbusd` or `sdot`.
fn dot_tree(e: &mut Emit, total: Value, w: Operand, a: Operand) -> Value {
    let mut pairs = |w: Value, a: Value| {
        let products = e.b.ins().imul(a, w);
        let low = e.b.ins().swiden_low(products);
        let high = e.b.ins().swiden_high(products);
        e.b.ins().iadd_pairwise(low, high)
    };
    let (low, high) = (pairs(w.low, a.low), pairs(w.high, a.high));
    let rows = e.b.ins().iadd_pairwise(low, high);
    e.b.ins().iadd(rows, total)
}

/// The tree that cranelift folds into one `pmaddwd`.
fn madd_words(e: &mut Emit, x: Value, y: Value) -> Value {
    assert_eq!(e.b.func.dfg.value_type(x), I16X8);
    let (xl, yl) = (e.b.ins().swiden_low(x), e.b.ins().swiden_low(y));
    let (xh, yh) = (e.b.ins().swiden_high(x), e.b.ins().swiden_high(y));
    let (low, high) = (e.b.ins().imul(xl, yl), e.b.ins().imul(xh, yh));
    e.b.ins().iadd_pairwise(low, high)
}
