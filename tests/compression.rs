//! `compression: zstd`: pages that are read compressed where the device gains
//! by it are the same pages.

mod common;
#[path = "common/compressed.rs"]
mod compressed;

use std::path::{Path, PathBuf};

use common::{Scratch, container, fails, ok, report, smollm2, u64_of};
use compressed::{build, floats, slow_target};

fn memory_report(scratch: &Scratch, plan: &Path, flags: &[&str]) -> Vec<u8> {
    let mut command = scratch.omex();
    command.args(["debug", "memory", "report"]).arg(plan);
    ok(command.args(flags)).stdout
}

fn bytes_per_token(scratch: &Scratch, plan: &Path) -> u64 {
    let json = memory_report(scratch, plan, &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    u64_of(&json["paging"], "bytes_per_token")
}

fn run(scratch: &Scratch, plan: &Path) -> std::process::Command {
    let mut run = scratch.omex();
    run.arg("run").arg(plan);
    run.args(["--raw", "-p", "abc", "-n", "6", "--no-speculation"]);
    run
}

/// The cached file of compressed pages.
fn frames_file(scratch: &Scratch) -> PathBuf {
    let cache = std::fs::read_dir(scratch.path("home/cache")).unwrap();
    let mut files = cache.map(|entry| entry.unwrap().path());
    files
        .find(|path| path.extension().is_some_and(|e| e == "zst"))
        .expect("compressed pages are cached")
}

#[test]
fn compressed_pages_are_the_same_pages() {
    let scratch = Scratch::new("compression");
    slow_target(&scratch);
    let model = floats(&scratch);
    let plain = build(&scratch, &model, "plain.bin", "none");
    let plan = build(&scratch, &model, "zstd.bin", "zstd");
    let text = String::from_utf8(memory_report(&scratch, &plan, &[])).unwrap();
    assert!(text.contains("are read compressed, which saves"), "{text}");
    let (less, more) = (
        bytes_per_token(&scratch, &plan),
        bytes_per_token(&scratch, &plain),
    );
    assert!(less * 10 < more * 9, "{less} and {more} bytes for a token");

    let (wanted, got) = (
        report(&mut run(&scratch, &plain)),
        report(&mut run(&scratch, &plan)),
    );
    assert_eq!(got["token_ids"], wanted["token_ids"]);
    assert_eq!(got["result_id"], wanted["result_id"]);
    let read = |report| u64_of(report, "bytes_read");
    assert!(read(&got) < read(&wanted), "{got} {wanted}");

    // Every bit of a frame counts: zstd's own structure, or the page's digest.
    let frames = frames_file(&scratch);
    let whole = std::fs::read(&frames).unwrap();
    for at in [40, 4096, 4096 + 3000] {
        let mut broken = whole.clone();
        broken[at] ^= 0x10;
        std::fs::write(&frames, &broken).unwrap();
        let error = fails(&mut run(&scratch, &plan), 6);
        assert!(error.contains(".zst"), "{at}: {error}");
    }
    std::fs::write(&frames, &whole[..whole.len() - 4096]).unwrap();
    let error = fails(&mut run(&scratch, &plan), 6);
    assert!(error.contains("rebuild"), "{error}");
    std::fs::remove_file(&frames).unwrap();
    let error = fails(&mut run(&scratch, &plan), 5);
    assert!(error.contains(".zst"), "{error}");
    // Building again makes the same file and the same plan.
    let again = build(&scratch, &model, "again.bin", "zstd");
    assert_eq!(std::fs::read(&frames).unwrap(), whole);
    let plans = [&plan, &again].map(|plan| std::fs::read(plan).unwrap());
    assert!(plans[0] == plans[1], "the same plan");
    assert_eq!(
        report(&mut run(&scratch, &again))["token_ids"],
        wanted["token_ids"]
    );
}

#[test]
fn four_bit_pages_are_not_worth_it() {
    let scratch = Scratch::new("compression-4bit");
    slow_target(&scratch);
    let flags = ["--ram", "90MiB"];
    let model = smollm2();
    let file = container(
        &model,
        r#""model_requirements": {"max_sequence_tokens": 128},"#,
    );
    let loads = r#""type": "model_load","#;
    let file = file.replace(loads, &format!("{loads} \"compression\": \"zstd\","));
    let file = scratch.write("task.json", file);
    let plan = scratch.path("plan.bin");
    let mut build = scratch.omexc();
    build
        .arg("build")
        .arg(file)
        .arg("-o")
        .arg(&plan)
        .arg("--any-path");
    ok(build.args(flags).args(["--target", "slow.toml"]));
    let text = String::from_utf8(memory_report(&scratch, &plan, &[])).unwrap();
    assert!(text.contains("are read for every token"), "{text}");
    assert!(!text.contains("compressed"), "{text}");
    // Frames of the few pages that would shrink are all that is stored.
    let stored = std::fs::metadata(frames_file(&scratch)).unwrap().len();
    assert!(stored < 8 << 20, "{stored} bytes");
}
