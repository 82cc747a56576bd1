//! The arena planner on problems whose optimum is known, and its checker on
//! layouts that are wrong.

use omex_compiler::arena::{Effort, Item, Layout, Problem, solve, validate};

/// A fixed sequence of numbers: xorshift64*, Vigna 2016.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// Cuts a rectangle of time and space to `pieces` rectangles: a problem whose
/// load is the rectangle's height and that has a layout of just that height.
fn cut(random: &mut Random, pieces: usize, bytes: u64) -> Problem {
    let mut parts = vec![(0u32, 64u32, bytes)];
    while parts.len() < pieces {
        let at = random.below(parts.len() as u64) as usize;
        let (lower, upper, size) = parts[at];
        if random.below(2) == 0 && upper - lower > 1 {
            let time = lower + 1 + random.below(u64::from(upper - lower - 1)) as u32;
            parts[at] = (lower, time, size);
            parts.push((time, upper, size));
        } else if size > 64 {
            let under = (1 + random.below(size / 64 - 1)) * 64;
            parts[at] = (lower, upper, under);
            parts.push((lower, upper, size - under));
        }
    }
    let item = |&(lower, upper, bytes): &(u32, u32, u64)| Item {
        lower,
        upper,
        bytes,
        align: 64,
    };
    Problem {
        items: parts.iter().map(item).collect(),
    }
}

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
        assert!(layout.optimal, "{problem:?}");
        assert_eq!(layout.bytes, least_height(&problem), "{problem:?}");
    }
}

#[test]
fn rectangles_that_were_cut_are_put_together_again() {
    let mut random = Random(42);
    for pieces in [8, 12, 16, 24] {
        for _ in 0..5 {
            let problem = cut(&mut random, pieces, 64 * 48);
            let effort = Effort {
                search_nodes_max: 1 << 20,
            };
            let layout = solve(&problem, effort);
            validate(&problem, &layout).unwrap();
            assert!(layout.optimal, "{pieces} pieces: {problem:?}");
            assert_eq!(layout.gap_bytes(), 0, "{pieces} pieces: {problem:?}");
            assert_eq!(layout, solve(&problem, effort), "deterministic");
        }
    }
}

/// Published instances (CSV of id, lower, upper, size; the capacity is in the
/// file's name), where `OMEX_ARENA_INSTANCES` says they are.
#[test]
fn published_instances_are_planned_soundly() {
    let Some(folder) = std::env::var_os("OMEX_ARENA_INSTANCES") else {
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "csv") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let item = |line: &str| {
            let fields: Vec<u64> = line.split(',').map(|f| f.parse().unwrap()).collect();
            Item {
                lower: fields[1] as u32,
                upper: fields[2] as u32,
                bytes: fields[3],
                align: 1,
            }
        };
        let problem = Problem {
            items: text.lines().skip(1).map(item).collect(),
        };
        let layout = solve(&problem, Effort::default());
        validate(&problem, &layout).unwrap();
        eprintln!(
            "{}: load {}, arena {}, optimal: {}",
            path.display(),
            layout.load_bytes,
            layout.bytes,
            layout.optimal
        );
    }
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
