//! Layouts by first fit in several orders, then by search where those leave a
//! gap to the load.

use super::first_fit::first_fit;
use super::order::{Key, order};
use super::search::{Outcome, search};
use super::{Layout, Problem};

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
pub fn solve(problem: &Problem, effort: Effort) -> Layout {
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
