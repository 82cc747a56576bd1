//! The same bits for every number of threads, prompt chunking and weight
//! source; the same plan bytes from every folder.

mod common;

use std::path::Path;

use common::{Scratch, gemma3, ok, report, smollm2, u64_of};

const PROMPT: &str = "Rust is a systems programming language. In three sentences, \
say what ownership, borrowing and lifetimes are for, and give an example of each: \
fn main() { let s = String::from(\"héllo ☃\"); println!(\"{s}\"); }";

/// BLAKE3 of the logits of every position of [`PROMPT`] and 16 generated
/// tokens. It changes with the numeric contract only.
const GOLDEN: &str = include_str!("golden/smollm2-logits.txt");
/// The same of the test on Gemma.
const GEMMA3_GOLDEN: &str = include_str!("golden/gemma3-logits.txt");

fn logits(
    scratch: &Scratch,
    plan: &Path,
    prompt: &[&str],
    flags: &[&str],
) -> (String, serde_json::Value) {
    let dump = scratch.path("logits.f32");
    let mut run = scratch.omex();
    run.arg("run").arg(plan).args(prompt);
    run.arg("--dump-logits").arg(&dump).args(flags);
    let report = report(&mut run);
    let bytes = std::fs::read(&dump).unwrap();
    (blake3::hash(&bytes).to_hex().to_string(), report)
}

#[test]
fn logits_and_tokens_do_not_depend_on_how_they_are_computed() {
    let scratch = Scratch::new("determinism");
    let model = smollm2();
    let fields = r#""model_requirements": {"max_sequence_tokens": 512},"#;
    let mapped = scratch.build(&model, "mapped.bin", fields, &[]);
    let read = scratch.build(&model, "read.bin", fields, &["--ram", "400MiB"]);
    let prompt = ["-p", PROMPT, "-n", "16"];
    // Two thirds and one third of the weights stay; reads of several sizes.
    let paged = scratch.build(&model, "paged.bin", fields, &["--ram", "100MiB"]);
    let flags = [
        "--ram",
        "64MiB",
        "--page-read",
        "1MiB",
        "--page-slots",
        "5MiB",
    ];
    let smaller = scratch.build(&model, "smaller.bin", fields, &flags);
    for plan in [&paged, &smaller] {
        for flags in [&["-t", "2"][..], &["-t", "3", "--ubatch-size", "5"]] {
            let (hash, _) = logits(&scratch, plan, &prompt, flags);
            assert_eq!(
                hash,
                GOLDEN.trim(),
                "logits of {} {flags:?}",
                plan.display()
            );
        }
    }
    let mut runs = Vec::new();
    for plan in [&mapped, &read] {
        for threads in ["1", "2", "3"] {
            runs.extend(["1", "7", "64", "512"].map(|chunk| (plan.as_path(), threads, chunk)));
        }
    }
    assert_same_bits(&scratch, &runs, &prompt, GOLDEN);
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
        let (hash, report) = logits(scratch, plan, prompt, &flags);
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

#[test]
fn plans_do_not_depend_on_folders_or_threads() {
    let model = smollm2();
    let plans: Vec<Vec<u8>> = ["here", "some/where/else"]
        .iter()
        .zip(["1", "3"])
        .map(|(folder, threads)| {
            let scratch = Scratch::new("plans");
            let container = scratch.write(
                &format!("{folder}/task.omex.json"),
                common::container(&model, ""),
            );
            let plan = scratch.path("plan.bin");
            let mut build = scratch.omexc();
            build.arg("build").arg(&container).arg("-o").arg(&plan);
            build.env("RAYON_NUM_THREADS", threads);
            ok(build.args(["--any-path", "--target", "pi5", "-j", threads]));
            std::fs::read(&plan).unwrap()
        })
        .collect();
    assert!(plans[0] == plans[1], "plan bytes differ");
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
