//! `omexc build --timings`: how long each part of a build takes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use omex_compiler::work::{Watch, Work};
use serde_json::{Value, json};

/// What a part has taken, without the parts within it.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    times: u32,
    all: Duration,
    longest: Duration,
}

/// A clock for the parts of a build.
#[derive(Debug, Default)]
pub(crate) struct Timings(RefCell<Clocked>);

#[derive(Debug, Default)]
struct Clocked {
    taken: BTreeMap<Work, Taken>,
    /// The parts that are on now, each with what it has taken so far and since
    /// when the clock counts for it.
    open: Vec<(Work, Duration, Instant)>,
}

impl Watch for Timings {
    fn begin(&self, work: Work) {
        let now = Instant::now();
        let open = &mut self.0.borrow_mut().open;
        if let Some((_, taken, since)) = open.last_mut() {
            *taken += now - *since;
        }
        open.push((work, Duration::ZERO, now));
    }

    fn end(&self) {
        let now = Instant::now();
        let clocked = &mut *self.0.borrow_mut();
        let (work, taken, since) = clocked.open.pop().expect("a part that began ends");
        if let Some((_, _, since)) = clocked.open.last_mut() {
            *since = now;
        }
        let taken = taken + (now - since);
        let entry = clocked.taken.entry(work).or_default();
        entry.times += 1;
        entry.all += taken;
        entry.longest = entry.longest.max(taken);
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Timings {
    /// One line for each part.
    pub(crate) fn text(&self) -> String {
        let line = |(work, taken): (&Work, &Taken)| {
            let repeated = match taken.times {
                1 => String::new(),
                times => format!("  {times} times, at most {:.1} ms", ms(taken.longest)),
            };
            format!("{:<10}{:>10.1} ms{repeated}\n", work.name(), ms(taken.all))
        };
        self.0.borrow().taken.iter().map(line).collect()
    }

    /// An object of each part.
    pub(crate) fn json(&self) -> Value {
        let object = |(work, taken): (&Work, &Taken)| {
            let (all, longest) = (ms(taken.all), ms(taken.longest));
            let taken = json!({ "times": taken.times, "all_ms": all, "longest_ms": longest });
            (work.name().to_owned(), taken)
        };
        Value::Object(self.0.borrow().taken.iter().map(object).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_within_others_are_counted_once() {
        let timings = Timings::default();
        let began = Instant::now();
        timings.begin(Work::Lowering);
        for _ in 0..2 {
            timings.begin(Work::Code);
            std::thread::sleep(Duration::from_millis(2));
            timings.end();
        }
        timings.end();
        let all = began.elapsed();
        let taken = timings.0.borrow().taken.clone();
        let (lowering, code) = (taken[&Work::Lowering], taken[&Work::Code]);
        assert_eq!((lowering.times, code.times), (1, 2));
        assert!(code.all >= Duration::from_millis(4) && code.longest <= code.all);
        assert!(lowering.all + code.all <= all);
        assert_eq!(timings.text().lines().count(), 2);
        assert_eq!(timings.json()["code"]["times"], 2);
    }
}
