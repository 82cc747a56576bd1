//! The arena planner on problems whose optimum is known, and its checker on
//! layouts that are wrong.

#[path = "common/puzzles.rs"]
mod puzzles;

use omex_compiler::arena::{Effort, Item, Layout, Problem, solve, validate};
use puzzles::{Cuts, Puzzle, Random};

/// The least height, by trying every order of placing.
fn least_height(problem: &Problem) -> u64 {
    fn place(problem: &Problem, placed: &mut Vec<(usize, u64)>, best: &mut u64) {
        if placed.len() == problem.items.len() {
            let end = |&(i, offset): &(usize, u64)| offset + problem.items[i].bytes;
            *best = (*best).min(placed.iter().map(end).max().unwrap_or(0));
            return;
        }
        for (i, item) in problem.items.iter().enumerate() {
            if placed.iter().any(|(j, _)| *j == i) {
                continue;
            }
            let below = placed
                .iter()
                .filter(|(j, _)| item.overlaps(&problem.items[*j]));
            let offset = below.map(|&(j, o)| o + problem.items[j].bytes).max();
            placed.push((i, offset.unwrap_or(0)));
            place(problem, placed, best);
            placed.pop();
        }
    }
    let mut best = u64::MAX;
    place(problem, &mut Vec::new(), &mut best);
    best
}

#[test]
fn small_problems_get_the_least_height() {
    let mut random = Random(7);
    for _ in 0..60 {
        let items = (0..6).map(|_| {
            let lower = random.below(6) as u32;
            Item {
                lower,
                upper: lower + 1 + random.below(4) as u32,
                bytes: 64 * (1 + random.below(5)),
                align: 64,
            }
        });
        let problem = Problem {
            items: items.collect(),
        };
        let layout = solve(&problem, Effort::default());
        validate(&problem, &layout).unwrap();
        assert!(layout.is_optimal(), "{problem:?}");
        assert_eq!(layout.bytes, least_height(&problem), "{problem:?}");
    }
}

#[test]
fn rectangles_that_were_cut_are_put_together_again() {
    for cuts in [Cuts::Guillotine, Cuts::Pinwheels] {
        for (pieces, missing_percent) in [(20, 0), (50, 5), (150, 0), (300, 0)] {
            for seed in 1..=3 {
                let puzzle = Puzzle {
                    cuts,
                    pieces,
                    missing_percent,
                    align: 64,
                    seed,
                };
                let problem = puzzle.problem();
                let effort = Effort {
                    search_nodes_max: 1 << 15,
                };
                let layout = solve(&problem, effort);
                validate(&problem, &layout).unwrap();
                assert_eq!(layout.load_bytes, puzzle.height_bytes());
                assert_eq!(layout.gap_bytes(), 0, "{puzzle:?}");
                assert!(layout.is_optimal());
                assert_eq!(layout, solve(&problem, effort), "deterministic");
            }
        }
    }
}

/// Lifetimes end before their upper bound. Taken as closed, every cut between
/// two times becomes a time at which both sides live, which is too much.
#[test]
fn lifetimes_are_half_open() {
    let puzzle = Puzzle {
        cuts: Cuts::Pinwheels,
        pieces: 30,
        missing_percent: 0,
        align: 64,
        seed: 1,
    };
    let half_open = puzzle.problem();
    let layout = solve(&half_open, Effort::default());
    assert_eq!(layout.bytes, puzzle.height_bytes());
    let mut closed = half_open;
    closed.items.iter_mut().for_each(|item| item.upper += 1);
    assert!(closed.load_bytes() > puzzle.height_bytes());
    let layout = solve(&closed, Effort::default());
    assert_eq!(validate(&closed, &layout), Ok(()));
    assert!(layout.bytes > puzzle.height_bytes());
}

#[test]
fn the_checker_catches_every_kind_of_violation() {
    let item = |lower, upper, bytes, align| Item {
        lower,
        upper,
        bytes,
        align,
    };
    let problem = Problem {
        items: vec![
            item(0, 4, 128, 64),
            item(2, 6, 64, 64),
            item(4, 8, 4096, 4096),
        ],
    };
    let sound = solve(&problem, Effort::default());
    assert_eq!(validate(&problem, &sound), Ok(()));
    type Spoil = fn(&mut Layout);
    let spoiled: [(&str, Spoil); 6] = [
        ("offsets for", |l| l.offsets.truncate(2)),
        ("offsets for", |l| l.offsets.push(0)),
        ("overlap", |l| l.offsets[1] = l.offsets[0] + 64),
        ("overlap", |l| l.offsets[1] = l.offsets[2]),
        ("not aligned", |l| l.offsets[2] += 64),
        ("ends at", |l| l.bytes -= 1),
    ];
    for (word, spoil) in spoiled {
        let mut layout = sound.clone();
        spoil(&mut layout);
        let found = validate(&problem, &layout).unwrap_err();
        assert!(found.contains(word), "{found} is not about: {word}");
    }
    let mut wrapped = sound;
    wrapped.offsets[0] = u64::MAX - 63;
    assert!(validate(&problem, &wrapped).unwrap_err().contains("wraps"));
    // Half-open lifetimes: what ends where another starts may share its place.
    let shared = Problem {
        items: vec![item(0, 4, 64, 64), item(4, 8, 64, 64)],
    };
    let layout = solve(&shared, Effort::default());
    assert_eq!((layout.bytes, layout.offsets), (64, vec![0, 0]));
}
