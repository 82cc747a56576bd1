//! How the work of a step is cut into tiles. Bits do not depend on it.

use omex_kernels::KernelSpec;
use omex_plan::{Arg, PageId, Phase, Plan, Step};

use super::pass::Pass;

/// Tiles per thread of a step: enough to even out a preempted core, few
/// enough that claiming costs nothing.
const TILES_PER_THREAD: u32 = 6;

/// Queries of a tile of attention over few columns.
const QUERIES_PER_TILE: u32 = 6;

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

    /// Units per tile of a step that is not a matmul.
    fn units_per_tile(&self, spec: &KernelSpec, units: u32) -> u32 {
        let even = units.div_ceil(self.threads * TILES_PER_THREAD).max(1);
        if let KernelSpec::Attention { .. } = spec {
            // Queries of a tile share their keys and values.
            let rounds = units.div_ceil(self.threads * QUERIES_PER_TILE).max(1);
            return even.max(units.div_ceil(self.threads * rounds));
        }
        even
    }

    fn count(&self, plan: &Plan, step: usize, pass: Pass<'_>) -> u32 {
        let panels = self.first[step + 1] - self.first[step];
        if panels > 0 {
            return panels;
        }
        let kernel = plan.steps[step].kernel;
        let spec = plan.kernels[kernel.index()].spec();
        let units = pass.units(spec);
        units.div_ceil(self.units_per_tile(spec, units))
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
        loop {
            let count = self.count(plan, step, pass);
            if tile < count {
                break;
            }
            tile -= count;
            step += 1;
        }
        if self.first[step + 1] > self.first[step] {
            let panels = self.panel_tiles[(self.first[step] + tile) as usize];
            return (step, Work::Panels(panels));
        }
        let kernel = plan.steps[step].kernel;
        let spec = plan.kernels[kernel.index()].spec();
        let units = pass.units(spec);
        let size = self.units_per_tile(spec, units);
        if let KernelSpec::Attention { .. } = spec {
            // The last queries see the most positions: what is left at the end is
            // the least work.
            tile = units.div_ceil(size) - 1 - tile;
        }
        let first = tile * size;
        let end = units.min(first + size);
        (step, Work::Units { first, end })
    }
}
