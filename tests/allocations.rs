//! After load nothing is allocated: every allocation of the process is counted,
//! C's included, and writable mappings are all accounted for.
// The allocator's symbols are replaced for this test binary, which takes code
// without the compiler's checks.
#![allow(unsafe_code)]

mod common;
#[path = "common/compressed.rs"]
mod compressed;

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Scratch, ok, smollm2, windows_container};
use omex_runtime::events::{Event, Sink};
use omex_runtime::{Bindings, LoadOptions, RunOptions, SamplingChanges, Session, TrustStore};

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

fn count() {
    if COUNTING.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

unsafe extern "C" {
    fn __libc_malloc(bytes: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, bytes: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, bytes: usize) -> *mut c_void;
    fn __libc_memalign(align: usize, bytes: usize) -> *mut c_void;
}

// These definitions come before the C library's: its own callers and Rust's
// allocator reach them alike.

// SAFETY: the C library's own function does the work.
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(bytes: usize) -> *mut c_void {
    count();
    // SAFETY: the caller's contract is malloc's.
    unsafe { __libc_malloc(bytes) }
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(number: usize, bytes: usize) -> *mut c_void {
    count();
    // SAFETY: the caller's contract is calloc's.
    unsafe { __libc_calloc(number, bytes) }
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(old: *mut c_void, bytes: usize) -> *mut c_void {
    count();
    // SAFETY: the caller's contract is realloc's.
    unsafe { __libc_realloc(old, bytes) }
}

// SAFETY: as above.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, bytes: usize) -> c_int {
    count();
    // SAFETY: `out` is valid by the caller's contract.
    unsafe { *out = __libc_memalign(align, bytes) };
    0
}

/// Counts from the first prompt, tokenized, to the end of the last window.
#[derive(Default)]
struct Counted {
    tokens: u64,
    windows: u64,
    allocations: u64,
}

impl Sink for Counted {
    fn text(&mut self, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Prompt { .. } => COUNTING.store(true, Ordering::Relaxed),
            Event::Token { .. } => {
                self.tokens += 1;
            }
            Event::WindowEnd { .. } => {
                self.windows += 1;
                self.allocations = ALLOCATIONS.load(Ordering::Relaxed);
            }
            Event::NodeStart { .. }
            | Event::Prefill { .. }
            | Event::NodeEnd { .. }
            | Event::Note { .. } => {}
        }
        Ok(())
    }
}

/// One test, as counting is the whole process's.
#[test]
fn generations_allocate_nothing() {
    // The counter counts.
    COUNTING.store(true, Ordering::Relaxed);
    drop(std::hint::black_box(vec![0u8; 100]));
    COUNTING.store(false, Ordering::Relaxed);
    assert!(ALLOCATIONS.swap(0, Ordering::Relaxed) > 0);

    let scratch = Scratch::new("allocations");
    let context = r#""model_requirements": {"max_sequence_tokens": 512},"#;
    let sampled = SamplingChanges {
        temperature: Some(0.9),
        top_p: Some(0.9),
        repeat_penalty: Some(1.1),
        ..SamplingChanges::default()
    };
    let built = |source: &'static str, flags: &[&str]| {
        let plan = scratch.build(&smollm2(), &format!("{source}.bin"), context, flags);
        (source, plan)
    };
    compressed::slow_target(&scratch);
    let floats = compressed::floats(&scratch);
    let frames = compressed::build(&scratch, &floats, "compressed.bin", "zstd");
    for (source, plan) in [
        built("mapped", &[]),
        built("read", &["--ram", "1GiB"]),
        built("paged", &["--ram", "100MiB"]),
        built("paged by a ring", &["--ram", "100MiB"]),
        ("compressed", frames),
    ] {
        let load = LoadOptions {
            io_uring: source == "paged by a ring",
            ..load(&scratch)
        };
        let mut session = Session::load(&plan, &load).unwrap();
        for (name, sampling) in [("greedy", SamplingChanges::default()), ("sampled", sampled)] {
            let options = RunOptions {
                bindings: Bindings {
                    prompt: Some("Write a long story about the sea.".to_owned()),
                    ..Bindings::default()
                },
                predict: Some(24),
                sampling,
                ..RunOptions::default()
            };
            let mut sink = Counted::default();
            ALLOCATIONS.store(0, Ordering::Relaxed);
            session.run(&options, &mut sink).unwrap();
            COUNTING.store(false, Ordering::Relaxed);
            assert!(sink.tokens > 12, "{source}, {name}: {} tokens", sink.tokens);
            assert_eq!(sink.allocations, 0, "{source}, {name}");
        }
    }

    // Windows of one text, one by one and several at a time.
    let file = scratch.write("windows.omex.json", windows_container(&smollm2()));
    let sentences = "The river runs slowly to the sea. ".repeat(60);
    let text = scratch.write("long.txt", sentences);
    let plan = scratch.path("windows.bin");
    let mut build = scratch.omexc();
    build.args(["build", "--any-path"]).arg(&file);
    ok(build.arg("-o").arg(&plan));
    let mut session = Session::load(&plan, &load(&scratch)).unwrap();
    for parallel in [Some(1), None] {
        let options = RunOptions {
            bindings: Bindings {
                inputs: vec![(String::new(), text.clone())],
                ..Bindings::default()
            },
            parallel,
            output_folder: scratch.path("."),
            ..RunOptions::default()
        };
        let mut sink = Counted::default();
        ALLOCATIONS.store(0, Ordering::Relaxed);
        session.run(&options, &mut sink).unwrap();
        COUNTING.store(false, Ordering::Relaxed);
        assert!(sink.windows > 5, "{} windows", sink.windows);
        assert_eq!(sink.allocations, 0, "windows, {parallel:?} at a time");
    }
}

fn load(scratch: &Scratch) -> LoadOptions {
    LoadOptions {
        threads: Some(2),
        model_folders: vec![scratch.path("home/cache")],
        trust: Some(TrustStore::new(scratch.path("home/trust"))),
        ..LoadOptions::default()
    }
}
