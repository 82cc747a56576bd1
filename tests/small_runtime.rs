//! The runtime without a compiler: its size and what it is made of.

mod common;
#[path = "common/compressed.rs"]
mod compressed;

use std::process::Command;

use common::{Scratch, fails, ok, root, smollm2};

const BYTES_MAX: u64 = 3 << 19;

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
    let target = root().join("target/small");
    ok(cargo()
        .args(["build", "--locked", "--profile", "small", "--bin", "omex"])
        .args(["--package", "omex", "--no-default-features", "--target-dir"])
        .arg(&target));
    let small = target.join("small/omex");
    let bytes = std::fs::metadata(&small).unwrap().len();
    assert!(bytes <= BYTES_MAX, "{bytes} bytes, at most {BYTES_MAX}");

    let scratch = Scratch::new("small");
    let fields = r#""model_requirements": {"max_sequence_tokens": 256},"#;
    let plan = scratch.build(&smollm2(), "plan.bin", fields, &["--sign"]);
    let small = |home: &str, arguments: &[&str]| {
        let mut command = Command::new(&small);
        command.env("OMEX_HOME", scratch.path(home)).args(arguments);
        command
    };
    let prompt = ["-p", "Say hello.", "-n", "8"];
    let run = |home: &str| {
        let mut command = small(home, &["run"]);
        command.arg(&plan).args(prompt);
        command.arg("--model-dir").arg(scratch.path("home/cache"));
        command
    };
    let mut full = scratch.omex();
    let full = ok(full.arg("run").arg(&plan).args(prompt)).stdout;
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
    let refusal = fails(run.arg(&plan).args(prompt), 6);
    assert!(refusal.contains("without `compression`"), "{refusal}");
}

fn public_key(secret: &str) -> String {
    let secret = blake3::Hash::from_hex(secret).unwrap();
    let key = ed25519_dalek::SigningKey::from_bytes(secret.as_bytes());
    let key = *key.verifying_key().as_bytes();
    blake3::Hash::from(key).to_hex().to_string()
}
