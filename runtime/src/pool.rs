//! A persistent thread pool. A job runs on every thread at once; inside it,
//! threads claim tiles of the current phase and meet at a barrier after it. Each
//! begins with its own share, whose tiles are neighbours, and then takes what
//! others have left.
//!
//! Waiting spins for about 20 us and then sleeps on a futex: a core that spins
//! for longer may be the one that a preempted thread needs.
// A job borrows its caller's stack while workers run it.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
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
pub const WORKER_STACK_USED_BYTES: usize = 96 << 10;

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
        self.wait_idle(value, || false);
    }

    /// As [`Signal::wait_while`], calling `idle` between polls while it returns true
    /// and this thread has not gone to sleep.
    fn wait_idle(&self, value: u32, mut idle: impl FnMut() -> bool) {
        let start = Instant::now();
        let mut useful = true;
        loop {
            for _ in 0..SPIN_POLLS {
                if self.value.load(Ordering::Acquire) != value {
                    return;
                }
                useful = useful && idle();
                if !useful {
                    std::hint::spin_loop();
                }
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

type Job = dyn Fn(&Member) + Sync;

struct Shared {
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
struct Team {
    /// Per thread: tiles of its share of the current phase that were claimed.
    claimed: Box<[Claimed]>,
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

/// A counter with a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Claimed(AtomicU32);

/// A thread of a job.
#[derive(Clone, Copy, Debug)]
pub struct Member<'t> {
    team: &'t Team,
    thread: u32,
}

impl Team {
    fn new(threads: u32) -> Team {
        Team {
            claimed: (0..threads).map(|_| Claimed::default()).collect(),
            arrived: AtomicU32::new(0),
            passed: Signal::default(),
            failing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            panic: Mutex::new(None),
        }
    }

    fn threads(&self) -> u32 {
        self.claimed.len() as u32
    }

    /// Claims all tiles of the phase.
    fn claim_all(&self, tiles: u32) {
        for claimed in &self.claimed {
            claimed.0.store(tiles, Ordering::Relaxed);
        }
    }

    /// Keeps the payload of a panic for the caller of the job. The rest of the
    /// phase of `tiles` tiles is then not computed.
    fn guarded(&self, tiles: u32, work: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
            self.failing.store(true, Ordering::Relaxed);
            self.claim_all(tiles);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(payload);
        }
    }

    /// Everything before it on any thread happens before `last`, which the thread
    /// that arrives last calls, and that before everything after it. The others call
    /// `idle` while they wait and it returns true.
    fn barrier(&self, last: impl FnOnce(), idle: impl FnMut() -> bool) {
        let round = self.passed.value.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads() {
            last();
            self.arrived.store(0, Ordering::Relaxed);
            self.claim_all(0);
            let failing = self.failing.load(Ordering::Relaxed);
            self.ended.store(failing, Ordering::Relaxed);
            self.passed.increment();
        } else {
            self.passed.wait_idle(round, idle);
        }
    }
}

impl Member<'_> {
    /// The tiles, of `tiles`, that this thread begins with.
    pub fn share(&self, tiles: u32) -> Range<u32> {
        self.share_of(self.thread, tiles)
    }

    fn share_of(&self, thread: u32, tiles: u32) -> Range<u32> {
        let bound = |i: u32| (tiles as u64 * i as u64 / self.team.threads() as u64) as u32;
        bound(thread)..bound(thread + 1)
    }

    /// Computes tiles until none of the `tiles` tiles is left, then waits for
    /// the others. Every thread of the job calls it with the same count.
    ///
    /// Returns false when `compute` returned false for some tile or panicked:
    /// the job must end. After a false all other tiles are still computed.
    pub fn phase(&self, tiles: u32, compute: impl Fn(u32) -> bool) -> bool {
        self.phase_then(tiles, compute, || true, || false)
    }

    /// As [`Member::phase`]; the thread that arrives last calls `then` before any
    /// goes on, unless a tile failed. For work that one thread finishes before all
    /// could meet at another barrier. The others call `idle` while they wait for at
    /// most as long as they spin, until it returns false.
    pub fn phase_then(
        &self,
        tiles: u32,
        compute: impl Fn(u32) -> bool,
        then: impl FnOnce() -> bool,
        idle: impl FnMut() -> bool,
    ) -> bool {
        let team = self.team;
        team.guarded(tiles, || {
            let threads = team.threads();
            for of in (self.thread..threads).chain(0..self.thread) {
                let share = self.share_of(of, tiles);
                loop {
                    let claimed = team.claimed[of as usize].0.fetch_add(1, Ordering::Relaxed);
                    if claimed >= share.len() as u32 {
                        break;
                    }
                    if !compute(share.start + claimed) {
                        team.failing.store(true, Ordering::Relaxed);
                    }
                }
            }
        });
        let last = || {
            if !team.failing.load(Ordering::Relaxed) {
                team.guarded(tiles, || {
                    if !then() {
                        team.failing.store(true, Ordering::Relaxed);
                    }
                });
            }
        };
        team.barrier(last, idle);
        !team.ended.load(Ordering::Relaxed)
    }
}

/// Threads that wait for jobs. The calling thread is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.shared.team.threads())
    }
}

/// Does what no other thread would notice the end of: when `work` unwinds, the process
/// ends.
pub(crate) fn indivisible(work: impl FnOnce()) {
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    let unfinished = Abort;
    work();
    std::mem::forget(unfinished);
}

impl Pool {
    /// Starts `threads - 1` workers.
    ///
    /// Errors: the system refuses a thread.
    pub fn new(threads: u32) -> std::io::Result<Pool> {
        assert!(threads > 0, "a pool has at least its caller's thread");
        let mut pool = Pool {
            shared: Arc::new(Shared {
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
                .spawn(move || work(&shared, index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> u32 {
        self.shared.team.threads()
    }

    /// Runs `job` on all threads and returns when all are done with it. The
    /// job must go through the same sequence of [`Member::phase`] on each.
    ///
    /// Panics with the payload of the first thread that panicked in a phase. A panic
    /// of the job between phases ends the process.
    pub fn run(&mut self, job: &(dyn Fn(&Member) + Sync)) {
        // The caller's thread may be another one each time.
        float::set_environment();
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by the
        // workers until the barrier below, which this call waits for.
        let erased: *const Job =
            unsafe { std::mem::transmute::<*const (dyn Fn(&Member) + Sync + '_), *const Job>(job) };
        // SAFETY: workers read the cell only between the release of `started`
        // and the job's last barrier; `&mut self` excludes another run.
        unsafe { *shared.job.get() = Some(erased) };
        shared.started.increment();
        let team = &shared.team;
        // Others still use what the job borrows.
        indivisible(|| job(&Member { team, thread: 0 }));
        // No thread may still be using the job's borrows.
        shared.team.barrier(|| (), || false);
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

fn work(shared: &Shared, thread: u32) {
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
            let team = &shared.team;
            // Others would wait at the next barrier.
            indivisible(|| job(&Member { team, thread }));
        }
        shared.team.barrier(|| (), || false);
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

    /// In a process of its own, as it ends.
    #[test]
    fn a_panic_between_phases_ends_the_process() {
        use std::os::unix::process::ExitStatusExt;

        const CHILD: &str = "OMEX_TEST_PANIC_OF_THREAD";
        if let Ok(thread) = std::env::var(CHILD) {
            let mut pool = Pool::new(2).unwrap();
            pool.run(&|team| assert_ne!(team.thread.to_string(), thread));
            return;
        }
        for (thread, signal) in [("0", Some(6)), ("1", Some(6)), ("2", None)] {
            let test = "pool::tests::a_panic_between_phases_ends_the_process";
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", test]).env(CHILD, thread);
            let output = child.output().unwrap();
            assert_eq!(
                output.status.signal(),
                signal,
                "thread {thread}: {output:?}"
            );
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
                        if !team.phase_then(5, tile, then, || true) {
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
            let then = || panic!("it ran");
            assert!(!team.phase_then(3, |tile| tile != 1, then, || false));
        });
        let panic = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|team| {
                team.phase_then(3, |_| true, || panic!("between"), || false);
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
