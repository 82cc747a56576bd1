//! Orders the kernels into phases: steps of a phase depend on none of each
//! other, and a barrier follows every phase.
//!
//! Requires: stage `Selected`.
//! Ensures: every kernel stands in exactly one phase, behind those of its
//! operands, as early as possible: the number of barriers is the length of the
//! longest path, which is the least possible. The body, which runs for all
//! columns, comes before the head, which runs for the selected one.
//! Breaks: nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use crate::ir::op::OpClass;
use crate::ir::text::spec_text;
use crate::ir::verify::head_nodes;
use crate::ir::{Graph, Op, ValueId};

/// Index of a phase in execution order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhaseId(pub u32);

/// The execution order of a graph's kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Steps in execution order.
    pub steps: Vec<ValueId>,
    /// The steps of each phase.
    pub phases: Vec<Range<usize>>,
    /// The first so many phases are the body.
    pub body_phases: u32,
    phase_of: BTreeMap<ValueId, PhaseId>,
}

impl Schedule {
    /// The phase of a kernel, or `None` for sources and views.
    pub fn phase(&self, id: ValueId) -> Option<PhaseId> {
        self.phase_of.get(&id).copied()
    }

    /// One block per phase, one line per step.
    pub fn text(&self, graph: &Graph) -> String {
        let mut out = String::new();
        for (i, phase) in self.phases.iter().enumerate() {
            let in_body = (i as u32) < self.body_phases;
            let part = if in_body { "body" } else { "head" };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "phase {i} ({part})");
            for &step in &self.steps[phase.clone()] {
                let node = graph.node(step);
                let Op::Kernel(spec) = &node.op else {
                    unreachable!("steps are kernels");
                };
                let _ = writeln!(out, "  {:<24} {}", node.site.to_string(), spec_text(spec));
            }
        }
        out
    }
}

pub fn schedule(graph: &Graph) -> Schedule {
    let order = graph.order();
    let head = head_nodes(graph, &order);
    let is_kernel = |id: ValueId| graph.node(id).op.class() == OpClass::Kernel;

    // The first phase in which a value can be used; sources: 0.
    let mut ready: BTreeMap<ValueId, u32> = BTreeMap::new();
    let mut phase_of = BTreeMap::new();
    let mut body_phases = 0;
    for in_head in [false, true] {
        for &id in order.iter().filter(|&id| head.contains(id) == in_head) {
            let start = if in_head { body_phases } else { 0 };
            let operands = graph.operands(id);
            let ready_operands = operands.iter().map(|v| ready[v]);
            let phase = ready_operands.fold(start, Ord::max);
            let kernel = is_kernel(id);
            ready.insert(id, phase + u32::from(kernel));
            if kernel {
                phase_of.insert(id, PhaseId(phase));
            }
        }
        if !in_head {
            body_phases = ready.values().copied().max().unwrap_or(0);
        }
    }

    let mut steps: Vec<(PhaseId, usize)> = order
        .iter()
        .enumerate()
        .filter_map(|(position, id)| Some((*phase_of.get(id)?, position)))
        .collect();
    steps.sort_unstable();
    let mut phases: Vec<Range<usize>> = Vec::new();
    for (i, (phase, _)) in steps.iter().enumerate() {
        if phase.0 as usize == phases.len() {
            phases.push(i..i);
        }
        phases[phase.0 as usize].end = i + 1;
    }
    let schedule = Schedule {
        steps: steps.into_iter().map(|(_, p)| order[p]).collect(),
        phases,
        body_phases,
        phase_of,
    };
    verify(graph, &schedule).unwrap_or_else(|e| panic!("the schedule is wrong: {e}"));
    schedule
}

/// Checks what [`schedule`] ensures.
fn verify(graph: &Graph, schedule: &Schedule) -> Result<(), String> {
    let order = graph.order();
    let head = head_nodes(graph, &order);
    let mut position = 0;
    for (i, phase) in schedule.phases.iter().enumerate() {
        if phase.start != position || phase.is_empty() {
            return Err(format!("phase {i} does not follow the one before"));
        }
        position = phase.end;
        for &step in &schedule.steps[phase.clone()] {
            let site = &graph.node(step).site;
            if schedule.phase(step) != Some(PhaseId(i as u32)) {
                return Err(format!("{site} is in two phases"));
            }
            if head.contains(&step) != (i as u32 >= schedule.body_phases) {
                return Err(format!("{site} is on the wrong side of the head"));
            }
            let mut operands = graph.operands(step);
            while let Some(operand) = operands.pop() {
                match graph.node(operand).op.class() {
                    OpClass::View => operands.extend(graph.operands(operand)),
                    OpClass::Source => {}
                    OpClass::Kernel | OpClass::Semantic => {
                        if schedule.phase(operand).is_none_or(|p| p.0 as usize >= i) {
                            return Err(format!("{site} runs before its operands"));
                        }
                    }
                }
            }
        }
    }
    let kernels = order
        .iter()
        .filter(|&&id| graph.node(id).op.class() == OpClass::Kernel)
        .count();
    if position == schedule.steps.len() && position == kernels {
        Ok(())
    } else {
        Err(format!("{position} steps of {kernels} kernels"))
    }
}
