//! Predicted memory against measured memory, and runs in exactly as much as
//! their plans state.

#[path = "common/cgroup.rs"]
mod cgroup;
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use cgroup::{Cgroup, cold_charge_peak, forget};
use common::{Scratch, fails, gemma3, ok, report, smollm2, u64_of, windows_container};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const SOURCES: [(&str, &[&str]); 2] = [("mapped", &[]), ("read", &["--ram", "1GiB"])];

/// What a run is asked for: a chat turn, plain text, sampling, a long prompt.
const RUNS: [&[&str]; 4] = [
    &["-p", "Say something.", "-n", "6"],
    &["--raw", "-p", "Once upon a time", "-n", "6"],
    &[
        "-p",
        "Say",
        "--temp",
        "0.9",
        "--repeat-penalty",
        "1.1",
        "-n",
        "6",
    ],
    &["-i", "long.txt", "-n", "6"],
];
const LONG_WORDS: usize = 1500;

fn context_of(tokens: u32) -> String {
    format!(r#""model_requirements": {{"max_sequence_tokens": {tokens}}},"#)
}

fn memory_report(scratch: &Scratch, plan: &Path) -> serde_json::Value {
    let mut command = scratch.omex();
    command.args(["debug", "memory", "report", "--json"]);
    serde_json::from_slice(&ok(command.arg(plan)).stdout).unwrap()
}

fn predicted(scratch: &Scratch, plan: &Path, field: &str) -> u64 {
    u64_of(&memory_report(scratch, plan), field)
}

/// The part of a plan's memory that only runs need whose code is made again.
fn made_again_bytes(scratch: &Scratch, plan: &Path) -> u64 {
    let memory = memory_report(scratch, plan);
    let mut items = memory["items"].as_array().unwrap().iter();
    let tables = items.find(|item| item["kind"] == "encoder tables");
    tables.map_or(0, |item| u64_of(item, "bytes"))
}

/// A run of `plan` with these flags.
fn run_of(scratch: &Scratch, plan: &Path, flags: &[&str]) -> Command {
    let mut run = scratch.omex();
    run.arg("run").arg(plan).args(flags);
    run
}

/// The same by a user who does not trust the plan: its code is made again.
fn distrusted<'c>(scratch: &Scratch, run: &'c mut Command) -> &'c mut Command {
    run.env("OMEX_HOME", scratch.path("stranger"));
    run.arg("--model-dir").arg(scratch.path("home/cache"))
}

/// Runs that left their bounds, all of which a test collects before it fails.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    /// The resident set's peak is at most 1 MiB below the predicted one.
    fn hold_rss(&mut self, what: &str, run: &mut Command) {
        let report = report(run);
        let peak = |name| u64_of(&report, &format!("rss_peak_{name}_bytes"));
        self.hold(what, peak("predicted"), peak("measured"), MIB);
    }

    fn hold(&mut self, what: &str, predicted: u64, measured: u64, below_max: u64) {
        if measured > predicted || predicted - measured > below_max {
            self.0.push(format!(
                "{what}: predicted {predicted}, measured {measured}"
            ));
        }
    }

    fn none(self) {
        assert!(self.0.is_empty(), "{:#?}", self.0);
    }
}

/// Plans of both models at every context and weight source, with their names.
fn plans(scratch: &Scratch, contexts: &[u32]) -> Vec<(String, u32, PathBuf)> {
    scratch.write("input.txt", "A short text about nothing much. ".repeat(20));
    scratch.write("long.txt", "word ".repeat(LONG_WORDS));
    let mut plans = Vec::new();
    for (name, model) in [("smollm2", smollm2()), ("gemma3", gemma3())] {
        for &context in contexts {
            for (source, flags) in SOURCES {
                let name = format!("{name}-{context}-{source}");
                let plan = format!("{name}.bin");
                let plan = scratch.build(&model, &plan, &context_of(context), flags);
                plans.push((name, context, plan));
            }
        }
    }
    plans
}

#[test]
fn the_measured_peak_is_at_most_one_mib_below_the_predicted_one() {
    let scratch = Scratch::new("memory");
    let mut wrong = Wrong::default();
    for (name, context, plan) in plans(&scratch, &[256, 2048, 8192]) {
        for threads in ["1", "2", "3"] {
            // Every kind of run at one size, one kind at the others.
            let runs = match (context, threads) {
                (2048, "2") => &RUNS[..],
                _ => &RUNS[..1],
            };
            for flags in runs {
                let mut run = run_of(&scratch, &plan, flags);
                run.args(["-t", threads]);
                wrong.hold_rss(&format!("{name}, {threads} threads, {flags:?}"), &mut run);
            }
        }
        let mut run = run_of(&scratch, &plan, RUNS[0]);
        let report = report(distrusted(&scratch, run.args(["-t", "3"])));
        let peak = |name| u64_of(&report, &format!("rss_peak_{name}_bytes"));
        let stated = predicted(&scratch, &plan, "rss_peak_bytes");
        assert_eq!(peak("stated"), stated, "{name}");
        let what = format!("{name}, not trusted");
        wrong.hold(&what, peak("predicted"), peak("measured"), MIB);
    }
    wrong.none();
}

/// Inputs that a process might keep in memory: large texts, words without an
/// end, arguments, folders. The model is small, so that they are all read.
#[test]
fn the_peak_does_not_depend_on_the_input() {
    let scratch = Scratch::new("inputs");
    let model = scratch.path("tiny.gguf");
    let mut synth = scratch.omexc();
    synth.args([
        "synth",
        "--type",
        "Q8_0",
        "--layers",
        "1",
        "--vocabulary-from",
    ]);
    synth
        .arg(smollm2())
        .args(["--embedding", "64", "--feed-forward", "64"]);
    synth.args(["--heads", "1", "--kv-heads", "1", "--head", "64"]);
    ok(synth.arg("-o").arg(&model));
    let sentences = "The river runs slowly to the sea. ".repeat(40_000);
    scratch.write("sentences.txt", sentences);
    scratch.write("word.txt", "a".repeat(400_000) + &"é漢".repeat(40_000));
    // Nearly all of them are no text and passed over.
    for n in 0..12_000 {
        let content: &[u8] = if n % 500 == 0 { b"text" } else { b"\0" };
        scratch.write(&format!("files/{}/{n:060}", n % 3), content);
    }
    let argument = "word ".repeat(25_000);
    let runs: [&[&str]; 5] = [
        &["-i", "sentences.txt"],
        &["-i", "word.txt"],
        &["-i", "files"],
        &["-i", "files/**/*[05]"],
        &["-p", &argument],
    ];
    let windows = windows_container(&model);
    let windows = windows.replace(
        r#""window_size": 64, "stride": 64"#,
        r#""window_size": 128, "stride": 128"#,
    );
    let file = scratch.write("windows.omex.json", windows);
    let mut wrong = Wrong::default();
    for parallel in ["1", "4"] {
        let plan = scratch.path(&format!("{parallel}.bin"));
        let mut build = scratch.omexc();
        build.args(["build", "--any-path", "--parallel", parallel]);
        ok(build.arg(&file).arg("-o").arg(&plan));
        for flags in runs {
            let mut run = run_of(&scratch, &plan, flags);
            let short: Vec<_> = flags
                .iter()
                .map(|flag| &flag[..flag.len().min(20)])
                .collect();
            let what = format!("{parallel} at a time, {short:?}");
            wrong.hold_rss(&what, run.args(["-n", "1"]));
        }
    }
    // Windows of a real model, and words that its tokenizer does not split.
    let file = scratch.write("windows.omex.json", windows_container(&smollm2()));
    scratch.write("mixed.txt", "Some words. ".repeat(100) + &"a".repeat(2000));
    for (source, flags) in SOURCES {
        let plan = scratch.path(&format!("{source}.bin"));
        let mut build = scratch.omexc();
        build.args(["build", "--any-path"]).args(flags);
        ok(build.arg(&file).arg("-o").arg(&plan));
        let mut run = run_of(&scratch, &plan, &["-i", "mixed.txt"]);
        wrong.hold_rss(&format!("windows, {source}"), &mut run);
    }
    wrong.none();
}

/// What a process is started with counts beyond what plans allow for it.
#[test]
fn the_peak_holds_with_large_environments_and_arguments() {
    let scratch = Scratch::new("start-text");
    let plan = scratch.build(&smollm2(), "plan.bin", &context_of(256), &[]);
    let folder = "model-folder/".repeat(300);
    let mut wrong = Wrong::default();
    // Below the allowance, and of many small parts.
    for (count, length) in [(45, 4000), (900, 80), (2000, 8)] {
        let mut arguments = run_of(&scratch, &plan, RUNS[0]);
        for _ in 0..count {
            arguments.arg("--model-dir").arg("f/".repeat(length / 2));
        }
        wrong.hold_rss(&format!("{count} arguments"), &mut arguments);
    }
    for texts in [1, 3, 8] {
        let mut environment = run_of(&scratch, &plan, RUNS[0]);
        let names = (0..texts).map(|n| format!("OMEX_TEST_{n}"));
        environment.envs(names.map(|name| (name, "e".repeat(120 << 10))));
        wrong.hold_rss(&format!("{texts} variables"), &mut environment);
        let mut arguments = run_of(&scratch, &plan, RUNS[0]);
        for _ in 0..texts * 30 {
            arguments.arg("--model-dir").arg(&folder);
        }
        wrong.hold_rss(&format!("{texts} arguments"), &mut arguments);
    }
    wrong.none();
}

/// Stacks count for every thread: here kernels with the largest frames, on many.
#[test]
fn the_peak_holds_on_many_threads() {
    let scratch = Scratch::new("many-threads");
    let model = scratch.path("wide.gguf");
    let mut synth = scratch.omexc();
    synth.args(["synth", "--type", "IQ4_NL", "--arch", "qwen2"]);
    synth.args(["--layers", "2", "--embedding", "1024", "--head", "96"]);
    synth.args(["--heads", "16", "--kv-heads", "4", "--feed-forward", "64"]);
    ok(synth.args(["--vocabulary", "1003", "-o"]).arg(&model));
    let mut wrong = Wrong::default();
    for (source, flags) in SOURCES {
        let plan = format!("{source}.bin");
        let flags = [flags, &["--threads-max", "8"]].concat();
        let plan = scratch.build(&model, &plan, &context_of(256), &flags);
        for threads in ["8", "8", "8", "8", "3", "1"] {
            let mut run = run_of(&scratch, &plan, RUNS[0]);
            let what = format!("{source}, {threads} threads");
            wrong.hold_rss(&what, run.args(["-t", threads]));
        }
    }
    wrong.none();
}

/// A program's file may lie in the page cache in large pieces, of which a fault
/// would map more than the program needs.
#[test]
fn the_peak_does_not_depend_on_how_the_program_came_to_the_cache() {
    let scratch = Scratch::new("copied");
    let plan = scratch.build(&smollm2(), "plan.bin", &context_of(256), &[]);
    let copy = scratch.path("omex");
    std::fs::copy(env!("CARGO_BIN_EXE_omex"), &copy).unwrap();
    let mut wrong = Wrong::default();
    for what in ["just written", "read from storage"] {
        let mut run = scratch.command(copy.to_str().unwrap());
        wrong.hold_rss(what, run.arg("run").arg(&plan).args(RUNS[0]));
        forget(&scratch.path("."));
    }
    wrong.none();
}

#[test]
fn plans_run_in_a_cgroup_of_exactly_their_charge_and_refuse_one_page_less() {
    let Some(group) = Cgroup::new("omex-exact") else {
        return;
    };
    let scratch = Scratch::new("cgroup");
    let mut plans = plans(&scratch, &[2048]);
    // Less than the weights and the rest take.
    let paged = ["--ram", "130MiB"];
    let paged = scratch.build(&smollm2(), "paged.bin", &context_of(2048), &paged);
    plans.push(("paged".to_owned(), 2048, paged));
    let windows = scratch.write("windows.omex.json", windows_container(&smollm2()));
    let mut build = scratch.omexc();
    build.args(["build", "--any-path"]).arg(windows);
    let plan = scratch.path("windows.bin");
    ok(build.arg("-o").arg(&plan));
    plans.push(("windows".to_owned(), 256, plan));
    // The page cache that others leave in the group, read often, gives way.
    let left = scratch.path("left");
    std::fs::copy(env!("CARGO_BIN_EXE_omexc"), &left).unwrap();
    let mut read = Command::new("sh");
    read.args(["-c", "cat \"$0\" \"$0\" \"$0\" > /dev/null"])
        .arg(&left);
    for (name, _, plan) in plans {
        let readers: &[&[&str]] = match name.as_str() {
            "paged" => &[&[], &["--io-uring"]],
            _ => &[&[]],
        };
        let charge = predicted(&scratch, &plan, "charge_peak_bytes");
        group.limit(charge).unwrap();
        forget(&scratch.path("."));
        ok(&mut group.run(&read));
        // Windows go to a file.
        let result = |run: &mut Command| {
            let printed = ok(run).stdout;
            (printed, std::fs::read(scratch.path("joined.txt")).ok())
        };
        for flags in RUNS {
            let expected = result(&mut run_of(&scratch, &plan, flags));
            group.limit(charge).unwrap();
            for reader in readers {
                let mut run = run_of(&scratch, &plan, flags);
                run.args(*reader);
                let bounded = result(&mut group.run(&run));
                assert_eq!(bounded, expected, "{name}: {flags:?} {reader:?}");
            }
            let mut run = run_of(&scratch, &plan, flags);
            let made_again = result(&mut group.run(distrusted(&scratch, &mut run)));
            assert_eq!(made_again, expected, "{name}: {flags:?}, not trusted");
        }
        group.limit(charge - PAGE).unwrap();
        let refusal = fails(&mut group.run(&run_of(&scratch, &plan, RUNS[0])), 4);
        assert!(refusal.contains(&charge.to_string()), "{refusal}");
    }
}

#[test]
fn the_measured_charge_is_at_most_two_mib_below_the_predicted_one() {
    let scratch = Scratch::new("charge");
    let mut wrong = Wrong::default();
    for (name, context, plan) in plans(&scratch, &[256, 2048, 8192]) {
        let stated = predicted(&scratch, &plan, "charge_peak_bytes");
        let charge = stated - made_again_bytes(&scratch, &plan);
        for threads in if context == 2048 {
            &["1", "2", "3"][..]
        } else {
            &["2"]
        } {
            let mut run = run_of(&scratch, &plan, RUNS[0]);
            run.args(["-t", threads]);
            let Some(peak) = cold_charge_peak("omex-charge", &scratch, &run) else {
                return;
            };
            wrong.hold(&format!("{name}, {threads} threads"), charge, peak, 2 * MIB);
        }
        let mut run = run_of(&scratch, &plan, RUNS[0]);
        distrusted(&scratch, run.args(["-t", "3"]));
        let Some(peak) = cold_charge_peak("omex-charge", &scratch, &run) else {
            return;
        };
        wrong.hold(&format!("{name}, not trusted"), stated, peak, 2 * MIB);
    }
    wrong.none();
}

/// After load, memory that can be written is the arena, stacks, and what the
/// program and its libraries name.
#[test]
fn a_run_maps_nothing_writable_but_arena_stacks_and_named_segments() {
    use std::io::Read;
    use std::process::Stdio;

    let scratch = Scratch::new("maps");
    let flags = ["--ram", "1GiB"];
    let plan = scratch.build(&smollm2(), "plan.bin", &context_of(2048), &flags);
    let memory = memory_report(&scratch, &plan);
    let arena = u64_of(&memory["arena"], "bytes").next_multiple_of(PAGE);

    let mut command = scratch.omex();
    command
        .arg("run")
        .arg(&plan)
        .args(["-t", "2", "-n", "1500"]);
    command.args(["-p", "Write a very long story."]);
    let mut run = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It generates once its first text is there.
    let mut start = [0; 8];
    run.stdout.as_mut().unwrap().read_exact(&mut start).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", run.id())).unwrap();
    run.kill().unwrap();
    run.wait().unwrap();

    const STACK_BYTES: u64 = 256 << 10;
    let mut arenas = 0;
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').unwrap();
        let address = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let bytes = address(end) - address(start);
        let named = fields.len() > 5;
        if !fields[1].contains('w') || named {
            continue;
        }
        arenas += u64::from(bytes == arena);
        assert!(bytes == arena || bytes <= STACK_BYTES, "{line}\n{maps}");
    }
    assert_eq!(arenas, 1, "{maps}");
}
