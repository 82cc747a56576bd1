//! A layout at once: each item at the lowest offset that is free.

use super::Problem;

/// Offsets of the items, placed in the given order.
pub(super) fn first_fit(problem: &Problem, order: &[usize]) -> Vec<u64> {
    let mut offsets = vec![0u64; problem.items.len()];
    // By offset.
    let mut placed: Vec<(u64, usize)> = Vec::new();
    for &i in order {
        let item = &problem.items[i];
        let mut offset = 0u64;
        for &(start, other) in &placed {
            let other = &problem.items[other];
            if !item.overlaps(other) {
                continue;
            }
            if start >= offset + item.padded_bytes() {
                break;
            }
            offset = offset.max((start + other.padded_bytes()).next_multiple_of(item.align));
        }
        offsets[i] = offset;
        let at = placed.partition_point(|&(start, _)| start <= offset);
        placed.insert(at, (offset, i));
    }
    offsets
}
