//! Looks for a layout within a limit: the tree of layouts, searched again and
//! again in other orders.
//!
//! A bad first choice costs a depth-first search everything. So it is given up
//! after a while and starts again in another order: static ones take turns,
//! each corrected by what has failed most so far (the weights of Boussemart et
//! al., "Boosting systematic search by weighting constraints", ECAI 2004). How
//! long a turn lasts follows Luby et al., "Optimal speedup of Las Vegas
//! algorithms" (1993).

use super::order::{Key, order};
use super::sections::Sections;
use super::tree::{Tree, Verdict};
use super::{Item, Problem};

/// How far failures move an item up in its order, in parts of the order. How
/// much they tell differs, so that the weights take turns as the orders do.
const CONFLICT_WEIGHTS: [f64; 3] = [0.0, 1.0, 2.0];
/// Turns after which failures count half.
const FADE_TURNS: u64 = 8;
/// The tree is as deep as there are items, and searched recursively.
const ITEMS_MAX: usize = 2_048;

pub(super) enum Outcome {
    /// The offset of every item.
    Found(Vec<u64>),
    /// There is no such layout.
    Infeasible,
    /// The nodes did not suffice to tell.
    Exhausted,
}

/// Looks for a layout of at most `limit` bytes. Takes the visited nodes off
/// `nodes_left`.
pub(super) fn search(items: &[Item], limit: u64, nodes_left: &mut u64) -> Outcome {
    let mut offsets = vec![0; items.len()];
    let mut exhausted = false;
    for component in components(items) {
        let connected: Vec<Item> = component.iter().map(|&i| items[i]).collect();
        match search_connected(connected, limit, nodes_left) {
            Outcome::Found(found) => {
                for (i, offset) in component.into_iter().zip(found) {
                    offsets[i] = offset;
                }
            }
            Outcome::Infeasible => return Outcome::Infeasible,
            // Another component may be infeasible.
            Outcome::Exhausted => exhausted = true,
        }
    }
    if exhausted {
        Outcome::Exhausted
    } else {
        Outcome::Found(offsets)
    }
}

/// What always lives may lie at the bottom of any layout: the others move up
/// or down by whole alignments.
fn search_connected(items: Vec<Item>, limit: u64, nodes_left: &mut u64) -> Outcome {
    let first = items.iter().map(|i| i.lower).min().unwrap_or(0);
    let end = items.iter().map(|i| i.upper).max().unwrap_or(0);
    let always = |item: &Item| item.lower == first && item.upper == end;
    let passing = items.iter().filter(|i| !always(i));
    let align = passing.map(|i| i.align).max().unwrap_or(1);
    let (mut bottom, rest): (Vec<usize>, Vec<usize>) = (0..items.len())
        .partition(|&i| always(&items[i]) && items[i].padded_bytes().is_multiple_of(align));
    if bottom.is_empty() {
        return search_tree(&Problem { items }, limit, nodes_left);
    }
    bottom.sort_by_key(|&i| std::cmp::Reverse(items[i].align));
    let mut offsets = vec![0; items.len()];
    let mut top = 0u64;
    for i in bottom {
        offsets[i] = top;
        top += items[i].padded_bytes();
    }
    let Some(limit) = limit.checked_sub(top) else {
        return Outcome::Infeasible;
    };
    let above: Vec<Item> = rest.iter().map(|&i| items[i]).collect();
    match search(&above, limit, nodes_left) {
        Outcome::Found(found) => {
            for (i, offset) in rest.into_iter().zip(found) {
                offsets[i] = top + offset;
            }
            Outcome::Found(offsets)
        }
        other @ (Outcome::Infeasible | Outcome::Exhausted) => other,
    }
}

fn search_tree(problem: &Problem, limit: u64, nodes_left: &mut u64) -> Outcome {
    if problem.load_bytes() > limit {
        return Outcome::Infeasible;
    }
    if problem.items.len() > ITEMS_MAX {
        return Outcome::Exhausted;
    }
    let orders = Key::SEARCH.map(|keys| order(problem, keys));
    let mut tree = Tree::new(&problem.items, limit);
    for (turn, order) in (1..).zip(orders.iter().cycle()) {
        // The shortest turn places everything once.
        let turn_nodes = (luby(turn) * problem.items.len() as u64).min(*nodes_left);
        let mut turn_left = turn_nodes;
        let weight = CONFLICT_WEIGHTS[turn as usize / orders.len() % CONFLICT_WEIGHTS.len()];
        let order = corrected(order, tree.conflicts(), weight);
        let verdict = tree.search(&order, &mut turn_left);
        *nodes_left -= turn_nodes - turn_left;
        match verdict {
            Verdict::Solved => return Outcome::Found(tree.offsets()),
            Verdict::Impossible => return Outcome::Infeasible,
            Verdict::OutOfNodes if *nodes_left == 0 => break,
            Verdict::OutOfNodes => {}
        }
        if turn % FADE_TURNS == 0 {
            tree.fade_conflicts();
        }
    }
    Outcome::Exhausted
}

/// Items that are connected in time, by indices.
fn components(items: &[Item]) -> Vec<Vec<usize>> {
    let spans = Sections::new(items).spans;
    let mut by_start: Vec<usize> = (0..items.len()).collect();
    by_start.sort_by_key(|&i| spans[i].start);
    let mut components: Vec<Vec<usize>> = Vec::new();
    let mut end = 0;
    for i in by_start {
        match components.last_mut() {
            Some(component) if spans[i].start < end => component.push(i),
            Some(_) | None => components.push(vec![i]),
        }
        end = end.max(spans[i].end);
    }
    components
}

/// An order in which items that failed most have moved to the front.
fn corrected(order: &[usize], conflicts: &[u64], weight: f64) -> Vec<u32> {
    let most = conflicts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let place = |(rank, &i): (usize, &usize)| {
        let moved = weight * (conflicts[i] as f64 / most);
        (rank as f64 / order.len() as f64 - moved, i as u32)
    };
    let mut places: Vec<(f64, u32)> = order.iter().enumerate().map(place).collect();
    places.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    places.into_iter().map(|(_, i)| i).collect()
}

/// 1, 1, 2, 1, 1, 2, 4, 1, 1, 2, ... for 1, 2, 3, ...
fn luby(i: u64) -> u64 {
    let bits = u64::BITS - i.leading_zeros();
    if i + 1 == 1 << bits {
        1 << (bits - 1)
    } else {
        luby(i + 1 - (1 << (bits - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::luby;

    #[test]
    fn turns_follow_lubys_sequence() {
        let turns: Vec<u64> = (1..=15).map(luby).collect();
        assert_eq!(turns, [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]);
    }
}
