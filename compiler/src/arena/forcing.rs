//! Why a layout cannot be lower: few items that alone need as much.

use super::search::{Outcome, search};
use super::{Item, Problem};

/// Nodes to tell whether some of the items suffice.
const NODES_MAX: u64 = 1 << 12;

/// Items, by index, that have no layout of `limit` bytes, though they may have
/// one without any one of them; none when that cannot be shown.
pub fn forcing(problem: &Problem, limit: u64) -> Option<Vec<usize>> {
    let force = |items: &[usize]| {
        let items: Vec<Item> = items.iter().map(|&i| problem.items[i]).collect();
        let mut nodes_left = NODES_MAX;
        match search(&items, limit, &mut nodes_left) {
            Outcome::Infeasible => true,
            Outcome::Found(_) | Outcome::Exhausted => false,
        }
    };
    let mut forcing: Vec<usize> = (0..problem.items.len()).collect();
    if !force(&forcing) {
        return None;
    }
    // Leaves out ever smaller runs (Zeller and Hildebrandt, "Simplifying and
    // isolating failure-inducing input", 2002).
    let mut run = forcing.len().div_ceil(2);
    loop {
        let mut start = 0;
        while start < forcing.len() {
            let end = (start + run).min(forcing.len());
            let without = [&forcing[..start], &forcing[end..]].concat();
            if force(&without) {
                forcing = without;
            } else {
                start = end;
            }
        }
        if run == 1 {
            return Some(forcing);
        }
        run = run.div_ceil(2);
    }
}
