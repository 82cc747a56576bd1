//! A persistent thread pool. A job runs on every thread at once; inside it,
//! threads claim tiles of the current phase and meet at a barrier after it.
//!
//! Waiting spins for about 20 us and then sleeps on a futex: a core that spins
//! for longer may be the one that a preempted thread needs.
// A job borrows its caller's stack while workers run it.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::os::{float, futex};

const SPIN: Duration = Duration::from_micros(20);
/// Polls between two looks at the clock.
const SPIN_POLLS: u32 = 64;

/// Stack of a worker: far above what kernels use, small enough to plan with.
pub const WORKER_STACK_BYTES: usize = 256 << 10;

/// Bytes of it that kernels touch at most.
pub const WORKER_STACK_USED_BYTES: usize = 64 << 10;

/// A counter whose changes threads wait for.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    value: AtomicU32,
    /// Threads that sleep or are about to.
    sleepers: AtomicU32,
}

impl Signal {
    pub(crate) fn value(&self) -> u32 {
        self.value.load(Ordering::SeqCst)
    }

    /// Waits until the value is no longer `value`.
    pub(crate) fn wait_while(&self, value: u32) {
        let start = Instant::now();
        loop {
            for _ in 0..SPIN_POLLS {
                if self.value.load(Ordering::Acquire) != value {
                    return;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= SPIN {
                break;
            }
        }
        // Sequential consistency: either this thread sees the new value, or
        // `set` sees this sleeper.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.value.load(Ordering::SeqCst) == value {
            futex::wait(&self.value, value);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    fn set(&self, value: u32) {
        self.value.store(value, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            futex::wake_all(&self.value);
        }
    }

    pub(crate) fn increment(&self) {
        // Only one thread sets a signal at a time.
        self.set(self.value.load(Ordering::Relaxed).wrapping_add(1));
    }
}

type Job = dyn Fn(&Team) + Sync;

struct Shared {
    threads: u32,
    /// Counts jobs; workers sleep on it between them.
    started: Signal,
    job: UnsafeCell<Option<*const Job>>,
    stop: AtomicBool,
    team: Team,
}

// SAFETY: `job` is written only by `Pool::run`, which holds the pool
// exclusively, before `started` is released to the workers, and read by them
// after they acquired it; the last barrier of a job orders the next write.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` refers to a `Sync` closure.
unsafe impl Send for Shared {}

/// What the threads of a job share.
#[derive(Debug)]
pub struct Team {
    threads: u32,
    /// The next tile of the current phase.
    next: AtomicU32,
    arrived: AtomicU32,
    /// Counts barriers; waiting threads sleep on it.
    passed: Signal,
    /// A tile of the current phase failed or panicked.
    failing: AtomicBool,
    /// `failing` as it was when the last barrier was complete. All threads see
    /// the same value: it changes only when all have arrived at the next.
    ended: AtomicBool,
    /// Payload of the first panic.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Team {
    fn new(threads: u32) -> Team {
        Team {
            threads,
            next: AtomicU32::new(0),
            arrived: AtomicU32::new(0),
            passed: Signal::default(),
            failing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            panic: Mutex::new(None),
        }
    }

    /// Computes tiles until none of the `tiles` tiles is left, then waits for
    /// the others. Every thread of the job calls it with the same count.
    ///
    /// Returns false when `compute` returned false for some tile or panicked:
    /// the job must end. After a false all other tiles are still computed.
    pub fn phase(&self, tiles: u32, compute: impl Fn(u32) -> bool) -> bool {
        self.phase_then(tiles, compute, || true)
    }

    /// As [`Team::phase`]; the thread that arrives last calls `then` before any
    /// goes on, unless a tile failed. For work that one thread finishes before all
    /// could meet at another barrier.
    pub fn phase_then(
        &self,
        tiles: u32,
        compute: impl Fn(u32) -> bool,
        then: impl FnOnce() -> bool,
    ) -> bool {
        self.guarded(tiles, || {
            loop {
                let tile = self.next.fetch_add(1, Ordering::Relaxed);
                if tile >= tiles {
                    break;
                }
                if !compute(tile) {
                    self.failing.store(true, Ordering::Relaxed);
                }
            }
        });
        self.barrier(|| {
            if !self.failing.load(Ordering::Relaxed) {
                self.guarded(tiles, || {
                    if !then() {
                        self.failing.store(true, Ordering::Relaxed);
                    }
                });
            }
        });
        !self.ended.load(Ordering::Relaxed)
    }

    /// Keeps the payload of a panic for the caller of the job. The rest of the
    /// phase of `tiles` tiles is then not computed.
    fn guarded(&self, tiles: u32, work: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
            self.failing.store(true, Ordering::Relaxed);
            self.next.store(tiles, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
        }
    }

    /// Everything before it on any thread happens before `last`, which the thread
    /// that arrives last calls, and that before everything after it.
    fn barrier(&self, last: impl FnOnce()) {
        let round = self.passed.value.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            last();
            self.arrived.store(0, Ordering::Relaxed);
            self.next.store(0, Ordering::Relaxed);
            let failing = self.failing.load(Ordering::Relaxed);
            self.ended.store(failing, Ordering::Relaxed);
            self.passed.increment();
        } else {
            self.passed.wait_while(round);
        }
    }
}

/// Threads that wait for jobs. The calling thread is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.shared.threads)
    }
}

impl Pool {
    /// Starts `threads - 1` workers.
    ///
    /// Errors: the system refuses a thread.
    pub fn new(threads: u32) -> std::io::Result<Pool> {
        assert!(threads > 0, "a pool has at least its caller's thread");
        float::set_environment();
        let mut pool = Pool {
            shared: Arc::new(Shared {
                threads,
                started: Signal::default(),
                job: UnsafeCell::new(None),
                stop: AtomicBool::new(false),
                team: Team::new(threads),
            }),
            workers: Vec::with_capacity(threads as usize - 1),
        };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("omex-worker-{index}"))
                .stack_size(WORKER_STACK_BYTES)
                .spawn(move || work(&shared))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> u32 {
        self.shared.threads
    }

    /// Runs `job` on all threads and returns when all are done with it. The
    /// job must go through the same sequence of [`Team::phase`] on each.
    ///
    /// Panics with the payload of the first thread that panicked in a phase.
    pub fn run(&mut self, job: &(dyn Fn(&Team) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by the
        // workers until the barrier below, which this call waits for.
        let erased: *const Job =
            unsafe { std::mem::transmute::<*const (dyn Fn(&Team) + Sync + '_), *const Job>(job) };
        // SAFETY: workers read the cell only between the release of `started`
        // and the job's last barrier; `&mut self` excludes another run.
        unsafe { *shared.job.get() = Some(erased) };
        shared.started.increment();
        job(&shared.team);
        // No thread may still be using the job's borrows.
        shared.team.barrier(|| ());
        if shared.team.failing.swap(false, Ordering::Relaxed) {
            let mut panic = shared
                .team
                .panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(payload) = panic.take() {
                drop(panic);
                resume_unwind(payload);
            }
        }
    }
}

fn work(shared: &Shared) {
    float::set_environment();
    let mut done = 0u32;
    loop {
        shared.started.wait_while(done);
        done = done.wrapping_add(1);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: `started` was acquired, so the pointer is this job's, and
        // `Pool::run` keeps the closure alive until the barrier below.
        let job = unsafe { (*shared.job.get()).map(|job| &*job) };
        if let Some(job) = job {
            job(&shared.team);
        }
        shared.team.barrier(|| ());
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.started.increment();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its jobs, so it ends normally.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_computed_once_and_phases_are_ordered() {
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..200u32 {
                let counts: Vec<AtomicU32> = (0..17).map(|_| AtomicU32::new(0)).collect();
                pool.run(&|team| {
                    for phase in 0..3 {
                        team.phase(17, |tile| {
                            let before = counts[tile as usize].fetch_add(1, Ordering::Relaxed);
                            assert_eq!(before, phase, "round {round}");
                            true
                        });
                    }
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 3));
            }
        }
    }

    #[test]
    fn one_thread_works_between_phases() {
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            for failing in 0..100 {
                let (tiles, between) = (AtomicU32::new(0), AtomicU32::new(0));
                pool.run(&|team| {
                    for phase in 0..8 {
                        let tile = |_| {
                            assert_eq!(between.load(Ordering::Relaxed), phase);
                            tiles.fetch_add(1, Ordering::Relaxed);
                            true
                        };
                        let then = || {
                            assert_eq!(tiles.load(Ordering::Relaxed), 5 * (phase + 1));
                            between.fetch_add(1, Ordering::Relaxed) != failing % 8
                        };
                        if !team.phase_then(5, tile, then) {
                            break;
                        }
                    }
                });
                assert_eq!(between.into_inner(), failing % 8 + 1);
            }
        }
    }

    #[test]
    fn work_between_phases_is_left_out_after_a_failure() {
        let mut pool = Pool::new(2).unwrap();
        pool.run(&|team| {
            assert!(!team.phase_then(3, |tile| tile != 1, || panic!("it ran")));
        });
        let panic = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|team| {
                team.phase_then(3, |_| true, || panic!("between"));
            });
        }));
        assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"between"));
    }

    #[test]
    fn a_failure_ends_every_thread_at_the_same_phase() {
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            for failing in 0..300u32 {
                let phases = AtomicU32::new(0);
                pool.run(&|team| {
                    for phase in 0..8 {
                        phases.fetch_max(phase + 1, Ordering::Relaxed);
                        if !team.phase(3, |tile| phase != failing % 8 || tile != failing % 3) {
                            break;
                        }
                    }
                });
                assert_eq!(phases.load(Ordering::Relaxed), failing % 8 + 1);
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        for threads in 1..=3 {
            let mut pool = Pool::new(threads).unwrap();
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|team| {
                    if !team.phase(8, |tile| {
                        assert!(tile != 5, "tile {tile} failed");
                        true
                    }) {
                        return;
                    }
                    team.phase(8, |_| panic!("the phase behind a panic ran"));
                });
            }));
            let payload = caught.unwrap_err();
            assert_eq!(payload.downcast_ref::<String>().unwrap(), "tile 5 failed");
            let sum = AtomicU32::new(0);
            pool.run(&|team| {
                team.phase(10, |tile| {
                    sum.fetch_add(tile, Ordering::Relaxed);
                    true
                });
            });
            assert_eq!(sum.load(Ordering::Relaxed), 45);
        }
    }
}
