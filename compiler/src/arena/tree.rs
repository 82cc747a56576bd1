//! The tree of layouts within a limit, searched depth first, after MiniMalloc
//! (Moffitt, "MiniMalloc: A Lightweight Memory Allocator for
//! Hardware-Accelerated Machine Learning", ASPLOS 2023).
//!
//! Take a layout whose sum of offsets is the least: no item of it can be
//! moved down. Such a layout is built from below. Of the items that are not
//! placed, the one that can lie lowest either lies there, or never does: then
//! it is *postponed*, until an item that overlaps it in time is placed. A node
//! of the tree tries both, and ends when
//! - a section of time cannot hold what is still to be placed in it, above the
//!   lowest offset that one of these can have, or
//! - nothing can keep a postponed item from being moved down to where it does
//!   not lie.
//!
//! Where no unplaced item crosses a border between sections, both sides are
//! solved on their own.
//!
//! What is below the unplaced items matters by their lowest offsets alone, so
//! a failure holds for every node with equal ones: different ways to build the
//! same ground, and later searches in other orders, do not fail again.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use super::Item;
use super::sections::Sections;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Solved,
    Impossible,
    /// The nodes did not suffice to tell.
    OutOfNodes,
}

/// An item, with its lifetime in sections.
struct Piece {
    bytes: u64,
    /// A power of two.
    align: u64,
    first: u32,
    end: u32,
}

impl Piece {
    fn overlaps(&self, other: &Piece) -> bool {
        self.first < other.end && other.first < self.end
    }

    fn span(&self) -> Range<usize> {
        self.first as usize..self.end as usize
    }

    /// The borders between its sections, each by the section behind it.
    fn borders(&self) -> Range<usize> {
        self.first as usize + 1..self.end as usize
    }
}

/// A piece that a node has not placed.
#[derive(Clone, Copy)]
struct Open {
    piece: u32,
    /// The lowest offset above the placed pieces that overlap it.
    lowest: u64,
    /// It lies no lower; above `lowest` when it is postponed.
    bound: u64,
}

impl Open {
    fn is_postponed(&self) -> bool {
        self.bound > self.lowest
    }
}

pub(super) struct Tree {
    limit: u64,
    nodes_left: u64,
    pieces: Vec<Piece>,
    /// Per piece: sections with it that could not hold their pieces.
    conflicts: Vec<u64>,
    /// The open pieces of every node on the way from the root, the current
    /// node's last; of each node in the order of the search.
    open: Vec<Open>,
    /// Placed pieces and their offsets.
    placed: Vec<(u32, u64)>,
    /// Per section: bytes of the open pieces.
    open_bytes: Vec<u64>,
    /// Per border: open pieces on both of its sides.
    crossing: Vec<u32>,
    /// Per section, while sections are checked: the least bound of a piece.
    floors: Vec<u64>,
    /// Nodes that have no solution.
    impossible: HashSet<u128, BuildHasherDefault<KeyHasher>>,
}

impl Tree {
    /// Layouts of at most `limit` bytes.
    pub(super) fn new(items: &[Item], limit: u64) -> Tree {
        let sections = Sections::new(items);
        let piece = |(item, span): (&Item, &Range<u32>)| Piece {
            bytes: item.padded_bytes(),
            align: item.align,
            first: span.start,
            end: span.end,
        };
        let pieces: Vec<Piece> = items.iter().zip(&sections.spans).map(piece).collect();
        let mut open_bytes = vec![0; sections.count];
        let mut crossing = vec![0; sections.count];
        for piece in &pieces {
            open_bytes[piece.span()]
                .iter_mut()
                .for_each(|open| *open += piece.bytes);
            crossing[piece.borders()].iter_mut().for_each(|c| *c += 1);
        }
        Tree {
            limit,
            nodes_left: 0,
            conflicts: vec![0; pieces.len()],
            pieces,
            open: Vec::new(),
            placed: Vec::new(),
            open_bytes,
            crossing,
            floors: vec![0; sections.count],
            impossible: HashSet::default(),
        }
    }

    /// Searches from the root: of pieces that can lie equally low, the first in
    /// the order goes first. Takes the visited nodes off `nodes_left`.
    pub(super) fn search(&mut self, order: &[u32], nodes_left: &mut u64) -> Verdict {
        if self.open_bytes.iter().any(|&open| open > self.limit) {
            return Verdict::Impossible;
        }
        self.nodes_left = *nodes_left;
        let open = order.iter().map(|&piece| Open {
            piece,
            lowest: 0,
            bound: 0,
        });
        self.open.extend(open);
        let verdict = self.components(0);
        if verdict != Verdict::Solved {
            self.take_back(0);
        }
        self.open.clear();
        *nodes_left = self.nodes_left;
        verdict
    }

    /// The offsets of all items, after they were found.
    pub(super) fn offsets(&self) -> Vec<u64> {
        let mut offsets = vec![0; self.pieces.len()];
        for &(piece, offset) in &self.placed {
            offsets[piece as usize] = offset;
        }
        offsets
    }

    /// Per item, how often it was part of a failure.
    pub(super) fn conflicts(&self) -> &[u64] {
        &self.conflicts
    }

    /// Forgets half of the failures that were counted.
    pub(super) fn fade_conflicts(&mut self) {
        self.conflicts.iter_mut().for_each(|c| *c /= 2);
    }

    /// Solves the open pieces from `base` on, component by component.
    fn components(&mut self, base: usize) -> Verdict {
        let end = self.open.len();
        let mut spans: Vec<Range<u32>> = self.open[base..end]
            .iter()
            .map(|open| &self.pieces[open.piece as usize])
            .map(|piece| piece.first..piece.end)
            .collect();
        spans.sort_unstable_by_key(|span| span.start);
        let mut components: Vec<(usize, Range<u32>)> = Vec::new();
        for span in spans {
            match components.last_mut() {
                Some((pieces, all)) if span.start < all.end => {
                    *pieces += 1;
                    all.end = all.end.max(span.end);
                }
                Some(_) | None => components.push((1, span)),
            }
        }
        // A small one fails soonest.
        components.sort_by_key(|(pieces, _)| *pieces);
        let mark = self.placed.len();
        for (_, all) in components {
            for i in base..end {
                let open = self.open[i];
                if all.contains(&self.pieces[open.piece as usize].first) {
                    self.open.push(open);
                }
            }
            let verdict = self.component(end);
            self.open.truncate(end);
            if verdict != Verdict::Solved {
                self.take_back(mark);
                return verdict;
            }
        }
        Verdict::Solved
    }

    /// Solves the open pieces from `base` on, which are connected in time.
    fn component(&mut self, base: usize) -> Verdict {
        let end = self.open.len();
        if let [only] = self.open[base..] {
            if only.is_postponed() {
                return Verdict::Impossible;
            }
            self.place(only.piece, only.lowest);
            return Verdict::Solved;
        }
        let key = self.key(base);
        if self.impossible.contains(&key) {
            return Verdict::Impossible;
        }
        while let Some(at) = self.lowest(base) {
            if self.nodes_left == 0 {
                return Verdict::OutOfNodes;
            }
            self.nodes_left -= 1;
            let Open { piece, lowest, .. } = self.open[at];
            if self.push_child(base..end, piece, lowest) {
                let mark = self.placed.len();
                let verdict = if self.place(piece, lowest) {
                    self.components(end)
                } else {
                    self.component(end)
                };
                if verdict != Verdict::Impossible {
                    return verdict;
                }
                self.take_back(mark);
            }
            self.open.truncate(end);
            self.open[at].bound += 1;
            let span = self.pieces[piece as usize].span();
            if !self.raise_postponed(base..end, at) || !self.sections_hold(base..end, span, None) {
                break;
            }
        }
        self.impossible.insert(key);
        Verdict::Impossible
    }

    /// The open piece to decide about.
    fn lowest(&self, base: usize) -> Option<usize> {
        (base..self.open.len())
            .filter(|&i| !self.open[i].is_postponed())
            .min_by_key(|&i| self.open[i].lowest)
    }

    /// Appends a node's open pieces as they are when one of them is placed.
    /// False when that leaves no solution.
    fn push_child(&mut self, parent: Range<usize>, placed: u32, offset: u64) -> bool {
        let piece = &self.pieces[placed as usize];
        let top = offset + piece.bytes;
        let span = piece.span();
        let over = |open: u64| open > piece.bytes && top + (open - piece.bytes) > self.limit;
        if let Some(section) = span.clone().find(|&s| over(self.open_bytes[s])) {
            self.blame(parent, section);
            return false;
        }
        let base = parent.end;
        // The sections in which something changes.
        let mut changed = span.clone();
        let mut any_postponed = false;
        for i in parent {
            let mut open = self.open[i];
            if open.piece == placed {
                continue;
            }
            let other = &self.pieces[open.piece as usize];
            let raised = align_up(top, other.align);
            if open.lowest < raised && other.overlaps(&self.pieces[placed as usize]) {
                if raised + other.bytes > self.limit {
                    return false;
                }
                open.lowest = raised;
                open.bound = open.bound.max(raised);
                changed.start = changed.start.min(other.first as usize);
                changed.end = changed.end.max(other.end as usize);
            }
            any_postponed |= open.is_postponed();
            self.open.push(open);
        }
        let child = base..self.open.len();
        if any_postponed {
            for i in child.clone() {
                let span = self.pieces[self.open[i].piece as usize].span();
                let affected = span.start < changed.end && changed.start < span.end;
                if self.open[i].is_postponed()
                    && affected
                    && !self.raise_postponed(child.clone(), i)
                {
                    return false;
                }
            }
        }
        self.sections_hold(child, changed, Some(placed))
    }

    /// Raises the bound of a postponed piece: another open piece is to lie
    /// where it could lie, and it lies above that one. False when none can.
    fn raise_postponed(&mut self, node: Range<usize>, at: usize) -> bool {
        let open = self.open[at];
        let piece = &self.pieces[open.piece as usize];
        let top = open.lowest + piece.bytes;
        let mut bound = u64::MAX;
        for other in &self.open[node] {
            let blocking = &self.pieces[other.piece as usize];
            if other.bound < top && other.piece != open.piece && blocking.overlaps(piece) {
                bound = bound.min(other.bound + blocking.bytes);
            }
        }
        if bound == u64::MAX {
            return false;
        }
        let bound = align_up(bound.max(open.bound), piece.align);
        self.open[at].bound = bound;
        bound + piece.bytes <= self.limit
    }

    /// Whether these sections can hold a node's open pieces, one of which is
    /// placed but still counted.
    fn sections_hold(
        &mut self,
        node: Range<usize>,
        sections: Range<usize>,
        placed: Option<u32>,
    ) -> bool {
        self.floors[sections.clone()].fill(u64::MAX);
        for open in &self.open[node.clone()] {
            let span = self.pieces[open.piece as usize].span();
            let span = span.start.max(sections.start)..span.end.min(sections.end);
            if span.start < span.end {
                for floor in &mut self.floors[span] {
                    *floor = (*floor).min(open.bound);
                }
            }
        }
        let placed = placed.map(|p| &self.pieces[p as usize]);
        let failing = sections.clone().find(|&s| {
            let counted = placed.filter(|p| p.span().contains(&s));
            let open_bytes = self.open_bytes[s] - counted.map_or(0, |p| p.bytes);
            // Without pieces there is no floor.
            open_bytes > 0 && self.floors[s] + open_bytes > self.limit
        });
        if let Some(section) = failing {
            self.blame(node, section);
        }
        failing.is_none()
    }

    /// Counts a failure of a section to its open pieces.
    fn blame(&mut self, node: Range<usize>, section: usize) {
        for open in &self.open[node] {
            if self.pieces[open.piece as usize].span().contains(&section) {
                self.conflicts[open.piece as usize] += 1;
            }
        }
    }

    /// True when the open pieces may fall apart.
    fn place(&mut self, p: u32, offset: u64) -> bool {
        self.placed.push((p, offset));
        let piece = &self.pieces[p as usize];
        for open in &mut self.open_bytes[piece.span()] {
            *open -= piece.bytes;
        }
        let mut splits = false;
        for crossing in &mut self.crossing[piece.borders()] {
            *crossing -= 1;
            splits |= *crossing == 0;
        }
        splits
    }

    /// Undoes placements until so many are left.
    fn take_back(&mut self, left: usize) {
        for (p, _) in self.placed.drain(left..) {
            let piece = &self.pieces[p as usize];
            for open in &mut self.open_bytes[piece.span()] {
                *open += piece.bytes;
            }
            for crossing in &mut self.crossing[piece.borders()] {
                *crossing += 1;
            }
        }
    }

    /// Names a node by its open pieces, whatever their order. Of 128 bits:
    /// equal names of different nodes would make a wrong proof.
    fn key(&self, base: usize) -> u128 {
        let (mut high, mut low) = (0u64, 0u64);
        for open in &self.open[base..] {
            let state = mix(u64::from(open.piece) << 48 ^ open.lowest) ^ open.bound;
            high = high.wrapping_add(mix(state));
            low = low.wrapping_add(mix(!state));
        }
        u128::from(high) << 64 | u128::from(low)
    }
}

/// The least multiple of a power of two that is not below `x`.
const fn align_up(x: u64, align: u64) -> u64 {
    (x + (align - 1)) & !(align - 1)
}

/// The finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Keys are mixed already.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are of 128 bits");
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}
