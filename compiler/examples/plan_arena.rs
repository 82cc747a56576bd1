//! Plans arenas that are given as tables.
//!
//! `plan_arena [--nodes N] FILE.csv...` reads lines of `id,lower,upper,size` under such a
//! heading, as the benchmarks of github.com/google/minimalloc have them: lifetimes are
//! half-open. It prints, for each: buffers, load, height and what it is known to be, nodes
//! of the search, and seconds.

use std::error::Error;
use std::time::Instant;

use omex_compiler::arena::{Effort, Item, Problem, solve, validate};

fn main() -> Result<(), Box<dyn Error>> {
    let mut effort = Effort {
        search_nodes_max: 1 << 22,
    };
    let mut args = std::env::args().skip(1);
    println!("| | buffers | load | height | | nodes | s |\n|---|---|---|---|---|---|---|");
    while let Some(arg) = args.next() {
        if arg == "--nodes" {
            effort.search_nodes_max = args.next().ok_or("--nodes needs a number")?.parse()?;
            continue;
        }
        let problem = read(&arg).map_err(|e| format!("{arg}: {e}"))?;
        let start = Instant::now();
        let layout = solve(&problem, effort);
        let seconds = start.elapsed().as_secs_f64();
        validate(&problem, &layout)?;
        println!(
            "| {arg} | {} | {} | {} | {} | {} | {seconds:.3} |",
            problem.items.len(),
            layout.load_bytes,
            layout.bytes,
            if layout.is_optimal() {
                "optimal"
            } else {
                "node limit"
            },
            layout.search_nodes
        );
    }
    Ok(())
}

fn read(path: &str) -> Result<Problem, Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    let mut lines = text.lines();
    if lines.next() != Some("id,lower,upper,size") {
        return Err("the heading is not id,lower,upper,size".into());
    }
    let mut problem = Problem::default();
    for line in lines {
        let [_, lower, upper, bytes] = line.split(',').collect::<Vec<_>>()[..] else {
            return Err(format!("{line} has not four fields").into());
        };
        let item = Item {
            lower: lower.parse()?,
            upper: upper.parse()?,
            bytes: bytes.parse()?,
            align: 1,
        };
        if item.lower >= item.upper {
            return Err(format!("{line} lives at no time").into());
        }
        problem.items.push(item);
    }
    Ok(problem)
}
