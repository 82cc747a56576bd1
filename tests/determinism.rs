//! The same bits at every level of instruction set, for every number of threads,
//! prompt chunking and weight source; the same plan bytes from every folder.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Scratch, gemma3, ok, report, root, smollm2, u64_of};
use omex_codegen::{Feature, Isa};

/// 67 tokens within the model's chat template: more than the largest chunk.
const PROMPT: &str = "Say what ownership is: \
fn main() { let s = String::from(\"héllo ☃\"); println!(\"{s}\"); } // 3 + 4";

/// BLAKE3 of the logits of every position of [`PROMPT`] and 4 generated tokens.
/// It changes with the numeric contract only.
const GOLDEN: &str = include_str!("golden/smollm2-logits.txt");
/// The same of the test on Gemma.
const GEMMA3_GOLDEN: &str = include_str!("golden/gemma3-logits.txt");

const GATE: [&str; 4] = ["-p", PROMPT, "-n", "4"];
const THREADS: [&str; 3] = ["1", "2", "3"];
/// A plan may hold fewer: how many depends on its target's disk.
const CHUNKS: [u64; 3] = [1, 7, 64];
/// Names of `omex inspect`, and the flags of a build that lead there.
const SOURCES: [(&str, &[&str]); 3] = [
    ("mapped", &[]),
    ("read", &["--ram", "400MiB"]),
    ("paged", &["--ram", "80MiB"]),
];

/// What executes a plan.
enum Machine {
    Here,
    /// The path of a cross-built `omex`, as qemu's CPU.
    Emulated {
        omex: PathBuf,
        cpu: &'static str,
    },
}

impl Machine {
    fn omex(&self, scratch: &Scratch) -> Command {
        match self {
            Machine::Here => scratch.omex(),
            Machine::Emulated { omex, cpu } => {
                let mut emulator = scratch.command("qemu-aarch64-static");
                emulator.args(["-cpu", cpu]).arg(omex);
                emulator
            }
        }
    }
}

/// The digest of a run's logits, and its report.
fn logits(
    scratch: &Scratch,
    machine: &Machine,
    plan: &Path,
    prompt: &[&str],
    flags: &[&str],
) -> (String, serde_json::Value) {
    let dump = scratch.path("logits.f32");
    let mut run = machine.omex(scratch);
    run.arg("run").arg(plan).args(prompt);
    run.arg("--dump-logits").arg(&dump).args(flags);
    if let Machine::Emulated { .. } = machine {
        // The emulator's own memory counts as the process's.
        run.arg("--no-allowance");
    }
    let report = report(&mut run);
    let bytes = std::fs::read(&dump).unwrap();
    (blake3::hash(&bytes).to_hex().to_string(), report)
}

/// A profile of an x86-64 CPU with these features and no others.
fn x86_profile(scratch: &Scratch, name: &str, features: &[&str]) -> String {
    let laptop = root().join("compiler/src/target/profiles/laptop.toml");
    let laptop = std::fs::read_to_string(laptop).unwrap();
    let lines = laptop.lines().map(|line| match line.split(" = ").next() {
        Some("name") => format!("name = {name:?}\n"),
        Some("features") => format!("features = {features:?}\n"),
        Some(_) | None => format!("{line}\n"),
    });
    let file = scratch.write(&format!("{name}.toml"), lines.collect::<String>());
    file.to_str().unwrap().to_owned()
}

fn inspect(scratch: &Scratch, plan: &Path) -> serde_json::Value {
    let mut inspect = scratch.omex();
    report(inspect.arg("inspect").arg(plan))
}

/// A plan of the gate, which has its weights where it is meant to.
fn gate_plan(scratch: &Scratch, target: &str, name: &str, source: usize) -> PathBuf {
    let (kind, flags) = SOURCES[source];
    let fields = r#""model_requirements": {"max_sequence_tokens": 256},"#;
    let flags = [&["--target", target], flags].concat();
    let plan = scratch.build(&smollm2(), &format!("{name}-{kind}.bin"), fields, &flags);
    let inspected = inspect(scratch, &plan);
    assert_eq!(inspected["weights"], kind, "{inspected}");
    plan
}

#[test]
fn logits_and_tokens_do_not_depend_on_how_they_are_computed() {
    let scratch = Scratch::new("determinism");
    let sse: &[&str] = &["ssse3", "sse4.1"];
    let avx2: &[&str] = &["ssse3", "sse4.1", "sse4.2", "avx", "avx2", "f16c"];
    let avx_vnni = [avx2, &["avxvnni"]].concat();
    let avx512 = [avx2, &["avx512f", "avx512bw", "avx512vl", "avx512vnni"][..]].concat();
    let host = Isa::host().expect("an architecture with a back end");
    let mut gate = Gate::new(&scratch);
    for (level, features) in [
        ("sse41", sse),
        ("avx2", avx2),
        ("avx-vnni", &avx_vnni),
        ("avx512-vnni", &avx512),
    ] {
        let missing = features
            .iter()
            .find(|name| !host.has(Feature::from_name(name).expect("a feature's name")));
        if let Some(missing) = missing {
            // Past the capture of output: nobody is to believe that it ran.
            let note = "its kernels are compared in emulation, whole runs are not";
            writeln!(
                std::io::stderr(),
                "\n*** {level}: THIS CPU HAS NO {missing}: {note} ***"
            )
            .unwrap();
            continue;
        }
        let profile = x86_profile(&scratch, level, features);
        for source in 0..SOURCES.len() {
            let plan = gate_plan(&scratch, &profile, level, source);
            for threads in THREADS {
                for chunk in CHUNKS {
                    gate.hold(&Machine::Here, &plan, threads, chunk);
                }
            }
        }
    }
    // Fewer resident pages, which come in reads of several sizes.
    let fields = r#""model_requirements": {"max_sequence_tokens": 256},"#;
    let flags = [
        "--ram",
        "64MiB",
        "--page-read",
        "1MiB",
        "--page-slots",
        "5MiB",
    ];
    let plan = scratch.build(&smollm2(), "smaller.bin", fields, &flags);
    gate.hold(&Machine::Here, &plan, "3", 5);
}

#[test]
#[ignore = "emulates: .ci/aarch64 runs it"]
fn emulated_pi5_gives_the_same_bits() {
    hold_emulated("pi5", "cortex-a76");
}

#[test]
#[ignore = "emulates: .ci/aarch64 runs it"]
fn emulated_pi4_gives_the_same_bits() {
    hold_emulated("pi4", "cortex-a72");
}

/// The gate on a device's CPU: nine runs, in which every two values of threads,
/// chunks and sources meet. The small runtime has no code but the plan's.
fn hold_emulated(target: &str, cpu: &'static str) {
    let omex = root().join("target/cross/aarch64-unknown-linux-gnu/small/omex");
    assert!(omex.is_file(), "{}: run .ci/aarch64", omex.display());
    let scratch = Scratch::new(cpu);
    let machine = Machine::Emulated { omex, cpu };
    let mut gate = Gate::new(&scratch);
    for source in 0..SOURCES.len() {
        let plan = gate_plan(&scratch, target, target, source);
        for (i, threads) in THREADS.into_iter().enumerate() {
            gate.hold(&machine, &plan, threads, CHUNKS[(source + i) % 3]);
        }
    }
}

/// Holds runs of [`GATE`] to the golden logits, and to each other's tokens and
/// result ids.
struct Gate<'s> {
    scratch: &'s Scratch,
    first: Option<[serde_json::Value; 2]>,
}

impl<'s> Gate<'s> {
    fn new(scratch: &'s Scratch) -> Gate<'s> {
        Gate {
            scratch,
            first: None,
        }
    }

    fn hold(&mut self, machine: &Machine, plan: &Path, threads: &str, chunk: u64) {
        let chunk = chunk.min(u64_of(&inspect(self.scratch, plan), "columns_max"));
        let chunk = chunk.to_string();
        let flags = ["-t", threads, "--ubatch-size", &chunk];
        let (hash, report) = logits(self.scratch, machine, plan, &GATE, &flags);
        let how = format!("{} {flags:?}", plan.display());
        assert_eq!(hash, GOLDEN.trim(), "logits of {how}");
        let seen = ["token_ids", "result_id"].map(|name| report[name].clone());
        let first = self.first.get_or_insert_with(|| seen.clone());
        assert_eq!(&seen, first, "tokens and result id of {how}");
    }
}

/// Gemma's sliding layers, whose rings follow the chunk that a plan is built
/// for, over more positions than their window of 512.
#[test]
fn rings_of_any_length_give_the_same_bits() {
    let scratch = Scratch::new("rings");
    let model = gemma3();
    let fields = r#""model_requirements": {"max_sequence_tokens": 768},"#;
    let build = |plan: &str, flags: &[&str]| scratch.build(&model, plan, fields, flags);
    let mapped = build("mapped.bin", &["--ubatch-size", "64"]);
    let read = build("read.bin", &["--ubatch-size", "7", "--weights", "read"]);
    let sentence = "Numbers are immutable; once created their value never changes. ";
    let prompt = ["--raw", "-p", &sentence.repeat(50), "-n", "4"];
    // Half a gigabyte of logits each.
    let runs = [
        (mapped.as_path(), "1", "64"),
        (&mapped, "2", "64"),
        (&mapped, "3", "1"),
        (&read, "2", "7"),
    ];
    assert_same_bits(&scratch, &runs, &prompt, GEMMA3_GOLDEN);
}

/// Runs plans on so many threads with such chunks; the logits are `golden`, and
/// tokens and result ids agree.
fn assert_same_bits(
    scratch: &Scratch,
    runs: &[(&Path, &str, &str)],
    prompt: &[&str],
    golden: &str,
) {
    let mut seen = Vec::new();
    for (plan, threads, chunk) in runs {
        let flags = ["-t", threads, "--ubatch-size", chunk];
        let (hash, report) = logits(scratch, &Machine::Here, plan, prompt, &flags);
        let ids = report["token_ids"].to_string();
        let result = report["result_id"].to_string();
        seen.push((format!("{} {flags:?}", plan.display()), hash, ids, result));
    }
    for (how, hash, ids, result) in &seen {
        assert_eq!(hash, &seen[0].1, "logits of {how}");
        assert_eq!(ids, &seen[0].2, "tokens of {how}");
        assert_eq!(result, &seen[0].3, "result id of {how}");
    }
    assert_eq!(seen[0].1, golden.trim(), "the golden logits");
}

/// Twenty builds in twenty folders. Some find the model packed already, the
/// others pack it, and four build at a time.
#[test]
fn plans_do_not_depend_on_folders_or_threads() {
    let scratch = Scratch::new("plans");
    let model = smollm2();
    let renamed = scratch.path("another name.gguf");
    std::fs::hard_link(&model, &renamed).unwrap();
    let build = |i: usize| {
        let folder = format!("{}{i}", "some/where/else/".repeat(i % 3));
        // Two names, of which several builds share a cache.
        let model = [&model, &renamed][i / 2 % 2];
        let container = common::container(model, "");
        let container = scratch.write(&format!("{folder}/task.omex.json"), container);
        let plan = container.with_file_name("plan.bin");
        let threads = (1 + i % 5).to_string();
        let mut build = scratch.omexc();
        build.current_dir(container.parent().unwrap());
        build
            .arg("build")
            .arg("task.omex.json")
            .arg("-o")
            .arg(&plan);
        build.env("RAYON_NUM_THREADS", &threads);
        build.env("OMEX_HOME", scratch.path(&format!("home{}", i % 4)));
        ok(build.args(["--any-path", "--target", "pi5", "-j", &threads]));
        std::fs::read(&plan).unwrap()
    };
    let (first, build) = (build(0), &build);
    for group in [1..4, 4..8, 8..12, 12..16, 16..20] {
        std::thread::scope(|s| {
            let builds: Vec<_> = group.map(|i| (i, s.spawn(move || build(i)))).collect();
            for (i, plan) in builds {
                let plan = plan.join().unwrap();
                assert!(plan == first, "the bytes of plan {i} differ");
            }
        });
    }
}

#[test]
fn speculation_changes_speed_alone() {
    let scratch = Scratch::new("speculation");
    let fields = r#""model_requirements": {"max_sequence_tokens": 512},"#;
    let mapped = scratch.build(&smollm2(), "mapped.bin", fields, &[]);
    let paged = scratch.build(&smollm2(), "paged.bin", fields, &["--ram", "80MiB"]);
    let prompt = "Repeat this sentence exactly: The quick brown fox jumps over the lazy dog.";
    let run = |plan: &Path, flags: &[&str]| {
        let mut run = scratch.omex();
        run.arg("run")
            .arg(plan)
            .args(["-p", prompt, "-n", "48"])
            .args(flags);
        report(&mut run)
    };
    for sampling in [&[][..], &["--temp", "0.7", "--seed", "3"]] {
        let whole = run(&mapped, sampling);
        let drafting = run(&paged, sampling);
        let plain = run(&paged, &[sampling, &["--no-speculation"]].concat());
        assert_eq!(drafting["token_ids"], whole["token_ids"]);
        assert_eq!(plain["token_ids"], whole["token_ids"]);
        assert_eq!(drafting["result_id"], plain["result_id"]);
        assert_eq!(u64_of(&plain, "drafted_tokens"), 0);
        let accepted = u64_of(&drafting, "accepted_tokens");
        assert!(accepted > 0, "{drafting}");
        assert!(accepted < u64_of(&drafting, "drafted_tokens"), "{drafting}");
        // Fewer passes read fewer bytes.
        let read = |report: &serde_json::Value| u64_of(report, "bytes_read");
        assert!(read(&drafting) < read(&plain));
    }
}
