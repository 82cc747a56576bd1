//! The occupancy chart: time to the right, addresses upwards.

use omex_plan::Plan;

const COLUMNS: u64 = 64;
const ROWS: u64 = 12;
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];

/// The part of the arena where buffers come and go; what is always alive would
/// fill its rows and show nothing. Empty when nothing goes.
pub(super) fn chart(plan: &Plan) -> Vec<String> {
    let buffers: Vec<_> = plan
        .buffers
        .iter()
        .filter(|b| b.first_phase > 0 || b.end_phase < plan.sample_moment())
        .filter(|b| b.first_phase < plan.text_moment())
        .collect();
    let low = buffers.iter().map(|b| b.offset).min().unwrap_or(0);
    let high = buffers
        .iter()
        .map(|b| b.offset + b.bytes)
        .max()
        .unwrap_or(0);
    // The moment of the sampler comes last.
    let phases = u64::from(plan.text_moment());
    if buffers.is_empty() || phases == 0 {
        return Vec::new();
    }
    let columns = COLUMNS.min(phases);
    let edge = |i: u64, total: u64, parts: u64| {
        (u128::from(total) * u128::from(i) / u128::from(parts)) as u64
    };
    let mut lines = Vec::new();
    for row in (0..ROWS).rev() {
        let bottom = low + edge(row, high - low, ROWS);
        let top = low + edge(row + 1, high - low, ROWS);
        let mut line = format!("{:>12} │", super::mib(top));
        for column in 0..columns {
            let from = edge(column, phases, columns);
            let to = edge(column + 1, phases, columns);
            let mut used = 0u128;
            for b in &buffers {
                let time = overlap(from, to, b.first_phase.into(), b.end_phase.into());
                let space = overlap(bottom, top, b.offset, b.offset + b.bytes);
                used += u128::from(time) * u128::from(space);
            }
            let area = u128::from(to - from) * u128::from(top - bottom).max(1);
            // Any use shows, and only a full cell is full.
            let shade = (used * 4).div_ceil(area.max(1)).min(4) as usize;
            let shade = if used < area { shade.min(3) } else { shade };
            line.push(SHADES[shade]);
        }
        lines.push(line);
    }
    let width = columns as usize;
    lines.push(format!("{:>12} └{}", super::mib(low), "─".repeat(width)));
    lines.push(format!(
        "{:>13} phases 0 to {}, then the sampler",
        "",
        phases - 2
    ));
    lines
}

fn overlap(a_start: u64, a_end: u64, b_start: u64, b_end: u64) -> u64 {
    a_end.min(b_end).saturating_sub(a_start.max(b_start))
}
