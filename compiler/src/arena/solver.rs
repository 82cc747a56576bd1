//! Layouts by first fit in several orders, then by search where those leave a
//! gap to the load.

use super::first_fit::first_fit;
use super::order::{Key, order};
use super::search::{Outcome, search};
use super::{Item, Layout, Problem};

/// How long the search may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Nodes of the search tree; a count and no time, so that equal problems
    /// get equal layouts on every machine.
    pub search_nodes_max: u64,
}

impl Default for Effort {
    /// Less than a second for hundreds of items where first fit leaves a gap.
    fn default() -> Effort {
        Effort {
            search_nodes_max: 1 << 16,
        }
    }
}

/// A layout of all items. Deterministic.
///
/// Items that are live all the time lie below the others: of any layout they can
/// be taken out and put there, while what lay above them moves down.
pub fn solve(problem: &Problem, effort: Effort) -> Layout {
    let lasting = lasting(problem);
    if lasting.is_empty() {
        return solve_changing(problem, effort);
    }
    let mut offsets = vec![0; problem.items.len()];
    let mut base = 0;
    for &i in &lasting {
        offsets[i] = base;
        base += problem.items[i].padded_bytes();
    }
    let mut is_lasting = vec![false; problem.items.len()];
    lasting.iter().for_each(|&i| is_lasting[i] = true);
    let others: Vec<usize> = (0..problem.items.len())
        .filter(|&i| !is_lasting[i])
        .collect();
    let items = others.iter().map(|&i| problem.items[i]).collect();
    let layout = solve_changing(&Problem { items }, effort);
    for (&i, &offset) in others.iter().zip(&layout.offsets) {
        offsets[i] = base + offset;
    }
    Layout {
        offsets,
        bytes: base + layout.bytes,
        load_bytes: base + layout.load_bytes,
        bound_bytes: base + layout.bound_bytes,
        search_nodes: layout.search_nodes,
    }
}

/// Items that are live all the time and aligned to at least what all others are,
/// so that no byte is lost between them: the most aligned first.
fn lasting(problem: &Problem) -> Vec<usize> {
    let items = &problem.items;
    let lower = items.iter().map(|item| item.lower).min();
    let upper = items.iter().map(|item| item.upper).max();
    let lasts = |item: &Item| Some(item.lower) == lower && Some(item.upper) == upper;
    let others = items.iter().filter(|item| !lasts(item));
    let align = others.map(|item| item.align).max().unwrap_or(1);
    let mut lasting: Vec<usize> = (0..items.len())
        .filter(|&i| lasts(&items[i]) && items[i].align >= align)
        .collect();
    lasting.sort_by_key(|&i| std::cmp::Reverse(items[i].align));
    lasting
}

fn solve_changing(problem: &Problem, effort: Effort) -> Layout {
    let load_bytes = problem.load_bytes();
    let mut best: Option<(u64, Vec<u64>)> = None;
    for keys in Key::FIRST_FIT {
        let offsets = first_fit(problem, &order(problem, keys));
        let bytes = height(problem, &offsets);
        if best.as_ref().is_none_or(|(least, _)| bytes < *least) {
            best = Some((bytes, offsets));
        }
        if bytes == load_bytes {
            break;
        }
    }
    let (mut bytes, mut offsets) = best.expect("there are orders");
    let mut nodes_left = effort.search_nodes_max;
    // No layout is lower than `bound_bytes`; none below `hope` was found.
    let mut bound_bytes = load_bytes;
    let mut hope = load_bytes;
    // The load itself is met more often than not; then by halves.
    let mut limit = hope;
    while hope < bytes && nodes_left > 0 {
        // What remains is for other limits.
        let share = nodes_left.div_ceil(2);
        let mut share_left = share;
        match search(&problem.items, limit, &mut share_left) {
            Outcome::Found(found) => {
                bytes = height(problem, &found);
                offsets = found;
            }
            Outcome::Infeasible => {
                bound_bytes = limit + 1;
                hope = limit + 1;
            }
            Outcome::Exhausted => hope = limit + 1,
        }
        nodes_left -= share - share_left;
        limit = hope + bytes.saturating_sub(hope) / 2;
    }
    Layout {
        offsets,
        bytes,
        load_bytes,
        bound_bytes: bound_bytes.min(bytes),
        search_nodes: effort.search_nodes_max - nodes_left,
    }
}

fn height(problem: &Problem, offsets: &[u64]) -> u64 {
    let items = problem.items.iter().zip(offsets);
    items
        .map(|(item, offset)| offset + item.padded_bytes())
        .max()
        .unwrap_or(0)
}
