//! The report for people.

use std::fmt::Write;

use omex_plan::task::NodeKind;
use omex_plan::{BufferId, BufferKind, WeightSource};

use super::chart::chart;
use super::{MemoryReport, kind_name, mib, moment_name, step_name};
use crate::paging::Cost;

/// Characters of a full bar.
const BAR: u64 = 30;
/// Buffers of the peak that are listed one by one.
const LISTED_MAX: usize = 12;

// Writing to a string cannot fail, so its results are dropped below.
pub(super) fn text(report: &MemoryReport<'_>) -> String {
    let plan = report.plan;
    let mut out = String::new();
    let weights = match plan.weights.source {
        WeightSource::Mapped => "mapped",
        WeightSource::Read { .. } => "read into the arena",
        WeightSource::Paged(_) => "paged",
    };
    let _ = writeln!(
        out,
        "task {} · model {} · target {}\ncontext {} tokens · prefill chunk {} · up to {} threads · weights {weights}\n",
        plan.program.task_id,
        plan.model.name,
        plan.target.name,
        plan.model.context,
        plan.columns_max,
        plan.threads_max,
    );
    totals(&mut out, report);
    if let Some(measured) = &report.measured {
        out += &measured.text();
    }
    paging(&mut out, report);
    arena(&mut out, report);
    peak(&mut out, report);
    let lines = chart(plan);
    if !lines.is_empty() {
        let _ = writeln!(out, "\nwhat comes and goes: addresses over phases");
        for line in lines {
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    out
}

fn totals(out: &mut String, report: &MemoryReport<'_>) {
    let memory = &report.plan.memory;
    let (rss, charge) = (memory.rss_peak_bytes(), memory.charge_peak_bytes());
    let whole = charge.max(1);
    for item in report.items() {
        // Whatever is there has a bar.
        let length = (u128::from(item.bytes) * u128::from(BAR)).div_ceil(u128::from(whole));
        let tenths = u128::from(item.bytes) * 1000 / u128::from(whole);
        let _ = writeln!(
            out,
            "{:<16} {:>14} {:>3}.{}%  {}",
            item.kind.name(),
            mib(item.bytes),
            tenths / 10,
            tenths % 10,
            "█".repeat(length as usize)
        );
    }
    let _ = writeln!(
        out,
        "{:<16} {:>14}  peak of the resident set (VmHWM)\n{:<16} {:>14}  peak that a memory cgroup charges",
        "rss peak",
        mib(rss),
        "charge peak",
        mib(charge)
    );
}

/// What passes read, and how long that takes on the target.
fn paging(out: &mut String, report: &MemoryReport<'_>) {
    let (Some(cost), WeightSource::Paged(paged)) =
        (Cost::of(report.plan), &report.plan.weights.source)
    else {
        return;
    };
    let gb_per_s = |bytes: u64| bytes as f64 / 1e9;
    let _ = writeln!(
        out,
        "\npaging: {} of {} of weights stay; {} are read for every token, in {} reads",
        mib(cost.resident_bytes),
        mib(cost.weights_bytes),
        mib(cost.token_bytes),
        paged.reads.len(),
    );
    let framed = paged.reads.iter().filter(|read| read.compressed);
    let pages: u32 = framed.map(|read| read.pages).sum();
    if pages > 0 {
        let _ = writeln!(
            out,
            "{pages} pages of {} are read compressed, which saves {} per token",
            mib(cost.framed_bytes),
            mib(cost.streamed_bytes - cost.token_bytes),
        );
    }
    let _ = writeln!(
        out,
        "predicted from {:.2} GB/s of storage and {:.1} GB/s of memory: {:.3} s per token; \
         {:.3} s per {} tokens of a prompt",
        gb_per_s(paged.storage_bytes_per_s),
        gb_per_s(paged.memory_bytes_per_s),
        cost.token_s,
        cost.chunk_s,
        cost.chunk_tokens,
    );
    let context = report.plan.model.context.into();
    let _ = writeln!(
        out,
        "a prompt reads what is not resident once per {} tokens: {} times when it fills the context",
        cost.chunk_tokens,
        cost.prompt_reads(context),
    );
}

fn arena(out: &mut String, report: &MemoryReport<'_>) {
    let plan = report.plan;
    let bound = report.arena.lower_bound_bytes;
    let gap = plan.arena_bytes.saturating_sub(bound);
    let gap = if gap == 0 {
        "none: no arena is smaller".to_owned()
    } else {
        format!("{} ({gap} bytes)", mib(gap))
    };
    let _ = writeln!(
        out,
        "\narena {} · lower bound {} · gap {gap}\n{} steps in {} phases: {} barriers per token",
        mib(plan.arena_bytes),
        mib(bound),
        plan.steps.len(),
        plan.phases.len(),
        report.barriers_per_token()
    );
    let nodes = plan
        .program
        .nodes
        .iter()
        .filter_map(|node| match node.kind {
            NodeKind::Infer { .. } => Some(node.id.as_str()),
            NodeKind::Parse { .. } | NodeKind::Merge { .. } => None,
        });
    let nodes: Vec<&str> = nodes.collect();
    let _ = writeln!(out, "they run for: {}", nodes.join(", "));
    if let Some(gap) = &report.arena.gap {
        let names = |ids: &[BufferId]| {
            let names = ids.iter().map(|id| plan.buffers[id.index()].name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let proved = mib(gap.proved_bytes);
        if !gap.forcing.is_empty() {
            let forcing = names(&gap.forcing);
            let _ = writeln!(out, "the gap is forced: {proved} are needed for {forcing}");
        }
        if plan.arena_bytes > gap.proved_bytes {
            let ids = (0..plan.buffers.len()).map(BufferId::from);
            let above: Vec<BufferId> = ids
                .filter(|id| {
                    let buffer = &plan.buffers[id.index()];
                    buffer.offset + buffer.bytes > gap.proved_bytes
                })
                .collect();
            let _ = writeln!(
                out,
                "not proved to be needed is what exceeds {proved}: {}",
                names(&above)
            );
        }
    }
}

fn peak(out: &mut String, report: &MemoryReport<'_>) {
    let plan = report.plan;
    let arena = &report.arena;
    let _ = writeln!(
        out,
        "\npeak: {} in {}; these are alive there",
        mib(arena.peak_bytes),
        moment_name(plan, arena.peak_phase),
    );
    let of = |id: &BufferId| &plan.buffers[id.index()];
    let passing = |kind: BufferKind| match kind {
        BufferKind::Activation
        | BufferKind::Logits
        | BufferKind::Tokens
        | BufferKind::Session
        | BufferKind::Scratch => true,
        BufferKind::KvRing | BufferKind::ResidentPage | BufferKind::PageSlot => false,
    };
    // Rings and pages are many, alike and always alive: one line each.
    for kind in [
        BufferKind::KvRing,
        BufferKind::ResidentPage,
        BufferKind::PageSlot,
    ] {
        let bytes: Vec<u64> = arena
            .alive
            .iter()
            .filter(|id| of(id).kind == kind)
            .map(|id| of(id).bytes)
            .collect();
        if !bytes.is_empty() {
            let total = mib(bytes.iter().sum());
            let _ = writeln!(out, "{total:>14}  {} x {}", bytes.len(), kind_name(kind));
        }
    }
    let listed: Vec<_> = arena
        .alive
        .iter()
        .filter(|id| passing(of(id).kind))
        .collect();
    for id in listed.iter().take(LISTED_MAX) {
        let buffer = of(id);
        let writer = report.writer(**id, arena.peak_phase);
        let writer = writer.map_or("filled by the runtime".to_owned(), |s| {
            format!("written by {}", step_name(s))
        });
        let _ = writeln!(
            out,
            "{:>14}  {:<24} {:<10} {writer}",
            mib(buffer.bytes),
            buffer.name,
            kind_name(buffer.kind)
        );
    }
    if listed.len() > LISTED_MAX {
        let rest = &listed[LISTED_MAX..];
        let bytes = rest.iter().map(|id| of(id).bytes).sum();
        let _ = writeln!(out, "{:>14}  {} more", mib(bytes), rest.len());
    }
}
