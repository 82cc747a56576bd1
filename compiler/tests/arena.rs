//! The arena planner on problems whose optimum is known, and its checker on
//! layouts that are wrong.

#[path = "common/puzzles.rs"]
mod puzzles;

use omex_compiler::arena::{Effort, Item, Layout, Problem, forcing, solve, validate};
use puzzles::{Cuts, Puzzle, Random};

/// Whether there is a layout of so many bytes, by trying to stack the items in
/// every order of their offsets.
fn fits(problem: &Problem, limit: u64) -> bool {
    fn stack(problem: &Problem, limit: u64, placed: &mut Vec<(usize, u64)>) -> bool {
        if placed.len() == problem.items.len() {
            return true;
        }
        let last = placed.last().map_or(0, |(_, offset)| *offset);
        for (i, item) in problem.items.iter().enumerate() {
            if placed.iter().any(|(j, _)| *j == i) {
                continue;
            }
            let below = placed
                .iter()
                .filter(|(j, _)| item.overlaps(&problem.items[*j]));
            let end = below.map(|&(j, offset)| offset + problem.items[j].padded_bytes());
            let offset = end.max().unwrap_or(0).next_multiple_of(item.align);
            if offset < last || offset + item.padded_bytes() > limit {
                continue;
            }
            placed.push((i, offset));
            if stack(problem, limit, placed) {
                return true;
            }
            placed.pop();
        }
        false
    }
    stack(problem, limit, &mut Vec::new())
}

/// Items with times below `times`, sizes below `bytes` and one of the alignments.
fn random_problem(
    random: &mut Random,
    items: usize,
    times: u64,
    bytes: u64,
    aligns: &[u64],
) -> Problem {
    let item = |_| {
        let (a, b) = (random.below(times) as u32, random.below(times) as u32);
        Item {
            lower: a.min(b),
            upper: a.max(b) + 1,
            bytes: 1 + random.below(bytes),
            align: aligns[random.below(aligns.len() as u64) as usize],
        }
    };
    Problem {
        items: (0..items).map(item).collect(),
    }
}

/// Items that fill so many bytes at every time, so that few layouts waste nothing.
fn full_problem(random: &mut Random, times: u32, bytes: u64) -> Problem {
    let mut items: Vec<Item> = Vec::new();
    let mut free = bytes;
    for time in 0..times {
        for item in items.iter_mut().filter(|i| i.upper == times) {
            if random.below(2) == 0 {
                item.upper = time;
                free += item.bytes;
            }
        }
        while free > 0 {
            let item = Item {
                lower: time,
                upper: times,
                bytes: 1 + random.below(free),
                align: 1,
            };
            free -= item.bytes;
            items.push(item);
        }
    }
    Problem { items }
}

#[test]
fn small_problems_get_the_least_height() {
    let mut random = Random(7);
    for i in 0..400 {
        let problem = match i % 4 {
            0 => random_problem(&mut random, 7, 6, 6, &[1]),
            1 => random_problem(&mut random, 8, 6, 6, &[1, 2, 4]),
            _ => full_problem(&mut random, 4, 12),
        };
        if problem.items.len() > 9 {
            continue;
        }
        let layout = solve(&problem, Effort::default());
        assert_eq!(validate(&problem, &layout), Ok(()));
        assert!(layout.is_optimal(), "{problem:?}");
        assert!(fits(&problem, layout.bytes), "{problem:?}");
        assert!(!fits(&problem, layout.bytes - 1), "{problem:?}");
        if layout.gap_bytes() == 0 {
            assert_eq!(forcing(&problem, layout.bytes), None);
        }
    }
}

/// What forces a layout above the load does so alone, and every part of it is
/// needed.
#[test]
fn gaps_are_explained() {
    let mut random = Random(5);
    let mut gaps = 0;
    while gaps < 3 {
        let problem = full_problem(&mut random, 7, 12);
        if problem.items.len() > 13 {
            continue;
        }
        let layout = solve(&problem, Effort::default());
        assert!(layout.is_optimal(), "{problem:?}");
        if layout.gap_bytes() == 0 {
            continue;
        }
        gaps += 1;
        let limit = layout.bytes - 1;
        assert!(!fits(&problem, limit), "{problem:?}");
        let forcing = forcing(&problem, limit).unwrap();
        let fits = |forcing: &[usize]| {
            let items = forcing.iter().map(|&i| problem.items[i]).collect();
            fits(&Problem { items }, limit)
        };
        assert!(!fits(&forcing), "{problem:?}");
        for left_out in &forcing {
            let rest: Vec<usize> = forcing.iter().copied().filter(|i| i != left_out).collect();
            assert!(fits(&rest), "{problem:?}");
        }
    }
}

#[test]
fn any_problem_gets_a_sound_layout() {
    let mut random = Random(11);
    for i in 0..60 {
        let problem = random_problem(&mut random, 10 + i, 40, 1 << 14, &[1, 64, 64, 4096]);
        let effort = Effort {
            search_nodes_max: 1 << 10,
        };
        let layout = solve(&problem, effort);
        assert_eq!(validate(&problem, &layout), Ok(()));
        assert!(layout.load_bytes <= layout.bound_bytes && layout.bound_bytes <= layout.bytes);
        assert_eq!(layout, solve(&problem, effort), "deterministic");
    }
    // Deep trees are searched on small stacks.
    let puzzle = Puzzle {
        cuts: Cuts::Guillotine,
        pieces: 2_000,
        missing_percent: 0,
        align: 64,
        seed: 1,
    };
    let problem = puzzle.problem();
    let effort = Effort {
        search_nodes_max: 1 << 13,
    };
    assert_eq!(validate(&problem, &solve(&problem, effort)), Ok(()));
    assert_eq!(
        validate(&Problem::default(), &solve(&Problem::default(), effort)),
        Ok(())
    );
}

/// What always lives costs the search nothing, however much it is.
#[test]
fn resident_pages_lie_at_the_bottom() {
    let puzzle = Puzzle {
        cuts: Cuts::Pinwheels,
        pieces: 60,
        missing_percent: 0,
        align: 64,
        seed: 3,
    };
    let mut problem = puzzle.problem();
    let first = problem.items.iter().map(|i| i.lower).min().unwrap();
    let end = problem.items.iter().map(|i| i.upper).max().unwrap();
    let page = Item {
        lower: first,
        upper: end,
        bytes: 2 << 20,
        align: 4096,
    };
    let ring = Item {
        bytes: 192,
        align: 64,
        ..page
    };
    problem.items.extend([ring, ring]);
    problem.items.extend([page; 4_000]);
    let layout = solve(&problem, Effort::default());
    assert_eq!(layout.gap_bytes(), 0);
    let bytes = puzzle.height_bytes() + 2 * ring.bytes + 4_000 * page.bytes;
    assert_eq!(layout.bytes, bytes);
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
