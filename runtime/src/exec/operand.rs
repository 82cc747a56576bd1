//! The operands of a plan's steps, found at load.
//!
//! A pass reads its weights once, and by that drives everything else out of the
//! caches: what the plan says of a step, its tensors and its slots comes from
//! memory again in every pass, each look-up waiting for the one before it. Here it
//! lies in the order of its use, found in one look-up that can be made early.

use std::ops::Range;

use omex_plan::{Arg, Phase, Plan, Step};

use super::ahead::{LINE_BYTES, prefetch};
use super::machine::Machine;
use super::pass::Pass;
use super::step::Bytes;

/// Phases that are looked up early: those of a barrier, mostly.
const PHASES: usize = 3;

/// Bytes of a vector of weights that are fetched early.
const VECTOR_BYTES_MAX: usize = 8 << 10;

#[derive(Debug, Default)]
pub(super) struct Operands {
    operands: Vec<Operand>,
    /// Per step: its first operand, and one more at the end.
    first: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Operand {
    /// None of a matrix, whose tiles say where it lies, and of constants.
    bytes: Bytes,
    is_weight: bool,
    /// What a step takes begins at the column that the pass selects.
    is_selected: bool,
}

/// Bytes of the operands of a plan's steps.
pub fn operands_bytes(plan: &Plan) -> u64 {
    let operands: usize = plan.steps.iter().map(|step| step.args.len()).sum();
    (operands * size_of::<Operand>() + (plan.steps.len() + 1) * size_of::<u32>()) as u64
}

/// The steps of consecutive phases.
fn steps(phases: &[Phase]) -> Range<usize> {
    match (phases.first(), phases.last()) {
        (Some(first), Some(last)) => {
            first.first_step as usize..(last.first_step + last.steps) as usize
        }
        _ => 0..0,
    }
}

/// Asks for the lines of `bytes` bytes at an address.
fn prefetch_lines(start: usize, bytes: usize) {
    for line in (0..bytes).step_by(LINE_BYTES) {
        prefetch(start + line);
    }
}

impl Operands {
    /// Those of the plan of a machine that is complete otherwise.
    pub(super) fn of(machine: &Machine) -> Operands {
        let plan = machine.plan();
        let count = plan.steps.iter().map(|step| step.args.len()).sum();
        let mut operands = Operands {
            operands: Vec::with_capacity(count),
            first: Vec::with_capacity(plan.steps.len() + 1),
        };
        for step in &plan.steps {
            operands.first.push(operands.operands.len() as u32);
            let of_step = step.args.iter().map(|&arg| Operand {
                bytes: machine.operand_bytes(arg),
                is_weight: matches!(arg, Arg::Tensor(_)),
                is_selected: matches!(arg, Arg::SelectedColumn(_)),
            });
            operands.operands.extend(of_step);
        }
        operands.first.push(operands.operands.len() as u32);
        operands
    }

    fn of_steps(&self, steps: Range<usize>) -> &[Operand] {
        &self.operands[self.first[steps.start] as usize..self.first[steps.end] as usize]
    }

    /// The call of `step`, which is the plan's step number `index`.
    pub(super) fn call<'a>(&'a self, step: &'a Step, index: usize) -> Call<'a> {
        let operands = self.of_steps(index..index + 1);
        Call { step, operands }
    }

    /// Fetches what the phases `next` will look up, and the vectors of weights of
    /// the `small` ones before them.
    pub(super) fn prefetch(&self, plan: &Plan, small: &[Phase], next: &[Phase]) {
        let next = steps(&next[..next.len().min(PHASES)]);
        let of_plan = &plan.steps[next.clone()];
        prefetch_lines(of_plan.as_ptr().addr(), size_of_val(of_plan));
        let operands = self.of_steps(next);
        prefetch_lines(operands.as_ptr().addr(), size_of_val(operands));
        let weights = self.of_steps(steps(small)).iter();
        for bytes in weights.filter(|o| o.is_weight).map(|o| o.bytes) {
            prefetch_lines(bytes.address_of_start(), bytes.len().min(VECTOR_BYTES_MAX));
        }
    }
}

/// A step and its operands.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) step: &'a Step,
    operands: &'a [Operand],
}

impl Call<'_> {
    /// The bytes of an operand. `column_bytes` is the stride of the selected column.
    pub(super) fn operand(self, index: usize, pass: Pass<'_>, column_bytes: u64) -> Bytes {
        let operand = self.operands[index];
        match operand.is_selected {
            true => operand
                .bytes
                .skip(pass.selected as usize * column_bytes as usize),
            false => operand.bytes,
        }
    }
}
