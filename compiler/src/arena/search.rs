//! Exact search for a layout within a limit, after MiniMalloc (Moffitt,
//! ASPLOS 2023).
//!
//! Every layout can be pushed down until each item rests on the bottom or on
//! an item below it, so only such layouts are looked for, and each in one way:
//! items are placed by ascending offset, ties by index. The offset of the next
//! item follows from those below it. A branch ends as soon as
//! - some section of time cannot hold what is still to be placed in it, or
//! - an item would be placed above the end that another one could have: the
//!   other fits underneath, so the branch where it goes first is no worse.
//!
//! Where no unplaced item crosses a border between sections, both sides are
//! solved on their own. Several orders of trying take turns with growing node
//! limits: a bad first choice costs an order everything, but rarely all of
//! them.

use super::{ItemId, Problem};

/// Nodes of each order's first turn.
const TURN_NODES: u64 = 1 << 6;

pub(super) enum Outcome {
    /// The offset of every item.
    Found(Vec<u64>),
    /// There is no such layout.
    Infeasible,
    /// The nodes did not suffice to tell.
    Exhausted,
}

/// Looks for a layout of at most `limit` bytes, trying items in the orders.
/// Takes the visited nodes off `nodes_left`.
pub(super) fn search(
    problem: &Problem,
    orders: &[Vec<ItemId>],
    limit: u64,
    nodes_left: &mut u64,
) -> Outcome {
    let mut states: Vec<State> = orders
        .iter()
        .map(|order| State::new(problem, order, limit))
        .collect();
    let mut turn = TURN_NODES;
    while *nodes_left > 0 {
        for (state, order) in states.iter_mut().zip(orders) {
            let nodes_max = turn.min(*nodes_left);
            let (result, nodes) = state.solve(nodes_max);
            *nodes_left -= nodes;
            match result {
                Some(true) => return Outcome::Found(state.offsets_by_item(order)),
                Some(false) => return Outcome::Infeasible,
                None => state.take_back(0),
            }
        }
        turn *= 2;
    }
    Outcome::Exhausted
}

/// An item in the order of trying, with its lifetime in sections.
#[derive(Clone, Default)]
struct Piece {
    bytes: u64,
    align: u64,
    first: u32,
    end: u32,
    /// Pieces that live at the same time.
    neighbours: Vec<u32>,
}

struct State {
    limit: u64,
    nodes: u64,
    nodes_max: u64,
    pieces: Vec<Piece>,
    placed: Vec<bool>,
    /// The offset of a placed piece; the lowest possible one of another.
    offsets: Vec<u64>,
    /// Per section: bytes to be placed in it, and where its placed ones end.
    open_bytes: Vec<u64>,
    floors: Vec<u64>,
    /// Per border between a section and the one before it: unplaced pieces
    /// that live on both sides.
    crossing: Vec<u32>,
    /// Undone when a branch ends.
    trail: Vec<Change>,
}

enum Change {
    /// A piece was placed.
    Placed(u32),
    /// A piece's lowest offset, or a section's floor, and what it was before.
    Offset(u32, u64),
    Floor(u32, u64),
}

/// The place in the order of placing that a branch has reached.
#[derive(Clone, Copy)]
struct Last {
    offset: u64,
    /// Pieces at the same offset have larger indices, but for the first.
    piece: Option<u32>,
}

impl State {
    fn new(problem: &Problem, order: &[ItemId], limit: u64) -> State {
        let mut times: Vec<u32> = (problem.items.iter())
            .flat_map(|item| [item.lower, item.upper])
            .collect();
        times.sort_unstable();
        times.dedup();
        let section = |time: u32| times.partition_point(|&t| t < time) as u32;
        let sections = times.len();
        let mut state = State {
            limit,
            nodes: 0,
            nodes_max: 0,
            pieces: Vec::with_capacity(order.len()),
            placed: vec![false; order.len()],
            offsets: vec![0; order.len()],
            open_bytes: vec![0; sections],
            floors: vec![0; sections],
            crossing: vec![0; sections],
            trail: Vec::new(),
        };
        for id in order {
            let item = &problem.items[id.index()];
            let overlaps = |other: &ItemId| item.overlaps(&problem.items[other.index()]);
            let piece = Piece {
                bytes: item.padded_bytes(),
                align: item.align,
                first: section(item.lower),
                end: section(item.upper),
                neighbours: (0u32..)
                    .zip(order)
                    .filter(|(_, other)| *other != id && overlaps(other))
                    .map(|(i, _)| i)
                    .collect(),
            };
            state.count(&piece, 1);
            state.pieces.push(piece);
        }
        state
    }

    /// Adds a piece to the sections' open ones, or takes it away.
    fn count(&mut self, piece: &Piece, sign: i64) {
        let (first, end) = (piece.first as usize, piece.end as usize);
        let bytes = piece.bytes.wrapping_mul(sign as u64);
        for open in &mut self.open_bytes[first..end] {
            *open = open.wrapping_add(bytes);
        }
        for crossing in &mut self.crossing[first + 1..end] {
            *crossing = crossing.wrapping_add(sign as u32);
        }
    }

    fn offsets_by_item(&self, order: &[ItemId]) -> Vec<u64> {
        let mut offsets = vec![0; order.len()];
        for (piece, id) in order.iter().enumerate() {
            offsets[id.index()] = self.offsets[piece];
        }
        offsets
    }

    /// Whether there is a layout, `None` when the nodes did not suffice to
    /// tell, and the nodes that were visited.
    fn solve(&mut self, nodes_max: u64) -> (Option<bool>, u64) {
        (self.nodes, self.nodes_max) = (0, nodes_max);
        let result = if self.open_bytes.iter().any(|&open| open > self.limit) {
            Some(false)
        } else {
            let all = (0..self.pieces.len() as u32).collect();
            let last = Last {
                offset: 0,
                piece: None,
            };
            self.components(all, last)
        };
        (result, self.nodes)
    }

    /// Solves unplaced pieces component by component. On failure everything is
    /// as it was.
    fn components(&mut self, pieces: Vec<u32>, last: Last) -> Option<bool> {
        let mark = self.trail.len();
        let mut by_start: Vec<u32> = pieces;
        by_start.sort_unstable_by_key(|&p| (self.pieces[p as usize].first, p));
        let mut rest = by_start.as_slice();
        let mut solved = true;
        while solved && !rest.is_empty() {
            let mut end = self.pieces[rest[0] as usize].end;
            let mut len = 1;
            while let Some(&next) = rest.get(len) {
                let next = &self.pieces[next as usize];
                if next.first >= end {
                    break;
                }
                end = end.max(next.end);
                len += 1;
            }
            let (component, behind) = rest.split_at(len);
            let mut component = component.to_vec();
            component.sort_unstable();
            solved = self.component(&component, last)?;
            rest = behind;
        }
        if !solved {
            self.take_back(mark);
        }
        Some(solved)
    }

    /// Solves connected unplaced pieces, which are in order. On failure
    /// everything is as it was.
    fn component(&mut self, pieces: &[u32], last: Last) -> Option<bool> {
        if self.nodes == self.nodes_max {
            return None;
        }
        self.nodes += 1;
        // Whatever lies at or above the lowest end that is possible leaves
        // room for that piece underneath.
        let ends = pieces.iter().map(|&p| {
            let at = self.offsets[p as usize].max(last.offset);
            at + self.pieces[p as usize].bytes
        });
        let lowest_end = ends.min().expect("components have pieces");
        for (index, &p) in pieces.iter().enumerate() {
            let offset = self.offsets[p as usize];
            let follows = match last.piece {
                None => true,
                Some(piece) => offset > last.offset || (offset == last.offset && p > piece),
            };
            if !follows || offset >= lowest_end {
                continue;
            }
            let mark = self.trail.len();
            let fits = self.place(p, pieces);
            if fits {
                let rest = [&pieces[..index], &pieces[index + 1..]].concat();
                let here = Last {
                    offset,
                    piece: Some(p),
                };
                let piece = &self.pieces[p as usize];
                let borders = piece.first as usize + 1..piece.end as usize;
                let splits = self.crossing[borders].contains(&0);
                let solved = if splits || rest.is_empty() {
                    self.components(rest, here)?
                } else {
                    self.component(&rest, here)?
                };
                if solved {
                    return Some(true);
                }
            }
            self.take_back(mark);
        }
        Some(false)
    }

    /// Places a piece at its lowest offset. False when some section cannot
    /// hold the rest any more.
    fn place(&mut self, p: u32, component: &[u32]) -> bool {
        // Taken out while the rest of the state changes.
        let piece = std::mem::take(&mut self.pieces[p as usize]);
        self.trail.push(Change::Placed(p));
        self.placed[p as usize] = true;
        self.count(&piece, -1);
        let offset = self.offsets[p as usize];
        let end = offset + piece.bytes;
        let mut fits = true;
        for section in piece.first..piece.end {
            let floor = &mut self.floors[section as usize];
            self.trail.push(Change::Floor(section, *floor));
            *floor = end;
            fits &= end + self.open_bytes[section as usize] <= self.limit;
        }
        for &neighbour in &piece.neighbours {
            let n = neighbour as usize;
            if self.placed[n] {
                continue;
            }
            let raised = end.next_multiple_of(self.pieces[n].align);
            if raised > self.offsets[n] {
                self.trail.push(Change::Offset(neighbour, self.offsets[n]));
                self.offsets[n] = raised;
                fits &= raised + self.pieces[n].bytes <= self.limit;
            }
        }
        self.pieces[p as usize] = piece;
        fits && self.sections_hold(component, offset)
    }

    /// Whether every section holds what is to be placed from `offset` on.
    fn sections_hold(&self, component: &[u32], offset: u64) -> bool {
        let first = component.iter().map(|&p| self.pieces[p as usize].first);
        let end = component.iter().map(|&p| self.pieces[p as usize].end);
        let (Some(first), Some(end)) = (first.min(), end.max()) else {
            return true;
        };
        (first as usize..end as usize).all(|s| {
            let open = self.open_bytes[s];
            open == 0 || self.floors[s].max(offset) + open <= self.limit
        })
    }

    /// Undoes the changes since the trail had this length.
    fn take_back(&mut self, mark: usize) {
        for change in self.trail.split_off(mark).into_iter().rev() {
            match change {
                Change::Placed(p) => {
                    let piece = std::mem::take(&mut self.pieces[p as usize]);
                    self.placed[p as usize] = false;
                    self.count(&piece, 1);
                    self.pieces[p as usize] = piece;
                }
                Change::Offset(piece, offset) => self.offsets[piece as usize] = offset,
                Change::Floor(section, floor) => self.floors[section as usize] = floor,
            }
        }
    }
}
