//! The runtime without a compiler: its size, its memory and what it is made of.

#[path = "common/cgroup.rs"]
mod cgroup;
mod common;
#[path = "common/compressed.rs"]
mod compressed;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use cgroup::{Cgroup, cold_charge_peak};
use common::{Scratch, fails, ok, report, root, smollm2, u64_of};

const BYTES_MAX: u64 = 3 << 19;
const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const CONTEXT: &str = r#""model_requirements": {"max_sequence_tokens": 256},"#;
const PROMPT: [&str; 4] = ["-p", "Say hello.", "-n", "8"];

/// The program, as devices get it.
static SMALL: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = root().join("target/small");
    ok(cargo()
        .args(["build", "--locked", "--profile", "small", "--bin", "omex"])
        .args(["--package", "omex", "--no-default-features", "--target-dir"])
        .arg(&target));
    target.join("small/omex")
});

/// Crates that have no place in a runtime that only follows a plan.
const BANNED: &[&str] = &[
    "cranelift",
    "serde_json",
    "serde",
    "pest",
    "regex",
    "minijinja",
    "clap",
    "petgraph",
    "zstd",
    "toml",
    "tokenizers",
];

fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).env_remove("CARGO_TARGET_DIR");
    cargo
}

#[test]
fn its_dependency_tree_is_small() {
    let tree = ok(cargo()
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none"])
        .args(["--package", "omex", "--no-default-features"]));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let mut crates: Vec<&str> = tree.lines().filter_map(|l| l.split(' ').next()).collect();
    crates.sort_unstable();
    crates.dedup();
    for name in &crates {
        let banned = BANNED
            .iter()
            .find(|b| name.split(['-', '_']).any(|part| part == **b) || name == *b);
        assert_eq!(banned, None, "{name} is in the small runtime:\n{tree}");
    }
    insta::assert_snapshot!("small_runtime_crates", crates.join("\n"));
}

#[test]
fn it_is_small_and_runs_trusted_plans_only() {
    let bytes = std::fs::metadata(&*SMALL).unwrap().len();
    assert!(bytes <= BYTES_MAX, "{bytes} bytes, at most {BYTES_MAX}");

    let scratch = Scratch::new("small");
    let plan = scratch.build(&smollm2(), "plan.bin", CONTEXT, &["--sign"]);
    let small = |home: &str, arguments: &[&str]| {
        let mut command = Command::new(&*SMALL);
        command.env("OMEX_HOME", scratch.path(home)).args(arguments);
        command
    };
    let run = |home: &str| {
        let mut command = small(home, &["run"]);
        command.arg(&plan).args(PROMPT);
        command.arg("--model-dir").arg(scratch.path("home/cache"));
        command
    };
    let mut full = scratch.omex();
    let full = ok(full.arg("run").arg(&plan).args(PROMPT)).stdout;
    assert_eq!(ok(&mut run("home")).stdout, full, "the same text");

    // Elsewhere the code is unknown, until its signer is trusted.
    let refusal = fails(&mut run("elsewhere"), 7);
    assert!(refusal.contains("omex trust add"), "{refusal}");
    let secret = std::fs::read_to_string(scratch.path("home/trust/signing.key")).unwrap();
    let key = public_key(secret.trim());
    ok(&mut small("elsewhere", &["trust", "add", &key, "builder"]));
    assert_eq!(ok(&mut run("elsewhere")).stdout, full, "the same text");
    let signature = scratch.path("plan.bin.sig");
    let text = std::fs::read_to_string(&signature).unwrap();
    std::fs::write(&signature, text.replace(&text[..2], "00")).unwrap();
    fails(&mut run("elsewhere"), 7);

    // It has no decompressor, and says so before it looks for the pages.
    compressed::slow_target(&scratch);
    let model = compressed::floats(&scratch);
    let plan = compressed::build(&scratch, &model, "zstd.bin", "zstd");
    let mut run = small("home", &["run"]);
    let refusal = fails(run.arg(&plan).args(PROMPT), 6);
    assert!(refusal.contains("without `compression`"), "{refusal}");
}

/// A run of `plan` by the small runtime.
fn run_of(scratch: &Scratch, plan: &Path) -> Command {
    let mut run = scratch.command(SMALL.to_str().unwrap());
    run.arg("run").arg(plan).args(PROMPT);
    run
}

/// Plans whose weights are mapped, and whose weights are read into the arena.
fn plans(scratch: &Scratch) -> [PathBuf; 2] {
    let build = |name, flags| scratch.build(&smollm2(), name, CONTEXT, flags);
    [
        build("mapped.bin", &[]),
        build("read.bin", &["--ram", "1GiB"]),
    ]
}

#[test]
fn its_measured_peak_is_at_most_one_mib_below_the_predicted_one() {
    let scratch = Scratch::new("small-memory");
    let mut wrong = Vec::new();
    for plan in plans(&scratch) {
        for threads in ["1", "2"] {
            let report = report(run_of(&scratch, &plan).args(["-t", threads]));
            let peak = |name| u64_of(&report, &format!("rss_peak_{name}_bytes"));
            let (predicted, measured) = (peak("predicted"), peak("measured"));
            if !(predicted - MIB..=predicted).contains(&measured) {
                let plan = plan.display();
                wrong.push(format!("{plan}, {threads}: {measured} of {predicted}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The charge that a plan states, without what a code generator needs of it.
fn charge_of(scratch: &Scratch, plan: &Path) -> u64 {
    let mut memory = scratch.omex();
    memory.args(["debug", "memory", "report", "--json"]);
    let memory = ok(memory.arg(plan)).stdout;
    let memory: serde_json::Value = serde_json::from_slice(&memory).unwrap();
    let items = memory["items"].as_array().unwrap().iter();
    let generator = items
        .filter(|i| ["code generator", "encoder tables"].contains(&i["kind"].as_str().unwrap()));
    let generator: u64 = generator.map(|item| u64_of(item, "bytes")).sum();
    assert!(generator > 0, "{memory}");
    u64_of(&memory, "charge_peak_bytes") - generator
}

#[test]
fn its_measured_charge_is_at_most_two_mib_below_the_predicted_one() {
    let scratch = Scratch::new("small-charge");
    for plan in plans(&scratch) {
        let predicted = charge_of(&scratch, &plan);
        let run = run_of(&scratch, &plan);
        let Some(measured) = cold_charge_peak("omex-small-charge", &scratch, &run) else {
            return;
        };
        assert!(
            (predicted - 2 * MIB..=predicted).contains(&measured),
            "{}: {measured} of {predicted}",
            plan.display()
        );
    }
}

#[test]
fn it_runs_in_a_cgroup_of_exactly_its_charge_and_refuses_one_page_less() {
    let Some(group) = Cgroup::new("omex-small") else {
        return;
    };
    let scratch = Scratch::new("small-cgroup");
    for plan in plans(&scratch) {
        let charge = charge_of(&scratch, &plan);
        let expected = ok(&mut run_of(&scratch, &plan)).stdout;
        for threads in ["1", "2"] {
            let mut run = run_of(&scratch, &plan);
            run.args(["-t", threads]);
            group.limit(charge).unwrap();
            let bounded = ok(&mut group.run(&run)).stdout;
            assert_eq!(bounded, expected, "{}, {threads}", plan.display());
            group.limit(charge - PAGE).unwrap();
            let refusal = fails(&mut group.run(&run), 4);
            assert!(refusal.contains(&charge.to_string()), "{refusal}");
        }
    }
}

fn public_key(secret: &str) -> String {
    let secret = blake3::Hash::from_hex(secret).unwrap();
    let key = ed25519_dalek::SigningKey::from_bytes(secret.as_bytes());
    let key = *key.verifying_key().as_bytes();
    blake3::Hash::from(key).to_hex().to_string()
}
