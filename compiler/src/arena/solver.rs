//! Greedy layouts in several orders, then an exact search where those leave a gap.

use std::cmp::Reverse;

use super::search::{Outcome, search};
use super::{Item, ItemId, Layout, Problem};

/// How long the exact search may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Nodes of the search tree; a count and no time, so that equal problems
    /// get equal layouts on every machine.
    pub search_nodes_max: u64,
}

impl Default for Effort {
    /// Tens of milliseconds where the greedy orders leave a gap; plans seldom
    /// have one.
    fn default() -> Effort {
        Effort {
            search_nodes_max: 4_096,
        }
    }
}

/// What an order looks at: an item, and the load at its fullest time.
type Key = fn(&Item, u64) -> [Reverse<u64>; 3];

/// Orders of the items, largest key first, ties by index. No order is best for
/// all problems; those of the exact search are the ones that differ most.
const ORDERS: [Key; 6] = [
    |i, _| [i.align, lifetime(i), i.bytes].map(Reverse),
    |i, load| [load, area(i), lifetime(i)].map(Reverse),
    |i, load| [lifetime(i), area(i), load].map(Reverse),
    |i, load| [load, lifetime(i), area(i)].map(Reverse),
    |i, load| [area(i), load, lifetime(i)].map(Reverse),
    |i, load| [i.bytes, lifetime(i), load].map(Reverse),
];

fn lifetime(item: &Item) -> u64 {
    u64::from(item.upper - item.lower)
}

fn area(item: &Item) -> u64 {
    lifetime(item).saturating_mul(item.padded_bytes())
}

/// A layout of all items. Deterministic.
pub fn solve(problem: &Problem, effort: Effort) -> Layout {
    let load_bytes = problem.load_bytes();
    let orders = orders(problem);
    let mut best = first_fit(problem, &orders[0]);
    let mut bytes = height(problem, &best);
    for order in &orders[1..] {
        if bytes == load_bytes {
            break;
        }
        let offsets = first_fit(problem, order);
        if height(problem, &offsets) < bytes {
            bytes = height(problem, &offsets);
            best = offsets;
        }
    }
    let mut nodes_left = effort.search_nodes_max;
    // No layout is lower than this.
    let mut bound = load_bytes;
    // The load itself is met more often than not; then by halves.
    let mut limit = bound;
    while bound < bytes && nodes_left > 0 {
        match search(problem, &orders, limit, &mut nodes_left) {
            Outcome::Found(offsets) => {
                bytes = height(problem, &offsets);
                best = offsets;
            }
            Outcome::Infeasible => bound = limit + 1,
            Outcome::Exhausted => break,
        }
        limit = bound + (bytes - bound) / 2;
    }
    Layout {
        offsets: best,
        bytes,
        load_bytes,
        search_nodes: effort.search_nodes_max - nodes_left,
        optimal: bound >= bytes,
    }
}

fn height(problem: &Problem, offsets: &[u64]) -> u64 {
    let items = problem.items.iter().zip(offsets);
    items
        .map(|(item, offset)| offset + item.padded_bytes())
        .max()
        .unwrap_or(0)
}

fn orders(problem: &Problem) -> Vec<Vec<ItemId>> {
    let loads = problem.loads();
    let peak = |item: &Item| {
        let first = loads.partition_point(|(time, _)| *time <= item.lower) - 1;
        let alive = loads[first..].iter().take_while(|(t, _)| *t < item.upper);
        alive.map(|(_, bytes)| *bytes).max().unwrap_or(0)
    };
    let peaks: Vec<u64> = problem.items.iter().map(peak).collect();
    let by = |key: &Key| {
        let mut order: Vec<ItemId> = (0..problem.items.len() as u32).map(ItemId).collect();
        order.sort_by_key(|&i| (key(&problem.items[i.index()], peaks[i.index()]), i));
        order
    };
    ORDERS.iter().map(by).collect()
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
