//! Goes through the phases of a pass, on all threads.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use omex_kernels::KernelSpec;
use omex_kernels::attention::Queries;
use omex_plan::Phase;

use crate::exec::ahead::{Ahead, COLUMNS_AHEAD};
use crate::exec::machine::Machine;
use crate::exec::pass::Pass;
use crate::exec::tile::{Tiles, Work};
use crate::pool::{Member, Pool};

impl Machine {
    /// Runs `phases`, which are the plan's from phase `first` on or parts of
    /// them, on the pool. Returns the earliest step that met a value that is
    /// NaN or infinite, if one did; later phases are then left out, as they are
    /// when pages cannot be brought.
    pub(in crate::exec) fn run(
        &mut self,
        pool: &mut Pool,
        tiles: &Tiles,
        first: usize,
        phases: &[Phase],
        pass: Pass<'_>,
    ) -> Option<usize> {
        const NONE: u32 = u32::MAX;
        let machine = &*self;
        let plan = machine.plan();
        // All work of a phase is done even when some of it fails, so which step
        // is the earliest does not depend on the threads.
        let failed = AtomicU32::new(NONE);
        pool.run(&|team| {
            let (mut number, mut rest) = (first, phases);
            let mut ahead = Ahead::default();
            // Not in the cell itself, where moving them would take stack twice.
            let mut queries = Queries::default();
            let queries = RefCell::new(&mut queries);
            while let [phase, behind @ ..] = rest {
                let run = plan.phases_of_barrier(rest, pass.columns);
                let (small, next) = behind.split_at(run - 1);
                if pass.columns <= COLUMNS_AHEAD {
                    machine.operands.prefetch(plan, small, next);
                }
                let count = |phase| tiles.of_phase(plan, phase, pass);
                let compute = |number: usize, phase: Phase, tile: u32| {
                    if !machine.pages.enter(number, tile == 0) {
                        return false;
                    }
                    let (index, work) = tiles.find(plan, phase, pass, tile);
                    // SAFETY: a tile is claimed by one thread, or all are computed
                    // by one between two phases; a barrier lies between phases that
                    // threads share, and `&mut self` excludes other passes.
                    let result = unsafe {
                        machine.compute(machine.call(index), work, pass, *queries.borrow_mut())
                    };
                    if result.is_err() {
                        failed.fetch_min(index as u32, Ordering::Relaxed);
                    }
                    result.is_ok()
                };
                let small = || {
                    (number + 1..).zip(small).all(|(number, &phase)| {
                        let tiles = 0..count(phase);
                        tiles.fold(true, |ok, tile| compute(number, phase, tile) & ok)
                    })
                };
                let tile = |tile| compute(number, *phase, tile);
                let mut aimed = false;
                let idle = || {
                    if !aimed {
                        aimed = true;
                        machine.aim(&mut ahead, team, tiles, number + run, next, pass);
                    }
                    ahead.fetch()
                };
                if !team.phase_then(count(*phase), tile, small, idle) {
                    break;
                }
                (number, rest) = (number + run, next);
            }
        });
        Some(failed.into_inner())
            .filter(|&step| step != NONE)
            .map(|step| step as usize)
    }

    /// Aims at the panels that a thread begins with in the first of `phases`, the
    /// plan's from phase `first` on, that has any, when reading them bounds the
    /// phase and they are in memory.
    fn aim(
        &self,
        ahead: &mut Ahead,
        member: &Member,
        tiles: &Tiles,
        first: usize,
        phases: &[Phase],
        pass: Pass,
    ) {
        if pass.columns > COLUMNS_AHEAD {
            return;
        }
        let plan = self.plan();
        for (number, &phase) in (first..).zip(phases) {
            let share = member.share(tiles.of_phase(plan, phase, pass));
            let of_tile = |tile| tiles.find(plan, phase, pass, tile);
            if share.is_empty() {
                continue;
            }
            let (index, Work::Panels(first)) = of_tile(share.start) else {
                continue;
            };
            if !self.pages.is_ready(number) {
                return;
            }
            let panels = match of_tile(share.end - 1) {
                (step, Work::Panels(last)) if step == index && last.page == first.page => {
                    last.first_panel + last.panels - first.first_panel
                }
                _ => first.panels,
            };
            let step = &plan.steps[index];
            let spec = plan.kernels[step.kernel.index()].spec();
            let &KernelSpec::Matmul { format, k, .. } = spec else {
                unreachable!("panel tiles belong to matmuls")
            };
            let bytes = u64::from(panels) * format.panel_bytes(k);
            let weights = self.panels(first, bytes);
            ahead.aim(index, weights.start.addr(), weights.len);
            return;
        }
    }
}
