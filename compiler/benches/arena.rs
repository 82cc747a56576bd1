//! The arena planner: `cargo bench -p omex-compiler --bench arena`.
//!
//! Rectangles cut to pieces, so that the optimum is known; every layout is
//! checked to have it.

#[path = "../tests/common/puzzles.rs"]
mod puzzles;

use criterion::{Criterion, criterion_group, criterion_main};
use omex_compiler::arena::{Effort, solve};
use puzzles::{Cuts, Puzzle};

const EFFORT: Effort = Effort {
    search_nodes_max: 1 << 17,
};

fn arena(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("arena");
    group.sample_size(10);
    for cuts in [Cuts::Guillotine, Cuts::Pinwheels] {
        for (pieces, missing_percent) in [(50, 0), (150, 5), (300, 0)] {
            let puzzle = Puzzle {
                cuts,
                pieces,
                missing_percent,
                align: 64,
                seed: 1,
            };
            let problem = puzzle.problem();
            let layout = solve(&problem, EFFORT);
            assert_eq!(layout.bytes, puzzle.height_bytes(), "{puzzle:?}");
            let name = format!(
                "{cuts:?}, {pieces} pieces, {missing_percent} % missing, {} nodes",
                layout.search_nodes
            );
            group.bench_function(name, |b| b.iter(|| solve(&problem, EFFORT)));
        }
    }
    group.finish();
}

criterion_group!(benches, arena);
criterion_main!(benches);
