//! Predicted memory against measured memory, and runs in exactly as much as
//! their plans state.

#[path = "common/cgroup.rs"]
mod cgroup;
mod common;

use std::path::Path;
use std::process::Command;

use cgroup::{Cgroup, forget};
use common::{Scratch, fails, ok, report, smollm2, u64_of};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const SOURCES: [(&str, &[&str]); 2] = [("mapped", &[]), ("read", &["--ram", "1GiB"])];
/// Less than the weights and the rest take.
const PAGED: (&str, &[&str]) = ("paged", &["--ram", "110MiB"]);

/// What a run is asked for: a chat turn, a long prompt, sampling, windows.
const RUNS: [&[&str]; 4] = [
    &["-p", "Say something."],
    &["--raw", "-p", "Once upon a time"],
    &["-p", "Say", "--temp", "0.9", "--repeat-penalty", "1.1"],
    &["--events", "jsonl", "-p", "Say"],
];

fn context_of(tokens: u32) -> String {
    format!(r#""model_requirements": {{"max_sequence_tokens": {tokens}}},"#)
}

fn predicted(scratch: &Scratch, plan: &Path, field: &str) -> u64 {
    let mut command = scratch.omex();
    command
        .args(["debug", "memory", "report", "--json"])
        .arg(plan);
    let report = ok(&mut command);
    u64_of(&serde_json::from_slice(&report.stdout).unwrap(), field)
}

/// Predicted and measured peak of a run.
fn peaks(run: &mut Command) -> (u64, u64) {
    let report = report(run.args(["-n", "6"]));
    let peak = |name| u64_of(&report, &format!("rss_peak_{name}_bytes"));
    (peak("predicted"), peak("measured"))
}

#[test]
fn the_measured_peak_is_at_most_one_mib_below_the_predicted_one() {
    let scratch = Scratch::new("memory");
    let model = smollm2();
    scratch.write("input.txt", "A short text about nothing much. ".repeat(20));
    let mut wrong = Vec::new();
    for context in [256, 2048, 8192] {
        for (source, flags) in SOURCES {
            let plan = format!("{source}-{context}.bin");
            let plan = scratch.build(&model, &plan, &context_of(context), flags);
            for threads in ["1", "2", "3"] {
                // Every kind of run at one size, one kind at the others.
                let runs = if context == 2048 {
                    &RUNS[..3]
                } else {
                    &RUNS[..1]
                };
                for flags in runs {
                    let mut run = scratch.omex();
                    run.arg("run").arg(&plan).args(["-t", threads]).args(*flags);
                    let (predicted, measured) = peaks(&mut run);
                    if measured > predicted || predicted - measured > MIB {
                        wrong.push(format!(
                            "{source}, context {context}, {threads} threads, {flags:?}: \
                             predicted {predicted}, measured {measured}"
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn plans_run_in_a_cgroup_of_exactly_their_charge_and_refuse_one_page_less() {
    let Some(group) = Cgroup::new("omex-exact") else {
        return;
    };
    let scratch = Scratch::new("cgroup");
    let model = smollm2();
    for (source, flags) in SOURCES.into_iter().chain([PAGED]) {
        let plan = scratch.build(&model, &format!("{source}.bin"), &context_of(512), flags);
        let charge = predicted(&scratch, &plan, "charge_peak_bytes");
        let run = |flags: &[&str]| {
            let mut run = scratch.omex();
            run.arg("run").arg(&plan).args(["-n", "12"]).args(flags);
            run
        };
        for flags in RUNS {
            let flags = if flags.contains(&"-p") {
                flags
            } else {
                RUNS[0]
            };
            let expected = ok(&mut run(flags)).stdout;
            group.limit(charge).unwrap();
            let bounded = ok(&mut group.run(&run(flags)));
            assert_eq!(bounded.stdout, expected, "{source}: {flags:?}");
        }
        group.limit(charge - PAGE).unwrap();
        let refusal = fails(&mut group.run(&run(RUNS[0])), 4);
        assert!(refusal.contains(&charge.to_string()), "{refusal}");
    }
}

#[test]
fn the_measured_charge_is_at_most_two_mib_below_the_predicted_one() {
    let scratch = Scratch::new("charge");
    let model = smollm2();
    for (source, flags) in SOURCES {
        let Some(group) = Cgroup::new(&format!("omex-charge-{source}")) else {
            return;
        };
        let plan = scratch.build(&model, &format!("{source}.bin"), &context_of(2048), flags);
        let charge = predicted(&scratch, &plan, "charge_peak_bytes");
        // The group that first reads a file is charged for it.
        forget(&scratch.path("home"));
        forget(&scratch.path("."));
        let mut run = scratch.omex();
        run.arg("run").arg(&plan).args(["-n", "6"]).args(RUNS[0]);
        let report = report(&mut group.run(&run));
        let Some(peak) = group.peak_bytes() else {
            eprintln!("\n*** THIS SYSTEM DOES NOT COUNT A CGROUP'S PEAK ***\n");
            return;
        };
        // Whoever ran the program first is charged for its own pages.
        let elsewhere = u64_of(&report, "rss_file_bytes").saturating_sub(group.cache_bytes());
        let charged = peak + elsewhere;
        assert!(
            charged <= charge && charge - charged <= 2 * MIB,
            "{source}: predicted {charge}, charged {peak} and {elsewhere} elsewhere"
        );
    }
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
    let mut command = scratch.omex();
    command
        .args(["debug", "memory", "report", "--json"])
        .arg(&plan);
    let memory: serde_json::Value = serde_json::from_slice(&ok(&mut command).stdout).unwrap();
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
