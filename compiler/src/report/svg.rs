//! The arena as a picture: time to the right, addresses upwards, a rectangle
//! for every buffer. Names and sizes appear where the pointer rests.

use std::fmt::Write;

use omex_plan::{Buffer, BufferKind, Plan};

use super::{MemoryReport, kind_name, mib, step_name};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 640.0;
const LEFT: f64 = 90.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 50.0;
const RIGHT: f64 = 20.0;
/// Colours of everything but buffers, on light and dark ground.
const STYLE: &str = "\
.ground{fill:#fff} text{fill:#333} line.grid{stroke:#ddd} line.peak{stroke:#000;stroke-dasharray:4 3} \
rect.b{stroke:#fff;stroke-width:.3} rect.b:hover{stroke:#000;stroke-width:1.5} \
@media (prefers-color-scheme:dark){.ground{fill:#1c1c1e} text{fill:#ccc} line.grid{stroke:#444} \
line.peak{stroke:#fff} rect.b{stroke:#1c1c1e} rect.b:hover{stroke:#fff}}";
/// The same of the page around the picture. Narrow windows scroll the picture.
const PAGE_STYLE: &str = "\
:root{color-scheme:light dark} body{font:14px system-ui,sans-serif;margin:2em auto;padding:0 1em;max-width:1200px} \
table{border-collapse:collapse;margin:1em 0;width:100%;max-width:600px} td{padding:2px 10px} \
.n{text-align:right;white-space:nowrap} .share{width:40%} .bar{height:12px;background:#4e79a7} \
tr.sum td{border-top:1px solid #999;font-weight:600} .picture{overflow-x:auto;border:1px solid #8888} \
.picture svg{display:block;min-width:800px}";
/// Lines of the address axis.
const GRID: u64 = 8;

const fn color(kind: BufferKind) -> &'static str {
    match kind {
        BufferKind::Tokens => "#b07aa1",
        BufferKind::Activation => "#4e79a7",
        BufferKind::KvRing => "#f28e2b",
        BufferKind::ResidentPage => "#76b7b2",
        BufferKind::PageSlot => "#59a14f",
        BufferKind::Logits => "#e15759",
        BufferKind::Session => "#9c755f",
        BufferKind::Scratch => "#edc948",
    }
}

const KINDS: [BufferKind; 8] = [
    BufferKind::Activation,
    BufferKind::KvRing,
    BufferKind::ResidentPage,
    BufferKind::PageSlot,
    BufferKind::Logits,
    BufferKind::Tokens,
    BufferKind::Session,
    BufferKind::Scratch,
];

/// Text without markup.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            // Names come from files; no control character belongs in markup.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Positions of phases and addresses in the picture.
struct Axes {
    phases: f64,
    bytes: f64,
}

impl Axes {
    fn x(&self, phase: u32) -> f64 {
        LEFT + f64::from(phase) / self.phases * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, address: u64) -> f64 {
        HEIGHT - BOTTOM - address as f64 / self.bytes * (HEIGHT - BOTTOM - TOP)
    }
}

// Writing to a string cannot fail, so its results are dropped below.
pub(super) fn svg(report: &MemoryReport<'_>) -> String {
    let plan = report.plan;
    let axes = Axes {
        phases: f64::from(plan.moments()),
        bytes: plan.arena_bytes.max(1) as f64,
    };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    grid(&mut out, plan, &axes);
    for buffer in &plan.buffers {
        rectangle(&mut out, report, buffer, &axes);
    }
    peak(&mut out, report, &axes);
    legend(&mut out, plan);
    out.push_str("</svg>\n");
    out
}

fn grid(out: &mut String, plan: &Plan, axes: &Axes) {
    for line in 0..=GRID {
        let address = plan.arena_bytes / GRID * line;
        let y = axes.y(address);
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            mib(address)
        );
    }
    let phases = plan.phases.len() as u32;
    for tick in 0..=GRID as u32 {
        let phase = phases / GRID as u32 * tick;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{phase}</text>",
            axes.x(phase),
            HEIGHT - BOTTOM + 16.0
        );
    }
}

fn rectangle(out: &mut String, report: &MemoryReport<'_>, buffer: &Buffer, axes: &Axes) {
    let (x, end) = (axes.x(buffer.first_phase), axes.x(buffer.end_phase));
    let (top, bottom) = (axes.y(buffer.offset + buffer.bytes), axes.y(buffer.offset));
    let id = report
        .plan
        .buffers
        .iter()
        .position(|b| std::ptr::eq(b, buffer));
    let writer = id.and_then(|id| report.writer(id.into(), buffer.first_phase));
    let writer = writer.map_or(String::new(), |s| format!(", written by {}", step_name(s)));
    let _ = writeln!(
        out,
        "<rect class=\"b\" x=\"{x:.2}\" y=\"{top:.2}\" width=\"{:.2}\" height=\"{:.2}\" fill=\"{}\">\
         <title>{}: {}, {} at {}, phases {} to {}{}</title></rect>",
        (end - x).max(0.3),
        (bottom - top).max(0.3),
        color(buffer.kind),
        escaped(&buffer.name),
        kind_name(buffer.kind),
        mib(buffer.bytes),
        mib(buffer.offset),
        buffer.first_phase,
        buffer.end_phase - 1,
        escaped(&writer),
    );
}

fn peak(out: &mut String, report: &MemoryReport<'_>, axes: &Axes) {
    let x = axes.x(report.arena.peak_phase);
    let _ = writeln!(
        out,
        "<line class=\"peak\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{}\"/>\
         <text x=\"{:.1}\" y=\"{}\">peak {} in phase {}</text>",
        HEIGHT - BOTTOM,
        x + 4.0,
        TOP - 8.0,
        mib(report.arena.peak_bytes),
        report.arena.peak_phase
    );
}

fn legend(out: &mut String, plan: &Plan) {
    let mut x = LEFT;
    for kind in KINDS {
        let of_kind = plan.buffers.iter().filter(|b| b.kind == kind);
        let count = of_kind.count();
        if count == 0 {
            continue;
        }
        let y = HEIGHT - 20.0;
        let label = format!("{} x {}", count, kind_name(kind));
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"{}\">{label}</text>",
            y - 10.0,
            color(kind),
            x + 17.0,
            y
        );
        x += 40.0 + 7.0 * label.len() as f64;
    }
}

/// A page with the picture and the items of the contract.
pub(super) fn html(report: &MemoryReport<'_>) -> String {
    let plan = report.plan;
    let charge = plan.memory.charge_peak_bytes().max(1);
    let mut rows = String::new();
    for item in report.items() {
        let share = item.bytes as f64 * 100.0 / charge as f64;
        let _ = writeln!(
            rows,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{share:.1}%</td>\
             <td class=\"share\"><div class=\"bar\" style=\"width:{share:.1}%\"></div></td></tr>",
            item.kind.name(),
            mib(item.bytes),
        );
    }
    let title = escaped(&format!("{} on {}", plan.program.task_id, plan.target.name));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <style>{PAGE_STYLE}</style></head><body>\n\
         <h1>{title}</h1>\n<p>{} · context {} tokens · prefill chunk {} · up to {} threads</p>\n\
         <table>{rows}<tr class=\"sum\"><td>rss peak</td><td class=\"n\">{}</td></tr>\
         <tr class=\"sum\"><td>charge peak</td><td class=\"n\">{}</td></tr></table>\n\
         <h2>The arena: addresses over phases</h2>\n<p>{} of {} that any arena for these buffers needs; \
         rest the pointer on a buffer for its name.</p>\n<div class=\"picture\">{}</div></body></html>\n",
        escaped(&plan.model.name),
        plan.model.context,
        plan.columns_max,
        plan.threads_max,
        mib(plan.memory.rss_peak_bytes()),
        mib(plan.memory.charge_peak_bytes()),
        mib(plan.arena_bytes),
        mib(report.arena.lower_bound_bytes),
        svg(report),
    )
}
