//! How the work of a step is cut into tiles. Bits do not depend on it.

use std::ops::Range;

use omex_kernels::KernelSpec;
use omex_plan::{Arg, PageId, Phase, Plan, Step};

use super::pass::{Pass, Span};

/// Tiles per thread of a step: enough to even out a preempted core, few
/// enough that claiming costs nothing.
const TILES_PER_THREAD: u32 = 6;

/// Fewest queries of a tile of attention, where there are more tiles than threads: computing
/// so many takes longer than reading their keys and values.
const QUERIES_PER_TILE: u32 = 16;

/// Consecutive panels of a matmul that lie in one page, and where: their tensor and
/// its pieces are not in the cache when a pass comes to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PanelTile {
    pub(super) page: PageId,
    pub(super) first_panel: u32,
    pub(super) panels: u32,
    /// Of the first panel, from the page's start.
    pub(super) offset: u64,
}

/// Queries of a span: head by head of the key-value heads, column by column of a head,
/// those of its group. Those of a head share its keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueryTile {
    pub(super) span: Span,
    /// Of the span.
    pub(super) first_column: u32,
    pub(super) first: u32,
    pub(super) end: u32,
}

/// How the queries of a span are cut into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    kv_heads: u32,
    /// Of a key-value head.
    queries: u32,
    /// Queries of a tile, at most.
    size: u32,
    /// Whether tiles go on from one head to the next.
    across: bool,
}

impl Cut {
    fn tiles(self) -> u32 {
        match self.across {
            true => (self.kv_heads * self.queries).div_ceil(self.size),
            false => self.kv_heads * self.queries.div_ceil(self.size),
        }
    }

    /// The queries of a tile. Tiles of the first columns of all heads come first.
    fn tile(self, tile: u32) -> Range<u32> {
        let (first, end) = match self.across {
            true => (tile * self.size, self.kv_heads * self.queries),
            false => {
                let head = tile % self.kv_heads * self.queries;
                (head + tile / self.kv_heads * self.size, head + self.queries)
            }
        };
        first..end.min(first + self.size)
    }
}

/// The tiles of all steps of a plan for a number of threads.
#[derive(Debug)]
pub(super) struct Tiles {
    threads: u32,
    panel_tiles: Vec<PanelTile>,
    /// Per step: its first panel tile, and one more at the end.
    first: Vec<u32>,
}

/// Work of one step that a thread claims at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Panels(PanelTile),
    Units { first: u32, end: u32 },
    Queries(QueryTile),
}

fn panels_per_tile(panels: u32, threads: u32) -> u32 {
    panels.div_ceil(threads * TILES_PER_THREAD).max(1)
}

/// Bytes of a plan's tiles for its largest number of threads, at most.
pub fn tiles_bytes_max(plan: &Plan) -> u64 {
    let tiles = panel_tiles_max(plan, plan.threads_max);
    tiles * size_of::<PanelTile>() as u64 + (plan.steps.len() as u64 + 1) * 4
}

/// Largest number of panel tiles of a plan: one per wished tile and piece.
fn panel_tiles_max(plan: &Plan, threads: u32) -> u64 {
    let steps = plan.steps.iter();
    steps
        .map(|step| match matmul_pieces(plan, step) {
            Some(pieces) => pieces as u64 + (threads * TILES_PER_THREAD) as u64,
            None => 0,
        })
        .sum()
}

fn matmul_pieces(plan: &Plan, step: &Step) -> Option<usize> {
    match (plan.kernels[step.kernel.index()].spec(), step.args[0]) {
        (KernelSpec::Matmul { .. }, Arg::Tensor(id)) => {
            Some(plan.weights.tensors[id.index()].pieces.len())
        }
        _ => None,
    }
}

impl Tiles {
    pub(super) fn new(plan: &Plan, threads: u32) -> Tiles {
        let mut tiles = Tiles {
            threads,
            panel_tiles: Vec::with_capacity(panel_tiles_max(plan, threads) as usize),
            first: Vec::with_capacity(plan.steps.len() + 1),
        };
        for step in &plan.steps {
            tiles.first.push(tiles.panel_tiles.len() as u32);
            let spec = plan.kernels[step.kernel.index()].spec();
            if let (&KernelSpec::Matmul { format, k, .. }, Arg::Tensor(id)) = (spec, step.args[0]) {
                let (first, end) = match step.panels {
                    Some(range) => (range.first, range.first + range.count),
                    None => (0, spec.units(1)),
                };
                let size = panels_per_tile(end - first, threads);
                let pieces = &plan.weights.tensors[id.index()].pieces;
                let panel_bytes = format.panel_bytes(k);
                for piece in pieces {
                    let page = &plan.weights.pages[piece.page.index()];
                    let piece_end = piece.offset + u64::from(piece.units) * panel_bytes;
                    assert!(piece_end <= page.bytes, "piece outside its page");
                    let begin = first.max(piece.first_unit);
                    let end = end.min(piece.first_unit + piece.units);
                    for first in (begin..end).step_by(size as usize) {
                        tiles.panel_tiles.push(PanelTile {
                            page: piece.page,
                            first_panel: first,
                            panels: size.min(end - first),
                            offset: piece.offset
                                + u64::from(first - piece.first_unit) * panel_bytes,
                        });
                    }
                }
            }
        }
        tiles.first.push(tiles.panel_tiles.len() as u32);
        tiles
    }

    /// Units per tile of a step of neither matmul nor attention.
    fn units_per_tile(&self, units: u32) -> u32 {
        units.div_ceil(self.threads * TILES_PER_THREAD).max(1)
    }

    /// How `queries` of each of a span's key-value heads are cut, where a pass has
    /// `all_heads` of them. A tile reads all keys and values of its heads, so few queries of
    /// a head are together, unless threads would then have much less to do than others.
    fn cut(&self, all_heads: u32, kv_heads: u32, queries: u32) -> Cut {
        let threads = self.threads;
        let even = (threads * TILES_PER_THREAD).div_ceil(all_heads);
        let wished = (threads / all_heads).max(even.min(queries / QUERIES_PER_TILE));
        let tiles_per_head = wished.max(1);
        let tiles = all_heads * tiles_per_head;
        let uneven = 4 * tiles.div_ceil(threads) * threads > 5 * tiles;
        let across = uneven && queries < 2 * QUERIES_PER_TILE;
        let size = match across {
            true => (all_heads * queries).div_ceil(threads),
            false => queries.div_ceil(tiles_per_head),
        };
        Cut {
            kv_heads,
            queries,
            size: size.max(1),
            across,
        }
    }

    /// Of each span of a pass over attention: its first column, and how it is cut.
    fn cuts(
        &self,
        pass: Pass<'_>,
        heads: u32,
        kv_heads: u32,
    ) -> impl Iterator<Item = (u32, Span, Cut)> {
        let all_heads = kv_heads * pass.spans.len() as u32;
        pass.placed_spans().map(move |(first_column, span)| {
            let queries = span.columns * (heads / kv_heads);
            (first_column, span, self.cut(all_heads, kv_heads, queries))
        })
    }

    fn query_tile(&self, pass: Pass<'_>, heads: u32, kv_heads: u32, mut tile: u32) -> QueryTile {
        for (first_column, span, cut) in self.cuts(pass, heads, kv_heads) {
            if tile < cut.tiles() {
                let Range { start, end } = cut.tile(tile);
                return QueryTile {
                    span,
                    first_column,
                    first: start,
                    end,
                };
            }
            tile -= cut.tiles();
        }
        unreachable!("a tile outside the pass")
    }

    fn count(&self, plan: &Plan, step: usize, pass: Pass<'_>) -> u32 {
        let panels = self.first[step + 1] - self.first[step];
        if panels > 0 {
            return panels;
        }
        let kernel = plan.steps[step].kernel;
        match plan.kernels[kernel.index()].spec() {
            &KernelSpec::Attention {
                heads, kv_heads, ..
            } => {
                let cuts = self.cuts(pass, heads, kv_heads);
                cuts.map(|(_, _, cut)| cut.tiles()).sum()
            }
            spec => {
                let units = pass.units(spec);
                units.div_ceil(self.units_per_tile(units))
            }
        }
    }

    /// Number of tiles of a phase of a pass.
    pub(super) fn of_phase(&self, plan: &Plan, phase: Phase, pass: Pass<'_>) -> u32 {
        let steps = phase.first_step..phase.first_step + phase.steps;
        steps
            .map(|step| self.count(plan, step as usize, pass))
            .sum()
    }

    /// The step and work of tile `tile` of a phase.
    pub(super) fn find(
        &self,
        plan: &Plan,
        phase: Phase,
        pass: Pass<'_>,
        mut tile: u32,
    ) -> (usize, Work) {
        let mut step = phase.first_step as usize;
        let count = loop {
            let count = self.count(plan, step, pass);
            if tile < count {
                break count;
            }
            tile -= count;
            step += 1;
        };
        if self.first[step + 1] > self.first[step] {
            let panels = self.panel_tiles[(self.first[step] + tile) as usize];
            return (step, Work::Panels(panels));
        }
        let kernel = plan.steps[step].kernel;
        let work = match plan.kernels[kernel.index()].spec() {
            &KernelSpec::Attention {
                heads, kv_heads, ..
            } => {
                // The last queries of a head see the most positions: what is left at the
                // end is the least work.
                Work::Queries(self.query_tile(pass, heads, kv_heads, count - 1 - tile))
            }
            spec => {
                let units = pass.units(spec);
                let size = self.units_per_tile(units);
                let first = tile * size;
                let end = units.min(first + size);
                Work::Units { first, end }
            }
        };
        (step, work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiles(threads: u32) -> Tiles {
        Tiles {
            threads,
            panel_tiles: Vec::new(),
            first: Vec::new(),
        }
    }

    #[test]
    fn few_queries_of_a_head_are_together() {
        for (threads, kv_heads, queries, size, across) in [
            (1, 3, 3, 3, false),
            (2, 8, 4, 4, false),
            (4, 8, 4, 4, false),
            (2, 5, 3, 3, false),
            // Heads for some threads alone.
            (2, 1, 4, 2, false),
            (4, 1, 4, 1, false),
            (4, 2, 7, 4, false),
            (8, 1, 3, 1, false),
            // One head more for one thread than for others.
            (2, 3, 3, 5, true),
            (3, 2, 7, 5, true),
            (4, 3, 3, 3, true),
            // Of many, all threads have some to go on with.
            (2, 3, 60, 20, false),
            (2, 3, 1536, 384, false),
            (4, 8, 2048, 683, false),
        ] {
            let cut = tiles(threads).cut(kv_heads, kv_heads, queries);
            let case = format!("{threads} threads, {kv_heads} x {queries}");
            assert_eq!((cut.size, cut.across), (size, across), "{case}");
        }
    }

    #[test]
    fn every_query_is_in_one_tile() {
        let span = |sequence, columns| Span {
            sequence,
            position: 9,
            columns,
        };
        for spans in [
            &[span(0, 1)][..],
            &[span(1, 5), span(0, 1), span(2, 300)],
            &[span(0, 1), span(1, 1)],
        ] {
            let pass = Pass::body(spans);
            for (threads, heads, kv_heads) in
                [(1, 9, 3), (2, 9, 3), (2, 4, 1), (3, 14, 2), (8, 8, 8)]
            {
                let tiles = tiles(threads);
                let cuts = tiles.cuts(pass, heads, kv_heads);
                let count: u32 = cuts.map(|(_, _, cut)| cut.tiles()).sum();
                let mut seen: Vec<(u32, u32)> = (0..count)
                    .map(|tile| tiles.query_tile(pass, heads, kv_heads, tile))
                    .flat_map(|t| {
                        assert!(t.first < t.end && t.end <= t.span.columns * heads);
                        (t.first..t.end).map(move |query| (t.first_column, query))
                    })
                    .collect();
                seen.sort_unstable();
                let all = pass
                    .placed_spans()
                    .flat_map(|(first, span)| (0..span.columns * heads).map(move |q| (first, q)));
                assert!(seen.into_iter().eq(all));
            }
        }
    }
}
