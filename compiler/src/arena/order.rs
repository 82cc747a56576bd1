//! Orders of items, by what makes one hard to place.

use std::cmp::Reverse;

use super::Problem;

/// What an order looks at; the largest goes first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    Align,
    Bytes,
    Lifetime,
    /// Bytes times lifetime.
    Area,
    /// The load at the fullest time of the lifetime.
    Load,
}

impl Key {
    /// Orders of first fit. No order is best for all problems.
    pub(super) const FIRST_FIT: [[Key; 3]; 6] = [
        [Key::Align, Key::Lifetime, Key::Bytes],
        [Key::Load, Key::Area, Key::Lifetime],
        [Key::Lifetime, Key::Area, Key::Load],
        [Key::Load, Key::Lifetime, Key::Area],
        [Key::Area, Key::Load, Key::Lifetime],
        [Key::Bytes, Key::Lifetime, Key::Load],
    ];
    /// Orders of the search: those that differ most.
    pub(super) const SEARCH: [[Key; 3]; 3] = [
        [Key::Lifetime, Key::Area, Key::Load],
        [Key::Load, Key::Area, Key::Lifetime],
        [Key::Load, Key::Lifetime, Key::Area],
    ];
}

/// The items' indices, the largest keys first, ties by index.
pub(super) fn order(problem: &Problem, keys: [Key; 3]) -> Vec<usize> {
    let loads = problem.loads();
    let value = |i: usize, key: Key| {
        let item = &problem.items[i];
        let lifetime = u64::from(item.upper - item.lower);
        match key {
            Key::Align => item.align,
            Key::Bytes => item.bytes,
            Key::Lifetime => lifetime,
            Key::Area => lifetime.saturating_mul(item.padded_bytes()),
            Key::Load => {
                let first = loads.partition_point(|(time, _)| *time <= item.lower) - 1;
                let alive = loads[first..].iter().take_while(|(t, _)| *t < item.upper);
                alive.map(|(_, bytes)| *bytes).max().unwrap_or(0)
            }
        }
    };
    let mut order: Vec<usize> = (0..problem.items.len()).collect();
    order.sort_by_cached_key(|&i| (keys.map(|key| Reverse(value(i, key))), i));
    order
}
