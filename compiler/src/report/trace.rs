//! The plan as a trace for Perfetto, in the Trace Event Format: a moment takes a
//! millisecond. Steps are slices, buffers are spans of their own, and counters
//! show the bytes alive by kind.

use omex_plan::BufferKind;
use serde_json::{Value, json};

use super::{MemoryReport, kind_name, moment_name, step_name};

/// Whole numbers of it: parts of a moment that were rounded might overlap.
const MOMENT_US: u64 = 1000;

pub(super) fn trace(report: &MemoryReport<'_>) -> Value {
    let plan = report.plan;
    let mut events = vec![
        json!({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": plan.program.task_id}}),
        json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "steps"}}),
    ];
    for moment in 0..plan.moments() {
        let start = u64::from(moment) * MOMENT_US;
        // Steps of one phase share its time.
        let names = match plan.phases.get(moment as usize) {
            Some(phase) => {
                let steps = &plan.steps[phase.first_step as usize..][..phase.steps as usize];
                steps.iter().map(step_name).collect()
            }
            None => vec![moment_name(plan, moment)],
        };
        let count = names.len() as u64;
        for (i, name) in (0..).zip(names) {
            let (ts, end) = (i * MOMENT_US / count, (i + 1) * MOMENT_US / count);
            events.push(json!({
                "ph": "X", "pid": 1, "tid": 1, "cat": "step", "name": name,
                "ts": start + ts, "dur": end - ts,
            }));
        }
        let alive = |kind: BufferKind| -> u64 {
            let buffers = plan.buffers.iter().filter(|b| b.kind == kind);
            let alive = buffers.filter(|b| (b.first_phase..b.end_phase).contains(&moment));
            alive.map(|b| b.bytes).sum()
        };
        events.push(json!({
            "ph": "C", "pid": 1, "name": "arena bytes", "ts": start,
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
        let event = |ph: &str, moment: u32| {
            json!({
                "ph": ph, "pid": 1, "id": id, "cat": kind_name(buffer.kind),
                "name": buffer.name, "ts": u64::from(moment) * MOMENT_US,
                "args": {"bytes": buffer.bytes, "offset_bytes": buffer.offset},
            })
        };
        events.push(event("b", buffer.first_phase));
        events.push(event("e", buffer.end_phase));
    }
    json!({ "displayTimeUnit": "ns", "traceEvents": events })
}
