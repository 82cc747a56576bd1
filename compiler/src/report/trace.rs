//! The plan as a trace for Perfetto, in the Trace Event Format: a phase takes a
//! microsecond. Steps are slices, buffers are spans of their own, and counters
//! show the bytes alive by kind.

use omex_plan::BufferKind;
use serde_json::{Value, json};

use super::{MemoryReport, kind_name, step_name};

pub(super) fn trace(report: &MemoryReport<'_>) -> Value {
    let plan = report.plan;
    let mut events = vec![
        json!({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": plan.program.task_id}}),
        json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "steps"}}),
    ];
    for (ts, phase) in plan.phases.iter().enumerate() {
        let first = phase.first_step as usize;
        let steps = &plan.steps[first..first + phase.steps as usize];
        // Steps of one phase share its time.
        for (i, step) in steps.iter().enumerate() {
            let width = 1.0 / steps.len() as f64;
            events.push(json!({
                "ph": "X", "pid": 1, "tid": 1, "cat": "step", "name": step_name(step),
                "ts": ts as f64 + i as f64 * width, "dur": width,
            }));
        }
        let alive = |kind: BufferKind| -> u64 {
            let buffers = plan.buffers.iter().filter(|b| b.kind == kind);
            let alive = buffers.filter(|b| (b.first_phase..b.end_phase).contains(&(ts as u32)));
            alive.map(|b| b.bytes).sum()
        };
        events.push(json!({
            "ph": "C", "pid": 1, "name": "arena bytes", "ts": ts,
            "args": {
                "activations": alive(BufferKind::Activation),
                "kv cache": alive(BufferKind::KvRing),
                "resident pages": alive(BufferKind::ResidentPage),
                "page slots": alive(BufferKind::PageSlot),
                "logits": alive(BufferKind::Logits),
                "tokens": alive(BufferKind::Tokens),
                "session": alive(BufferKind::Session),
                "scratch": alive(BufferKind::Scratch),
            },
        }));
    }
    for (id, buffer) in plan.buffers.iter().enumerate() {
        let event = |ph: &str, ts: u32| {
            json!({
                "ph": ph, "pid": 1, "id": id, "cat": kind_name(buffer.kind),
                "name": buffer.name, "ts": ts,
                "args": {"bytes": buffer.bytes, "offset_bytes": buffer.offset},
            })
        };
        events.push(event("b", buffer.first_phase));
        events.push(event("e", buffer.end_phase));
    }
    json!({ "displayTimeUnit": "ns", "traceEvents": events })
}
