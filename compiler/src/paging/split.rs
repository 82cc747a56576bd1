//! Cuts phases so that each begins to use at most one unit of streamed pages.

use std::collections::BTreeMap;

use omex_kernels::KernelSpec;
use omex_plan::{Arg, PanelRange, Phase, Plan, Step};

use super::resident::Unit;

/// The panels of one piece of a step's matrix.
#[derive(Clone, Copy)]
struct Part {
    step: usize,
    panels: PanelRange,
    unit: Option<usize>,
}

/// The plan with more phases and partial matmuls, and lifetimes to match.
pub(super) fn split(plan: &Plan, units: &[Unit]) -> Plan {
    let mut unit_of = vec![None; plan.weights.pages.len()];
    for (i, unit) in units.iter().enumerate() {
        unit_of[unit.pages.clone()].fill(Some(i));
    }
    let mut steps = Vec::with_capacity(plan.steps.len());
    let mut phases = Vec::with_capacity(plan.phases.len());
    // The first new phase of each old one, and what comes behind the last.
    let mut first_new = Vec::with_capacity(plan.phases.len() + 3);
    for phase in &plan.phases {
        first_new.push(phases.len() as u32);
        for group in groups(plan, *phase, &unit_of) {
            phases.push(Phase {
                first_step: steps.len() as u32,
                steps: group.len() as u32,
            });
            steps.extend(group);
        }
    }
    // The moments behind the phases.
    first_new.extend((0..=2).map(|moment| phases.len() as u32 + moment));
    let mut plan = Plan {
        steps,
        phases,
        body_phases: first_new[plan.body_phases as usize],
        ..plan.clone()
    };
    for buffer in &mut plan.buffers {
        buffer.first_phase = first_new[buffer.first_phase as usize];
        buffer.end_phase = first_new[buffer.end_phase as usize];
    }
    plan
}

/// The steps of each phase that an old one becomes.
fn groups(plan: &Plan, phase: Phase, unit_of: &[Option<usize>]) -> Vec<Vec<Step>> {
    let steps = phase.first_step as usize..(phase.first_step + phase.steps) as usize;
    let parts = parts(plan, steps.clone(), unit_of);
    // What has no panels depends on nothing of this phase.
    let is_matmul = |step: &usize| parts.iter().any(|p| p.step == *step);
    let mut groups = vec![
        steps
            .filter(|s| !is_matmul(s))
            .map(|s| plan.steps[s].clone())
            .collect::<Vec<_>>(),
    ];
    let mut current = None;
    let mut ranges: BTreeMap<usize, PanelRange> = BTreeMap::new();
    let mut order: Vec<usize> = Vec::new();
    let flush = |group: &mut Vec<Step>,
                 order: &mut Vec<usize>,
                 ranges: &mut BTreeMap<usize, PanelRange>| {
        for step in order.drain(..) {
            let range = ranges.remove(&step).expect("a range for each step");
            let whole = parts.iter().filter(|p| p.step == step);
            let panels: u32 = whole.map(|p| p.panels.count).sum();
            group.push(Step {
                panels: (range.count < panels).then_some(range),
                ..plan.steps[step].clone()
            });
        }
    };
    for part in &parts {
        if part.unit.is_some() && current.is_some() && part.unit != current {
            let group = groups.last_mut().expect("a group is open");
            flush(group, &mut order, &mut ranges);
            groups.push(Vec::new());
        }
        current = part.unit.or(current);
        match ranges.get_mut(&part.step) {
            Some(range) => range.count += part.panels.count,
            None => {
                order.push(part.step);
                ranges.insert(part.step, part.panels);
            }
        }
    }
    let group = groups.last_mut().expect("a group is open");
    flush(group, &mut order, &mut ranges);
    groups
}

/// The pieces of a phase's matrices: matrices in the order of their pages, the
/// pieces of each in ascending order.
fn parts(plan: &Plan, steps: std::ops::Range<usize>, unit_of: &[Option<usize>]) -> Vec<Part> {
    let mut matrices = Vec::new();
    for step in steps {
        let spec = plan.kernels[plan.steps[step].kernel.index()].spec();
        if let (KernelSpec::Matmul { .. }, Arg::Tensor(id)) = (spec, plan.steps[step].args[0]) {
            let pieces = &plan.weights.tensors[id.index()].pieces;
            matrices.push((pieces.first().map(|p| p.page), step, pieces));
        }
    }
    matrices.sort_by_key(|(page, step, _)| (*page, *step));
    let parts = matrices.into_iter().flat_map(|(_, step, pieces)| {
        pieces.iter().map(move |piece| Part {
            step,
            panels: PanelRange {
                first: piece.first_unit,
                count: piece.units,
            },
            unit: unit_of[piece.page.index()],
        })
    });
    parts.collect()
}
