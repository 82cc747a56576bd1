//! Arena problems whose optimum is known by construction: a rectangle of time
//! and space, cut to pieces that are to be put together again.

use omex_compiler::arena::{Item, Problem};

/// A fixed sequence of numbers: xorshift64*, Vigna 2016.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    /// Strictly between two numbers that are not neighbours.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + 1 + self.below(high - low - 1)
    }
}

/// How a piece is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cuts {
    /// Across, again and again.
    Guillotine,
    /// To five pieces around a middle, which no cut across takes apart, or across.
    Pinwheels,
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Puzzle {
    pub(crate) cuts: Cuts,
    pub(crate) pieces: usize,
    /// Of 100 pieces, so many are taken away where the rectangle need not be full.
    pub(crate) missing_percent: u64,
    /// Sizes and offsets are multiples of this.
    pub(crate) align: u64,
    pub(crate) seed: u64,
}

/// Times of the rectangle.
const TIMES: u64 = 1 << 12;
/// Height of the rectangle, in units of the alignment.
const HEIGHT: u64 = 1 << 12;
/// No piece is cut to narrower or flatter ones.
const LEAST: u64 = 8;

#[derive(Clone, Copy)]
struct Rectangle {
    times: (u64, u64),
    space: (u64, u64),
}

impl Puzzle {
    /// A problem whose load is the rectangle's height, and that has a layout of
    /// just this height.
    pub(crate) fn problem(&self) -> Problem {
        let mut random = Random(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut parts = vec![Rectangle {
            times: (0, TIMES),
            space: (0, HEIGHT),
        }];
        while parts.len() < self.pieces {
            // The larger of two: sizes stay comparable.
            let area = |r: &Rectangle| (r.times.1 - r.times.0) * (r.space.1 - r.space.0);
            let two = [(); 2].map(|()| random.below(parts.len() as u64) as usize);
            let at = two
                .into_iter()
                .max_by_key(|&i| area(&parts[i]))
                .unwrap_or(0);
            if let Some(cut) = self.cut(&mut random, parts[at]) {
                parts.swap_remove(at);
                parts.extend(cut);
            }
        }
        // There the load is the height.
        let full = random.below(TIMES);
        parts.retain(|r| {
            let always = (r.times.0..r.times.1).contains(&full);
            always || random.below(100) >= self.missing_percent
        });
        // Their order tells nothing.
        for i in (1..parts.len()).rev() {
            parts.swap(i, random.below(i as u64 + 1) as usize);
        }
        let item = |r: &Rectangle| Item {
            lower: r.times.0 as u32,
            upper: r.times.1 as u32,
            bytes: (r.space.1 - r.space.0) * self.align,
            align: self.align,
        };
        Problem {
            items: parts.iter().map(item).collect(),
        }
    }

    pub(crate) fn height_bytes(&self) -> u64 {
        HEIGHT * self.align
    }

    fn cut(&self, random: &mut Random, part: Rectangle) -> Option<Vec<Rectangle>> {
        let ((t0, t3), (s0, s3)) = (part.times, part.space);
        let (wide, high) = (t3 - t0 >= LEAST, s3 - s0 >= LEAST);
        let rectangle = |t0, t1, s0, s1| Rectangle {
            times: (t0, t1),
            space: (s0, s1),
        };
        if self.cuts == Cuts::Pinwheels && wide && high && random.below(3) > 0 {
            let (t1, s1) = (random.between(t0, t3 - 1), random.between(s0, s3 - 1));
            let (t2, s2) = (random.between(t1, t3), random.between(s1, s3));
            return Some(vec![
                rectangle(t0, t2, s0, s1),
                rectangle(t2, t3, s0, s2),
                rectangle(t1, t3, s2, s3),
                rectangle(t0, t1, s1, s3),
                rectangle(t1, t2, s1, s2),
            ]);
        }
        match (wide, high, random.below(2) == 0) {
            (true, false, _) | (true, true, true) => {
                let t = random.between(t0, t3);
                Some(vec![rectangle(t0, t, s0, s3), rectangle(t, t3, s0, s3)])
            }
            (false, true, _) | (true, true, false) => {
                let s = random.between(s0, s3);
                Some(vec![rectangle(t0, t3, s0, s), rectangle(t0, t3, s, s3)])
            }
            (false, false, _) => None,
        }
    }
}
