//! The page plan as text.

use std::fmt::Write;

use omex_plan::{Plan, WeightSource};

/// One line per read: its moment, its slot, its pages and what needs them.
/// Plans without a page plan say so.
pub fn paging_text(plan: &Plan) -> String {
    let paged = match &plan.weights.source {
        WeightSource::Mapped => return "; no pages are read: the file is mapped\n".to_owned(),
        WeightSource::Read { slots } => {
            return format!("; all {} pages are read at load and stay\n", slots.len());
        }
        WeightSource::Paged(paged) => paged,
    };
    let pages = &plan.weights.pages;
    let resident = pages.iter().zip(&paged.resident);
    let resident: Vec<_> = resident.filter(|(_, slot)| slot.is_some()).collect();
    let bytes: u64 = resident.iter().map(|(page, _)| page.bytes).sum();
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "; {} pages of {bytes} bytes stay; {} reads of {} bytes in a pass of {} phases, {} in flight",
        resident.len(),
        paged.reads.len(),
        paged.pass_bytes(plan),
        plan.phases.len(),
        paged.depth
    );
    if let Some(gather) = paged.gather {
        let buffer = &plan.buffers[gather.index()];
        let _ = writeln!(out, "; rows are gathered through {} bytes", buffer.bytes);
    }
    let _ = writeln!(out, "; read  starts  needed in    slot     bytes  pages");
    for (i, read) in paged.reads.iter().enumerate() {
        let needed = format!("{}..{}", read.first_phase, read.end_phase);
        let first = read.first_page.0;
        let _ = writeln!(
            out,
            "{i:>6} {:>7}  {needed:<12} {:<8} {:>8}  {}..{}  {}{}",
            read.start_phase,
            plan.buffers[read.slot.index()].name,
            paged.stored_bytes(plan, read),
            first,
            first + read.pages,
            user(plan, read.first_phase),
            if read.compressed { ", zstd" } else { "" }
        );
    }
    out
}

/// The last step of a phase, which needs what is read for it.
fn user(plan: &Plan, phase: u32) -> String {
    let phase = plan.phases[phase as usize];
    let step = &plan.steps[(phase.first_step + phase.steps - 1) as usize];
    match step.layer {
        Some(layer) => format!("{}.{layer}", step.name),
        None => step.name.clone(),
    }
}
