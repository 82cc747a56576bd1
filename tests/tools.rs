//! The tools around a model: made-up models, speed, perplexity.

mod common;

use std::path::PathBuf;

use common::{Scratch, fails, ok};
use serde_json::Value;

/// A made-up model of a few hundred kilobytes.
fn tiny(scratch: &Scratch, name: &str, flags: &[&str]) -> PathBuf {
    let path = scratch.path(name);
    let mut synth = scratch.omexc();
    synth.args(["synth", "--shape", "tiny", "--layers", "2", "-o"]);
    ok(synth.arg(&path).args(flags));
    path
}

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn made_up_models_depend_on_their_flags_alone() {
    let scratch = Scratch::new("synth");
    let read = |name: &str, flags: &[&str]| std::fs::read(tiny(&scratch, name, flags)).unwrap();
    let first = read("a.gguf", &["--seed", "7"]);
    assert!(first == read("b.gguf", &["--seed", "7"]));
    assert!(first != read("c.gguf", &["--seed", "8"]));
    assert!(first.len() < read("d.gguf", &["--seed", "7", "--type", "Q8_0"]).len());
    let out = scratch.path("e.gguf");
    for wrong in [
        &["--type", "q9"][..],
        &["--shape", "gpt-5"],
        &["--kv-heads", "3"],
        &["--layers", "0"],
        &["--vocabulary", "5"],
        &["--head", "7"],
    ] {
        let mut synth = scratch.omexc();
        fails(synth.args(["synth", "-o"]).arg(&out).args(wrong), 2);
        assert!(!out.exists(), "{wrong:?}");
    }
}

#[test]
fn bench_has_the_rows_of_llama_bench() {
    let scratch = Scratch::new("bench");
    let model = tiny(&scratch, "m.gguf", &[]);
    let mut bench = scratch.omex();
    bench.arg("bench").arg("-m").arg(&model);
    bench.args([
        "-p", "8", "-n", "2", "-pg", "4,2", "-d", "0,5", "-r", "2", "-t", "1,2",
    ]);
    let rows = json(&ok(bench.args(["-o", "json"])));
    let tests: Vec<[u64; 4]> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            ["n_threads", "n_prompt", "n_gen", "n_depth"].map(|key| row[key].as_u64().unwrap())
        })
        .collect();
    let of_depth = |depth| [[8, 0, depth], [0, 2, depth], [4, 2, depth]];
    let expected: Vec<[u64; 4]> = [1, 2]
        .into_iter()
        .flat_map(|threads| {
            let all = of_depth(0).into_iter().chain(of_depth(5));
            all.map(move |[p, n, d]| [threads, p, n, d])
        })
        .collect();
    assert_eq!(tests, expected);
    for row in rows.as_array().unwrap() {
        let tokens = row["n_prompt"].as_u64().unwrap() + row["n_gen"].as_u64().unwrap();
        let samples = row["samples_ns"].as_array().unwrap();
        assert_eq!(samples.len(), 2, "{row}");
        for (ns, ts) in samples.iter().zip(row["samples_ts"].as_array().unwrap()) {
            let expected = tokens as f64 * 1e9 / ns.as_f64().unwrap();
            assert!(
                (ts.as_f64().unwrap() / expected - 1.0).abs() < 1e-9,
                "{row}"
            );
        }
        let average: f64 = row["samples_ts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ts| ts.as_f64().unwrap() / 2.0)
            .sum();
        assert!((row["avg_ts"].as_f64().unwrap() / average - 1.0).abs() < 1e-9);
        assert_eq!(row["model_type"], "llama 3.02M Q4_K", "{row}");
    }
    for (format, lines) in [("md", 4), ("csv", 3), ("jsonl", 2)] {
        let mut bench = scratch.omex();
        bench.arg("bench").arg("-m").arg(&model);
        bench.args(["-p", "4", "-n", "1", "-r", "1", "-t", "1", "-o", format]);
        let text = String::from_utf8(ok(&mut bench).stdout).unwrap();
        assert_eq!(text.lines().count(), lines, "{text}");
    }
    let run = |flags: &[&str]| {
        let mut bench = scratch.omex();
        bench.arg("bench").arg("-m").arg(&model);
        bench.args(["-p", "4", "-n", "0", "-r", "1", "-o", "json"]);
        json(&ok(bench.args(flags)))
    };
    for (flags, kv) in [(&["--no-warmup"][..], "f16"), (&["--kv", "q8"], "q8_0")] {
        let rows = run(flags);
        assert_eq!(
            (&rows[0]["type_k"], &rows[0]["type_v"]),
            (&kv.into(), &kv.into())
        );
    }
    // What llama-bench's own readers look for.
    let rows = run(&[]);
    for name in [
        "build_commit",
        "build_number",
        "cpu_info",
        "gpu_info",
        "backends",
        "model_filename",
        "model_type",
        "model_size",
        "model_n_params",
        "n_batch",
        "n_ubatch",
        "n_threads",
        "type_k",
        "type_v",
        "n_prompt",
        "n_gen",
        "n_depth",
        "test_time",
        "avg_ns",
        "stddev_ns",
        "avg_ts",
        "stddev_ts",
        "samples_ns",
        "samples_ts",
    ] {
        assert!(!rows[0][name].is_null(), "{name} is missing");
    }
    for (flags, status, message) in [
        (&["-t", "0"][..], 2, "at least 1 thread"),
        (&["-p", "many"], 2, "`many` is no number"),
        (&["-pg", "8"], 2, "two numbers"),
        (&["-d", "4000"], 3, "trained for 2048"),
        (
            &["-d", "3000000000", "-n", "3000000000"],
            3,
            "trained for 2048",
        ),
        (&["--kv", "q4"], 2, "q4"),
        (&["-ngl", "99"], 2, "gl"),
    ] {
        let mut wrong = scratch.omex();
        let output = fails(wrong.arg("bench").arg("-m").arg(&model).args(flags), status);
        assert!(output.contains(message), "{flags:?}: {output}");
    }
}

/// A model that is not known is no model: nothing is guessed, and the name is said.
#[test]
fn unknown_models_are_refused_by_name() {
    let scratch = Scratch::new("unknown");
    let sound = std::fs::read(tiny(&scratch, "m.gguf", &["--tied", "false"])).unwrap();
    for (name, other, message) in [
        ("llama", "xlama", "architecture `xlama` is not supported"),
        (
            "output.weight",
            "outputs.weird",
            "tensor `outputs.weird` is no part of the model",
        ),
        (
            "blk.1.ffn_up.weight",
            "blk.7.ffn_up.weight",
            "tensor `blk.1.ffn_up.weight` is missing",
        ),
    ] {
        assert_eq!(name.len(), other.len());
        // A string of a GGUF file stands behind its length.
        let spelled = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let (name, other) = (spelled(name), spelled(other));
        let at = sound.windows(name.len()).position(|w| w == name);
        let mut model = sound.clone();
        model[at.unwrap()..][..name.len()].copy_from_slice(&other);
        let model = scratch.write("unknown.gguf", model);
        let mut bench = scratch.omex();
        let bench = bench.arg("bench").arg("-m").arg(&model);
        let stderr = fails(bench.args(["-p", "1", "-n", "0"]), 3);
        assert!(stderr.contains(message), "{stderr}");
    }
}

#[test]
fn int8_caches_need_whole_blocks() {
    let scratch = Scratch::new("blocks");
    let model = tiny(&scratch, "m.gguf", &["--head", "48", "--type", "F16"]);
    let mut bench = scratch.omex();
    let bench = bench
        .arg("bench")
        .arg("-m")
        .arg(&model)
        .args(["--kv", "q8"]);
    let stderr = fails(bench.args(["-p", "1", "-n", "0"]), 3);
    assert!(stderr.contains("the model's heads have 48"), "{stderr}");
}

#[test]
fn bench_reads_memory_between_generated_tokens() {
    let scratch = Scratch::new("bench_reads");
    let model = tiny(&scratch, "m.gguf", &[]);
    let run = |format: &str| {
        let mut bench = scratch.omex();
        bench.arg("bench").arg("-m").arg(&model).arg("--reads");
        let bench = bench.args(["-p", "4", "-n", "2", "-r", "1", "-t", "1", "-o", format]);
        ok(bench)
    };
    let rows = json(&run("json"));
    let [prompt, generation] = &rows.as_array().unwrap()[..] else {
        panic!("two tests, not {rows}");
    };
    assert!(prompt["reads_bytes_per_s"].is_null(), "{prompt}");
    assert!(
        generation["reads_bytes_per_s"].as_u64().unwrap() > 0,
        "{generation}"
    );
    // Every token reads the matrices of all layers and of the head, which are most of
    // the file but not its table of embeddings.
    let [of_token, all] =
        ["token_weights_bytes", "model_size"].map(|key| generation[key].as_u64().unwrap());
    assert!(of_token > all / 2 && of_token < all, "{generation}");
    let table = String::from_utf8(run("md").stdout).unwrap();
    let cells: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(cells[0][8..], ["reads, GB/s", "of reads", ""], "{table}");
    assert_eq!(cells[2][8..], ["", "", ""], "{table}");
    assert!(cells[3][9].ends_with(" %"), "{table}");
}

#[test]
fn bench_times_every_kernel_of_a_plan() {
    let scratch = Scratch::new("kernels");
    let model = tiny(&scratch, "m.gguf", &["--type", "Q4_1"]);
    let mut bench = scratch.omex();
    bench.arg("bench").arg("-m").arg(&model);
    let output = ok(bench.args(["--kernels", "-t", "1", "-r", "1"]));
    let text = String::from_utf8(output.stdout).unwrap();
    for kernel in [
        "matmul Q4_1 1024x256",
        "attention 4/2x64",
        "norm 256",
        "| all |",
    ] {
        assert_eq!(text.matches(kernel).count(), 2, "{kernel}: {text}");
    }
}

#[test]
fn perplexity_scores_the_second_half_of_each_chunk() {
    let scratch = Scratch::new("perplexity");
    let model = tiny(&scratch, "m.gguf", &["--type", "F32"]);
    let text = scratch.path("text.txt");
    std::fs::write(
        &text,
        "The quick brown fox jumps over the lazy dog.\n".repeat(20),
    )
    .unwrap();
    let run = |flags: &[&str]| {
        let mut perplexity = scratch.omex();
        perplexity
            .arg("perplexity")
            .arg("-m")
            .arg(&model)
            .arg("-f")
            .arg(&text);
        json(&ok(perplexity.args(["-c", "32", "--json"]).args(flags)))
    };
    let one = run(&["-t", "1"]);
    let chunks = one["chunks"].as_u64().unwrap();
    assert!(chunks >= 2);
    assert_eq!(one["tokens_scored"].as_u64().unwrap(), 15 * chunks);
    let perplexity = one["perplexity"].as_f64().unwrap();
    assert!(perplexity.is_finite() && perplexity > 1.0, "{one}");
    // Neither threads nor the tokens of a pass change a bit.
    for flags in [&["-t", "2"][..], &["-t", "1", "--ubatch-size", "5"]] {
        assert_eq!(run(flags)["perplexity"], one["perplexity"], "{flags:?}");
    }
    assert_eq!(run(&["--chunks", "2"])["tokens_scored"], 30);
    let mut long = scratch.omex();
    long.arg("perplexity")
        .arg("-m")
        .arg(&model)
        .arg("-f")
        .arg(&text);
    fails(long.args(["-c", "2048"]), 2);
}
