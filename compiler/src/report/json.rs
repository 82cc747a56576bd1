//! The report for programs.

use omex_plan::WeightSource;
use serde_json::{Value, json};

use crate::paging::Cost;

use super::{Measured, MemoryReport, SCHEMA_VERSION, kind_name, moment_name};

pub(super) fn json(report: &MemoryReport<'_>) -> Value {
    let plan = report.plan;
    let items: Vec<Value> = report
        .items()
        .iter()
        .map(|item| json!({ "kind": item.kind.name(), "bytes": item.bytes, "in_rss": item.kind.in_rss() }))
        .collect();
    let arena = &report.arena;
    let alive: Vec<Value> = arena
        .alive
        .iter()
        .map(|&id| {
            let buffer = &plan.buffers[id.index()];
            let writer = report.writer(id, arena.peak_phase);
            json!({
                "name": buffer.name,
                "kind": kind_name(buffer.kind),
                "bytes": buffer.bytes,
                "offset_bytes": buffer.offset,
                "first_phase": buffer.first_phase,
                "end_phase": buffer.end_phase,
                "written_by": writer.map(|s| s.name.clone()),
                "layer": writer.and_then(|s| s.layer),
            })
        })
        .collect();
    json!({
        "schema_version": SCHEMA_VERSION,
        "task_id": plan.program.task_id,
        "model": plan.model.name,
        "target": plan.target.name,
        "context_tokens": plan.model.context,
        "prefill_chunk_tokens": plan.columns_max,
        "threads_max": plan.threads_max,
        "weights": match plan.weights.source {
            WeightSource::Mapped => "mapped",
            WeightSource::Read { .. } => "read",
            WeightSource::Paged(_) => "paged",
        },
        "paging": Cost::of(plan).map(|cost| json!({
            "resident_bytes": cost.resident_bytes,
            "bytes_per_token": cost.token_bytes,
            "seconds_per_token": cost.token_s,
            "bytes_per_prompt_chunk": cost.chunk_bytes,
            "seconds_per_prompt_chunk": cost.chunk_s,
            "prompt_chunk_tokens": cost.chunk_tokens,
        })),
        "weights_bytes": plan.weights.pages.iter().map(|p| p.bytes).sum::<u64>(),
        "rss_peak_bytes": plan.memory.rss_peak_bytes(),
        "charge_peak_bytes": plan.memory.charge_peak_bytes(),
        "items": items,
        "arena": {
            "bytes": plan.arena_bytes,
            "lower_bound_bytes": arena.lower_bound_bytes,
            "gap_bytes": plan.arena_bytes.saturating_sub(arena.lower_bound_bytes),
            "proved_bytes": arena.gap.as_ref().map_or(arena.lower_bound_bytes, |gap| gap.proved_bytes),
            "gap_forced_by": arena.gap.iter().flat_map(|gap| &gap.forcing)
                .map(|id| &plan.buffers[id.index()].name)
                .collect::<Vec<_>>(),
            "peak_phase": arena.peak_phase,
            "peak": moment_name(plan, arena.peak_phase),
            "peak_bytes": arena.peak_bytes,
            "alive_at_peak": alive,
        },
        "measured": report.measured.as_ref().map(Measured::json),
        "barriers_per_token": report.barriers_per_token(),
        "steps_per_token": plan.steps.len(),
    })
}
