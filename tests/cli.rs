//! The commands as a user meets them: what they print, how they fail.

mod common;

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Scratch, container, fails, ok, report, root, smollm2, u64_of, windows_container};

const SMALL: &str = r#""model_requirements": {"max_sequence_tokens": 256},"#;

fn stdout(output: std::process::Output) -> String {
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn explain_knows_codes_and_refuses_others() {
    let scratch = Scratch::new("explain");
    let story = stdout(ok(scratch.omexc().args(["explain", "OMX0012"])));
    assert!(story.len() > 40, "{story}");
    fails(scratch.omexc().args(["explain", "OMX9999"]), 2);
}

#[test]
fn usage_errors_exit_with_2() {
    let scratch = Scratch::new("usage");
    for arguments in [
        &["run"][..],
        &["run", "a", "b"],
        &["run", "a", "--temp", "x"],
        &["run", "a", "-p", "x", "-i", "y"],
        &["nonsense"],
        &["trust", "nonsense"],
    ] {
        fails(scratch.omex().args(arguments), 2);
    }
    fails(scratch.omexc().args(["build", "x", "--ram", "lots"]), 2);
    fails(scratch.omexc().args(["build", "x", "--ctx-size", "0"]), 2);
}

#[test]
fn a_model_flag_that_has_no_effect_says_so() {
    let scratch = Scratch::new("model-flag");
    let model = smollm2();
    let file = scratch.write("task.omex.json", container(&model, SMALL));
    for (flags, told) in [(&["-m", "other.gguf"][..], true), (&[], false)] {
        let mut build = scratch.omexc();
        build.args(["build", "--any-path"]).arg(&file).args(flags);
        let output = ok(build.arg("-o").arg(scratch.path("plan.bin")));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.contains("-m has no effect"), told, "{text}");
    }
}

/// Nobody waits for a result that has nowhere to go.
#[test]
fn outputs_that_cannot_be_written_are_refused_before_the_work() {
    let scratch = Scratch::new("unwritable");
    let model = smollm2();
    let paged = ["--weights", "paged", "--ram", "90MiB"];
    let plan = scratch.build(&model, "plan.bin", SMALL, &paged);
    let file = scratch.write("task.omex.json", container(&model, SMALL));
    std::fs::remove_dir_all(scratch.path("home/cache")).unwrap();
    scratch.write("file", "kept");
    std::fs::create_dir(scratch.path("folder")).unwrap();
    let (plan, file) = (plan.to_str().unwrap(), file.to_str().unwrap());
    let synth = ["synth", "--shape", "mistral-7b", "-o"];
    let build = ["build", "--any-path", file, "-o"];
    let report = ["debug", "memory", "report", "--any-path", file];
    // Without the packed model a run that went further would say so.
    let run = ["run", plan, "-p", "x"];
    let execute = ["execute", "--any-path", "--file", file];
    for wrong in ["missing/file", "folder", "file/below"] {
        for (program, command) in [
            (scratch.omexc(), synth.to_vec()),
            (scratch.omexc(), build.to_vec()),
            (scratch.omex(), vec!["profile", "-o"]),
            (scratch.omex(), [&report[..], &["--svg"]].concat()),
            (scratch.omex(), [&report[..], &["--html"]].concat()),
            (scratch.omex(), [&report[..], &["--trace"]].concat()),
            (scratch.omex(), [&run[..], &["--trace"]].concat()),
            (scratch.omex(), [&run[..], &["--dump-logits"]].concat()),
            (scratch.omex(), [&execute[..], &["--trace"]].concat()),
        ] {
            // A plan's folder is made.
            if command[0] == "build" && wrong == "missing/file" {
                continue;
            }
            let mut program = program;
            let error = fails(program.args(&command).arg(wrong), 5);
            assert!(error.contains(wrong), "{command:?}: {error}");
            assert!(!error.contains("packed model"), "{command:?}: {error}");
        }
    }
    assert!(!scratch.path("home/cache").exists(), "a model was packed");
    assert_eq!(std::fs::read(scratch.path("file")).unwrap(), b"kept");
}

#[test]
fn tokenize_gives_ids_and_takes_them_back() {
    let scratch = Scratch::new("tokenize");
    let model = smollm2();
    let text = "Hello <|im_start|> wörld\n\n  123\t☃ fn main() {}";
    let mut encode = scratch.omex();
    encode
        .arg("tokenize")
        .arg(&model)
        .args(["--ids", "-p", text]);
    let ids = stdout(ok(&mut encode));
    let mut decode = scratch.omex();
    decode
        .arg("tokenize")
        .arg(&model)
        .args(["--decode", "-p", &ids]);
    assert_eq!(stdout(ok(&mut decode)), text);
    let mut bad = scratch.omex();
    bad.arg("tokenize")
        .arg(&model)
        .args(["--decode", "-p", "99999999"]);
    fails(&mut bad, 3);
}

#[test]
fn inspect_tells_models_packed_models_and_plans_apart() {
    let scratch = Scratch::new("inspect");
    let model = smollm2();
    let plan = scratch.build(&model, "plan.bin", SMALL, &[]);
    let packed = std::fs::read_dir(scratch.path("home/cache"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "omex"))
        .expect("a packed model in the cache");
    for (file, word) in [
        (&model, "GGUF"),
        (&packed, "Packed model"),
        (&plan, "result id"),
    ] {
        let text = stdout(ok(scratch.omex().arg("inspect").arg(file)));
        assert!(text.contains(word), "{}: {text}", file.display());
        let json = stdout(ok(scratch.omex().arg("inspect").arg(file).arg("--json")));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["schema_version"], 1);
    }
    fails(
        scratch.omex().arg("inspect").arg(root().join("Cargo.toml")),
        3,
    );
    fails(scratch.omex().args(["inspect", "/dev/zero"]), 5);

    let list = stdout(ok(scratch.omex().args(["cache", "list"])));
    assert!(list.contains("packed model of Smollm2"), "{list}");
    let foreign = scratch.write("home/cache/plan.bin", "not of the cache");
    ok(scratch.omex().args(["cache", "gc", "--days", "0"]));
    assert!(!packed.exists() && foreign.exists());
    let refusal = fails(scratch.omex().arg("run").arg(&plan).args(["-p", "x"]), 5);
    assert!(refusal.contains(".omex"), "{refusal}");
}

#[test]
fn a_plan_runs_and_reports() {
    let scratch = Scratch::new("run");
    let plan = scratch.build(&smollm2(), "plan.bin", SMALL, &[]);
    scratch.write("input.txt", "The cat sat on the mat.");
    let run = |flags: &[&str]| {
        let mut command = scratch.omex();
        command.arg("run").arg(&plan).args(["-n", "12"]).args(flags);
        command
    };
    let text = stdout(ok(&mut run(&[])));
    assert!(!text.is_empty());
    let report = report(&mut run(&[]));
    assert_eq!(report["text"].as_str().unwrap().trim_end(), text.trim_end());
    assert!(u64_of(&report, "prompt_tokens") > 5);
    let generated = u64_of(&report, "generated_tokens");
    assert!((1..=12).contains(&generated), "{report}");
    for field in ["prefill_tps", "decode_tps", "seconds", "ttft_ms"] {
        assert!(report[field].as_f64().unwrap() > 0.0, "{field}: {report}");
    }

    let events = stdout(ok(&mut run(&["--events", "jsonl"])));
    let mut said = String::new();
    for line in events.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        if event["event"] == "text" {
            said.push_str(event["text"].as_str().unwrap());
        }
    }
    assert_eq!(said.trim_end(), text.trim_end());

    let sampled = |seed: &str| {
        let flags = ["--temp", "1.5", "--top-k", "50", "--seed", seed];
        stdout(ok(&mut run(&flags)))
    };
    assert_eq!(sampled("7"), sampled("7"));
    let all: std::collections::BTreeSet<String> =
        ["1", "2", "3", "4"].map(sampled).into_iter().collect();
    assert!(all.len() > 1, "four seeds give one text: {all:?}");
}

#[test]
fn inputs_that_do_not_fit_are_refused_with_numbers() {
    let scratch = Scratch::new("inputs");
    let plan = scratch.build(&smollm2(), "plan.bin", SMALL, &[]);
    let long = "word ".repeat(400);
    let mut run = scratch.omex();
    run.arg("run").arg(&plan).args(["-p", &long]);
    let refusal = fails(&mut run, 3);
    assert!(refusal.contains("256"), "{refusal}");
    fails(
        scratch
            .omex()
            .arg("run")
            .arg(&plan)
            .args(["-i", "missing.txt"]),
        5,
    );
    fails(
        scratch
            .omex()
            .arg("run")
            .arg(&plan)
            .args(["-p", "x", "-t", "999"]),
        2,
    );
    ok(scratch
        .omex()
        .arg("run")
        .arg(&plan)
        .args(["-p", "", "-n", "2"]));
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut run = scratch.omex();
    run.arg("run").arg(&plan).args(["-p", "x", "-n", "4"]);
    fails(run.stdout(full), 5);
    // What cannot be told on standard error is no fault of the run.
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut run = scratch.omex();
    run.arg("run").arg(&plan).args(["-p", "x", "-n", "4"]);
    assert_eq!(run.stderr(full()).status().unwrap().code(), Some(0));
    let mut run = scratch.omex();
    run.arg("run").arg("missing.bin").stderr(full());
    assert_eq!(run.status().unwrap().code(), Some(5));
    // A pipe that nobody reads is not waited for.
    let pipe = scratch.path("logits");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let mut run = scratch.omex();
    run.arg("run").arg(&plan).args(["-p", "x", "-n", "1"]);
    fails(run.arg("--dump-logits").arg(&pipe), 5);
}

/// Neither a build nor a run replaces what it reads.
#[test]
fn outputs_replace_no_sources() {
    let scratch = Scratch::new("apart");
    scratch.write("long.txt", "A short text. ".repeat(20));
    let model = scratch.path("model.gguf");
    std::fs::copy(smollm2(), &model).unwrap();
    let container = windows_container(&model);
    let build = |text: &str, plan: &str| {
        let file = scratch.write("task.omex.json", text);
        let mut build = scratch.omexc();
        build.args(["build", "--any-path"]).arg(file);
        build.arg("-o").arg(scratch.path(plan));
        build
    };
    let unchanged = |name: &str, before: &[u8]| {
        assert!(
            std::fs::read(scratch.path(name)).unwrap() == before,
            "{name}"
        );
    };
    let bytes = std::fs::read(&model).unwrap();
    for output in ["model.gguf", "./task.omex.json"] {
        let text = container.replace("joined.txt", output);
        let refusal = fails(&mut build(&text, "plan.bin"), 5);
        assert!(refusal.contains("would replace the"), "{refusal}");
        unchanged("task.omex.json", text.as_bytes());
    }
    for plan in ["model.gguf", "task.omex.json"] {
        let refusal = fails(&mut build(&container, plan), 5);
        assert!(refusal.contains("would replace the"), "{refusal}");
        unchanged("task.omex.json", container.as_bytes());
    }
    unchanged("model.gguf", &bytes);
    let circle = container.replace("joined.txt", "./long.txt");
    fails(&mut build(&circle, "plan.bin"), 3);
    // A name that the compiler cannot see through.
    scratch.write("folder/other.txt", "");
    ok(&mut build(
        &container.replace("joined.txt", "folder/../long.txt"),
        "plan.bin",
    ));
    let long = std::fs::read(scratch.path("long.txt")).unwrap();
    let mut run = scratch.omex();
    let refusal = fails(run.arg("run").arg(scratch.path("plan.bin")), 3);
    assert!(refusal.contains("would replace the input"), "{refusal}");
    unchanged("long.txt", &long);
    ok(&mut build(&container, "plan.bin"));
    let plan = std::fs::read(scratch.path("plan.bin")).unwrap();
    for output in ["plan.bin", "long.txt"] {
        let mut run = scratch.omex();
        run.arg("run").arg(scratch.path("plan.bin"));
        let refusal = fails(run.arg("--dump-logits").arg(scratch.path(output)), 3);
        assert!(refusal.contains("would replace the"), "{refusal}");
    }
    unchanged("plan.bin", &plan);
    unchanged("long.txt", &long);
    // The container chose the name, not where a link of it leads.
    scratch.write("own/diary.txt", "Mine.");
    std::os::unix::fs::symlink("own/diary.txt", scratch.path("joined.txt")).unwrap();
    ok(scratch.omex().arg("run").arg(scratch.path("plan.bin")));
    unchanged("own/diary.txt", b"Mine.");
    assert!(!scratch.path("joined.txt").is_symlink());
    // Nor the plan that runs, a file that a folder leads to, or what a report is of.
    for (input, output) in [
        ("long.txt", "plan.bin"),
        ("texts", "texts/b.txt"),
        ("texts/*", "texts/b.txt"),
    ] {
        for name in ["texts/a.txt", "texts/b.txt"] {
            scratch.write(name, "A short text.");
        }
        let text = container
            .replace("long.txt", input)
            .replace("joined.txt", output);
        ok(&mut build(&text, "plan.bin"));
        let before = std::fs::read(scratch.path(output)).unwrap();
        let refusal = fails(scratch.omex().arg("run").arg(scratch.path("plan.bin")), 3);
        assert!(refusal.contains("would replace the"), "{refusal}");
        unchanged(output, &before);
    }
    ok(&mut build(&container, "plan.bin"));
    let plan = std::fs::read(scratch.path("plan.bin")).unwrap();
    let text = scratch.write("task.omex.json", &container);
    for (of, name) in [
        ("plan.bin", "plan.bin"),
        ("task.omex.json", "task.omex.json"),
        ("task.omex.json", "model.gguf"),
    ] {
        for drawing in ["--html", "--svg", "--trace"] {
            let mut report = scratch.omex();
            report
                .args(["debug", "memory", "report", "--any-path"])
                .arg(scratch.path(of));
            let refusal = fails(report.arg(drawing).arg(scratch.path(name)), 5);
            assert!(refusal.contains("would replace the"), "{refusal}");
        }
    }
    let mut execute = scratch.omex();
    execute.args(["execute", "--any-path", "--file"]).arg(&text);
    let refusal = fails(execute.arg("--dump-logits").arg(&text), 3);
    assert!(refusal.contains("would replace the"), "{refusal}");
    unchanged("plan.bin", &plan);
    unchanged("task.omex.json", container.as_bytes());
    unchanged("model.gguf", &bytes);
}

#[test]
fn damaged_plans_and_models_are_refused() {
    let scratch = Scratch::new("damaged");
    let model = smollm2();
    let plan = scratch.build(&model, "plan.bin", SMALL, &["--bundle"]);
    let bytes = std::fs::read(&plan).unwrap();
    let refuse = |what: &str, content: &[u8]| {
        let damaged = scratch.write("damaged.bin", content);
        let mut run = scratch.omex();
        run.arg("run").arg(damaged).args(["-p", "x", "-n", "1"]);
        let refusal = fails(&mut run, 6);
        assert!(refusal.contains("error[OMX"), "{what}: {refusal}");
    };
    refuse("empty", &[]);
    refuse("text", b"no plan at all");
    for length in [7, 100, 400, 4096, bytes.len() / 2, bytes.len() - 1] {
        refuse("truncated", &bytes[..length]);
    }
    // The header, metadata, and the last page of weights.
    for at in [9, 33, 80, 290, 4096 + 500, bytes.len() - 20_000] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        refuse("flipped", &damaged);
    }
    let mut longer = bytes.clone();
    longer.extend([0; 16]);
    refuse("longer", &longer);
    let mut missing = scratch.omex();
    missing.args(["run", "missing.bin", "-p", "x", "--message-format", "json"]);
    let refusal: serde_json::Value = serde_json::from_str(&fails(&mut missing, 5)).unwrap();
    assert_eq!(refusal["code"], "OMX0203", "{refusal}");
    assert_eq!(u64_of(&refusal, "exit_status"), 5);
}

#[test]
fn a_damaged_packed_model_is_found_at_its_first_use() {
    let scratch = Scratch::new("packed");
    for (name, flags) in [
        ("mapped", &[][..]),
        ("read", &["--ram", "400MiB"]),
        ("paged", &["--ram", "80MiB"]),
    ] {
        let plan = scratch.build(&smollm2(), &format!("{name}.bin"), SMALL, flags);
        let folder = scratch.path("home/cache");
        let packed = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "omex"))
            .unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&packed)
            .unwrap();
        let at = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let mut run = scratch.omex();
        run.arg("run").arg(&plan).args(["-p", "x", "-n", "1"]);
        fails(&mut run, 6);
        file.write_all_at(&byte, at).unwrap();
        let mut run = scratch.omex();
        ok(run.arg("run").arg(&plan).args(["-p", "x", "-n", "1"]));
        file.set_len(at).unwrap();
        let mut run = scratch.omex();
        run.arg("run").arg(&plan).args(["-p", "x", "-n", "1"]);
        fails(&mut run, 6);
        std::fs::remove_file(&packed).unwrap();
    }
}

#[test]
fn a_measured_profile_is_a_target() {
    let scratch = Scratch::new("profile");
    let file = scratch.path("machine.toml");
    let mut profile = scratch.omex();
    profile.args(["profile", "--name", "bench-7", "--storage-size", "16MiB"]);
    ok(profile
        .arg("--storage")
        .arg(scratch.path("."))
        .arg("-o")
        .arg(&file));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("storage_mb_per_s") && text.contains("in flight"),
        "{text}"
    );
    let task = scratch.write("task.omex.json", container(&smollm2(), SMALL));
    let plan = scratch.path("plan.bin");
    let mut build = scratch.omexc();
    build.arg("build").arg(task).arg("-o").arg(&plan);
    ok(build
        .args(["--any-path", "--ram", "80MiB", "--target"])
        .arg(&file));
    let mut report = scratch.omex();
    let report = stdout(ok(report.args(["debug", "memory", "report"]).arg(&plan)));
    assert!(report.contains("target bench-7"), "{report}");
    assert!(report.contains("are read for every token"), "{report}");
    fails(
        scratch.omex().args(["profile", "--storage-size", "1MiB"]),
        2,
    );
}

#[test]
fn execute_builds_once_and_reads_containers_from_pipes() {
    let scratch = Scratch::new("execute");
    let text = container(&smollm2(), SMALL);
    let file = scratch.write("task.omex.json", &text);
    scratch.write("input.txt", "Water boils at one hundred degrees.");
    let mut first = scratch.omex();
    let first = stdout(ok(first
        .args(["execute", "--any-path", "-n", "6", "--file"])
        .arg(&file)));
    let plans = || {
        std::fs::read_dir(scratch.path("home/cache/plans"))
            .unwrap()
            .count()
    };
    assert_eq!(plans(), 1);
    let mut again = scratch.omex();
    let again = stdout(ok(again
        .args(["execute", "--any-path", "-n", "6", "--file"])
        .arg(&file)));
    assert_eq!((first.as_str(), plans()), (again.as_str(), 1));
    // A plan whose model is gone is built again.
    for packed in std::fs::read_dir(scratch.path("home/cache")).unwrap() {
        let packed = packed.unwrap().path();
        if packed.is_file() {
            std::fs::remove_file(packed).unwrap();
        }
    }
    let mut rebuilt = scratch.omex();
    rebuilt.args([
        "execute",
        "--any-path",
        "-n",
        "6",
        "--model-dir",
        "elsewhere",
    ]);
    assert_eq!(stdout(ok(rebuilt.arg("--file").arg(&file))), first);

    let mut piped = scratch.omex();
    piped.args(["execute", "--any-path", "-n", "6"]);
    piped.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), first);

    let bad = scratch.write("bad.omex.json", text.replace("model_load", "model_lode"));
    let mut run = scratch.omex();
    let refusal = fails(run.args(["execute", "--any-path", "--file"]).arg(bad), 3);
    assert!(refusal.contains("error[OMX"), "{refusal}");
}

#[test]
fn nothing_is_built_to_be_executed_on_another_machine() {
    let scratch = Scratch::new("other-machine");
    let other = match cfg!(target_arch = "x86_64") {
        true => "pi5",
        false => "laptop",
    };
    let file = scratch.write("task.omex.json", container(&smollm2(), ""));
    let mut execute = scratch.omex();
    execute.args(["execute", "--any-path", "--target", other, "--file"]);
    let refusal = fails(execute.arg(file), 6);
    assert!(refusal.contains("does not run here"), "{refusal}");
    assert!(!scratch.path("home/cache").exists());
}

/// A container may come from anyone; whoever runs it names what they like.
#[test]
fn links_do_not_lead_out_of_the_tasks_folder() {
    use std::os::unix::fs::symlink;

    let scratch = Scratch::new("links");
    let outside = scratch.write("outside/secret.txt", "Water boils.");
    scratch.write("task/docs/own.txt", "Ice melts.");
    let task = scratch.path("task");
    symlink(&outside, task.join("input.txt")).unwrap();
    symlink(outside.parent().unwrap(), task.join("folder")).unwrap();
    symlink(&outside, task.join("docs/link.txt")).unwrap();
    std::fs::hard_link(smollm2(), task.join("model.gguf")).unwrap();
    let build = |input: &str, flags: &[&str]| {
        let text = container(Path::new("model.gguf"), SMALL).replace("input.txt", input);
        scratch.write("task/task.omex.json", text);
        let mut build = scratch.omexc();
        build.current_dir(&task).args(["build", "task.omex.json"]);
        ok(build.args(["-o", "plan.bin"]).args(flags));
    };
    let run = |flags: &[&str]| {
        let mut run = scratch.omex();
        run.current_dir(&task)
            .args(["run", "plan.bin", "-n", "1"])
            .args(flags);
        run
    };
    for input in ["input.txt", "folder", "folder/secret.txt"] {
        build(input, &[]);
        let refusal = fails(&mut run(&[]), 3);
        assert!(refusal.contains("leads out"), "{refusal}");
        ok(&mut run(&["-i", outside.to_str().unwrap()]));
        build(input, &["--any-path"]);
        ok(&mut run(&[]));
    }
    build("docs", &[]);
    let events = |flags: &[&str]| {
        let events = stdout(ok(&mut run(&[&["--events", "jsonl"], flags].concat())));
        let of = |event: &str, name: &str| {
            let mut lines = events.lines();
            lines.any(|line| line.contains(event) && line.contains(name))
        };
        (
            of("prompt", "own.txt"),
            of("prompt", "link.txt"),
            of("note", "link.txt"),
        )
    };
    assert_eq!(events(&[]), (true, false, true));
    assert_eq!(events(&["-i", "docs"]), (true, true, false));
}

/// The cache knows a plan by all that its bytes depend on.
#[test]
fn cached_plans_differ_where_their_plans_do() {
    let scratch = Scratch::new("cached-plans");
    let task = windows_container(&smollm2());
    let file = scratch.write("task.omex.json", task);
    let profile = |name: &str, storage: &str| {
        let text = include_str!("../compiler/src/target/profiles/laptop.toml");
        let text = text.replace("storage_mb_per_s = { value = 1400,", storage);
        scratch.write(name, text)
    };
    let slow = profile("slow.toml", "storage_mb_per_s = { value = 50,");
    let fast = profile("fast.toml", "storage_mb_per_s = { value = 3000,");
    let build = |flags: &[&str]| {
        let mut build = scratch.omexc();
        build.args(["build", "--cached", "--any-path"]).args(flags);
        stdout(ok(build.arg(&file)))
    };
    let paged = ["--ram", "90MiB", "-c", "512", "--target"];
    let plans = [
        build(&["--parallel", "1"]),
        build(&["--parallel", "2"]),
        build(&[&paged[..], &[slow.to_str().unwrap()]].concat()),
        build(&[&paged[..], &[fast.to_str().unwrap()]].concat()),
    ];
    for (i, plan) in plans.iter().enumerate() {
        assert!(!plans[..i].contains(plan), "{plan}");
    }
    assert_eq!(build(&["--parallel", "1"]), plans[0]);
}

/// The plan of this container.
fn built(scratch: &Scratch, task: &str) -> PathBuf {
    let file = scratch.write("built.omex.json", task);
    let plan = scratch.path("built.bin");
    let mut build = scratch.omexc();
    build.args(["build", "--any-path"]).arg(&file);
    ok(build.arg("-o").arg(&plan));
    plan
}

/// What one node generates, text by text and joined, another takes.
#[test]
fn nodes_take_what_others_generated() {
    let scratch = Scratch::new("chain");
    let task = windows_container(&smollm2()).replace("long.txt", "texts/*.txt");
    let join = r#"{"id": "join","#;
    let analyse = |id: &str, source: &str| {
        format!(
            r#"{{"id": "{id}", "type": "semantic_analysis", "depends_on": ["{source}"],
            "guidance": "zsei://frameworks/document-summary", "max_tokens": 3,
            "model_reference": "{}"}},"#,
            smollm2().display()
        )
    };
    let each = analyse("each", "infer");
    let all = analyse("all", "gather");
    let gather = r#"{"id": "gather", "type": "output_merge_and_decode", "depends_on": ["infer"],
        "output": ["gathered.txt"]},"#;
    let task = task.replace(join, &[&each, gather, &all, join].concat());
    for name in ["a", "b"] {
        scratch.write(
            &format!("texts/{name}.txt"),
            "The river runs slowly. ".repeat(24),
        );
    }
    scratch.write("texts/c.md", "Not this.");
    let plan = built(&scratch, &task);
    let run = |flags: &[&str]| {
        let mut run = scratch.omex();
        stdout(ok(run.arg("run").arg(&plan).args(flags)))
    };
    let events = run(&["--events", "jsonl"]);
    let count = |what: &[&str]| {
        let holds = |line: &&str| what.iter().all(|part| line.contains(part));
        events.lines().filter(holds).count()
    };
    let windows = count(&[r#""event":"prompt""#, r#""node":"infer""#]);
    assert!(windows >= 4, "{events}");
    assert_eq!(count(&[r#""event":"prompt""#, r#""node":"each""#]), windows);
    assert_eq!(count(&[r#""event":"prompt""#, r#""node":"all""#]), 1);
    assert_eq!(count(&["c.md"]), 0);
    // The same bits however many windows go through a layer together.
    let joined = || std::fs::read(scratch.path("joined.txt")).unwrap();
    let (printed, written) = (run(&[]), joined());
    assert!(!printed.is_empty() && !written.is_empty());
    assert_eq!(
        std::fs::read(scratch.path("gathered.txt")).unwrap(),
        written
    );
    let alone = run(&["--parallel", "1", "-t", "1"]);
    assert_eq!((alone, joined()), (printed, written));
}

#[test]
fn windows_of_any_number_run_in_one_plan() {
    let scratch = Scratch::new("windows");
    let plan = built(&scratch, &windows_container(&smollm2()));
    let mut peak = 0;
    for sentences in [3, 60] {
        scratch.write(
            "long.txt",
            "The river runs slowly to the sea. ".repeat(sentences),
        );
        let report = report(scratch.omex().arg("run").arg(&plan));
        let windows = (sentences * 8).div_ceil(64);
        let generated = u64_of(&report, "generated_tokens");
        assert!(generated >= windows as u64, "{windows} windows: {report}");
        let joined = std::fs::read_to_string(scratch.path("joined.txt")).unwrap();
        assert!(!joined.is_empty());
        // More windows take no more memory.
        let measured = u64_of(&report, "rss_peak_measured_bytes");
        assert!(
            peak == 0 || measured < peak + (1 << 20),
            "{peak} {measured}"
        );
        peak = measured;
    }
}

#[test]
fn a_missing_input_is_found_before_another_is_answered() {
    let scratch = Scratch::new("later-input");
    let task = windows_container(&smollm2());
    let task = task.replace(r#"["long.txt"]"#, r#"["long.txt", "later"]"#);
    scratch.write("long.txt", "The river runs slowly to the sea.");
    let plan = built(&scratch, &task);
    let run = |flags: &[&str]| {
        let mut run = scratch.omex();
        run.arg("run").arg(&plan).args(flags);
        run
    };
    let output = run(&["--events", "jsonl"]).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    // What is passed over is told beside every kind of result.
    scratch.write("later/text.txt", "Rain falls.");
    scratch.write("later/none.bin", b"\0");
    std::os::unix::fs::symlink("nowhere", scratch.path("later/link.txt")).unwrap();
    for flags in [&["--json"][..], &[]] {
        let output = ok(&mut run(flags));
        let notes = String::from_utf8(output.stderr).unwrap();
        for note in ["none.bin is empty or not", "link.txt is a link"] {
            assert!(notes.contains(&format!("note: later/{note}")), "{notes}");
        }
    }
}

#[test]
fn shells_get_completions_for_both_programs() {
    let scratch = Scratch::new("completions");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        for (mut program, flag) in [
            (scratch.omex(), "repeat-penalty"),
            (scratch.omexc(), "bundle"),
        ] {
            let script = ok(program.args(["completions", shell])).stdout;
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains(flag), "{shell}");
        }
    }
    let refusal = fails(scratch.omex().args(["completions", "csh"]), 2);
    assert!(refusal.contains("powershell"), "{refusal}");
}

/// As llama.cpp's `-n -1`.
#[test]
fn generation_may_go_on_to_the_end_of_the_context() {
    let scratch = Scratch::new("to-the-end");
    let plan = scratch.build(&smollm2(), "plan.bin", SMALL, &[]);
    let run = |flags: &[&str]| {
        let mut run = scratch.omex();
        run.arg("run").arg(&plan).args(["--raw", "-p", "1 2 3 4"]);
        report(run.args(flags))
    };
    let whole = run(&["-n", "-1"]);
    let tokens = u64_of(&whole, "prompt_tokens") + u64_of(&whole, "generated_tokens");
    assert_eq!(tokens, 256, "{whole}");
    let start = run(&["-n", "9"]);
    let ids = |report: &serde_json::Value| report["token_ids"].as_array().unwrap().clone();
    assert!(ids(&whole).starts_with(&ids(&start)), "{whole}");
    let mut much = scratch.omex();
    much.arg("run").arg(&plan).args(["-p", "1", "-n", "256"]);
    let refusal = fails(&mut much, 3);
    assert!(refusal.contains("up to 256 tokens"), "{refusal}");
}

#[test]
fn an_output_named_dash_is_standard_output() {
    let scratch = Scratch::new("dash");
    let task = windows_container(&smollm2()).replace("joined.txt", "-");
    scratch.write("long.txt", "The river runs slowly to the sea.");
    let plan = built(&scratch, &task);
    let output = ok(scratch.omex().arg("run").arg(&plan));
    assert!(output.stdout.len() > 1, "{output:?}");
    assert!(!scratch.path("-").exists());
}

/// What a program may use of a system that gives little.
#[test]
fn memory_that_is_refused_ends_with_4() {
    let scratch = Scratch::new("refused");
    let file = scratch.write("task.omex.json", container(&smollm2(), SMALL));
    let plan = scratch.build(&smollm2(), "plan.bin", SMALL, &[]);
    let limited = |limit: &str, program: &str| {
        let mut limited = scratch.command("sh");
        let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        limited.args(["-c", &script, program]);
        limited
    };
    let omexc = env!("CARGO_BIN_EXE_omexc");
    for (limit, why) in [("-d 4000", "refuses"), ("-s 64", "the stack is limited")] {
        let mut build = limited(limit, omexc);
        build.args(["build", "--any-path"]).arg(&file);
        let refusal = fails(build.args(["-o", "other.bin"]), 4);
        assert!(refusal.contains(why), "{refusal}");
    }
    let omex = env!("CARGO_BIN_EXE_omex");
    for (limit, why) in [("-d 4000", "refuses"), ("-s 64", "the stack is limited")] {
        let mut run = limited(limit, omex);
        let refusal = fails(run.arg("run").arg(&plan).args(["-p", "x", "-n", "1"]), 4);
        assert!(refusal.contains(why), "{refusal}");
    }
    // Address space for the program, and not for the model.
    let mut run = limited("-v 100000", omex);
    let refusal = fails(run.arg("run").arg(&plan).args(["-p", "x", "-n", "1"]), 4);
    assert!(refusal.contains("cannot map the packed model"), "{refusal}");
}

/// Limits and pipes that end a process, or keep it waiting, where nobody looks.
#[test]
fn what_cannot_be_written_is_an_error_and_no_end_without_a_word() {
    let scratch = Scratch::new("limits");
    let model = smollm2();
    let file = scratch.write("task.omex.json", container(&model, SMALL));
    let plan = scratch.build(&model, "plan.bin", SMALL, &[]);
    let sh = |script: &str, program: &str| {
        let mut sh = scratch.command("bash");
        sh.args(["-c", script, program]);
        sh
    };
    let omex = env!("CARGO_BIN_EXE_omex");
    let mut small = sh(r#"ulimit -f 100 && exec "$0" "$@""#, omex);
    small
        .arg("run")
        .arg(&plan)
        .args(["-p", "x", "-n", "9", "--dump-logits", "l.f32"]);
    let refusal = fails(&mut small, 5);
    assert!(refusal.contains("File too large"), "{refusal}");
    // Whoever closes the pipe has seen enough.
    let script = r#"set -o pipefail; "$0" "$@" | head -c 1 > /dev/null"#;
    let mut closed = sh(script, omex);
    closed
        .arg("run")
        .arg(&plan)
        .args(["-p", "Count to 100.", "-n", "200"]);
    assert_eq!(fails(&mut closed, 141), "");
    // The container came from standard input, so no text can.
    let script = r#"sed 's/input.txt/-/' task.omex.json | "$0" execute --any-path -n 1"#;
    let refusal = fails(&mut sh(script, omex), 2);
    assert!(
        refusal.contains("which the container came from"),
        "{refusal}"
    );
    // A lock that would be waited for.
    std::fs::create_dir_all(scratch.path("piped")).unwrap();
    ok(scratch.command("mkfifo").arg("piped/.lock"));
    let mut build = scratch.omexc();
    build.args(["build", "--any-path", "--cache-dir", "piped"]);
    fails(build.arg(&file).args(["-o", "other.bin"]), 5);
    // A copy by name, which a wrong build would replace.
    let copy = scratch.path("copy.gguf");
    std::fs::hard_link(&model, &copy).unwrap();
    let mut synth = scratch.omexc();
    synth.args(["synth", "--vocabulary-from"]).arg(&copy);
    let refusal = fails(synth.arg("-o").arg(&copy), 2);
    assert!(refusal.contains("would replace"), "{refusal}");
}

#[test]
fn registries_are_found_by_their_names() {
    let scratch = Scratch::new("registries");
    let model = smollm2();
    let named = container(Path::new("zsei://models/tiny"), SMALL);
    let named = named.replace("local://zsei", "zsei");
    let file = scratch.write("task.omex.json", named);
    let build = || {
        let mut build = scratch.omexc();
        build.args(["build", "--any-path"]).arg(&file);
        build.arg("-o").arg(scratch.path("plan.bin"));
        build
    };
    fails(&mut build(), 5);
    let text = format!("[models.tiny]\npath = {:?}\n", model);
    scratch.write("home/registry.toml", &text);
    ok(&mut build());
    scratch.write("omex.registry.toml", b"\xff");
    let refusal = fails(&mut build(), 3);
    assert!(refusal.contains("the registry is not UTF-8"), "{refusal}");
    std::fs::remove_file(scratch.path("omex.registry.toml")).unwrap();
    std::fs::create_dir(scratch.path("omex.registry.toml")).unwrap();
    fails(&mut build(), 5);
}

#[test]
fn a_memory_report_takes_runs_of_its_plan_alone() {
    let scratch = Scratch::new("measured");
    let plan = scratch.build(&smollm2(), "plan.bin", SMALL, &[]);
    let other = scratch.build(&smollm2(), "other.bin", "", &[]);
    let mut run = scratch.omex();
    run.arg("run")
        .arg(&plan)
        .args(["-p", "x", "-n", "1", "--json"]);
    let run = scratch.write("run.json", ok(&mut run).stdout);
    let report = |plan: &Path| {
        let mut report = scratch.omex();
        report.args(["debug", "memory", "report"]).arg(plan);
        report.arg("--measured").arg(&run);
        report
    };
    let text = stdout(ok(&mut report(&plan)));
    assert!(text.contains("measured: rss peak"), "{text}");
    let refusal = fails(&mut report(&other), 2);
    assert!(refusal.contains("another plan"), "{refusal}");
}

#[test]
fn debug_with_a_file_is_a_memory_report() {
    let scratch = Scratch::new("debug");
    let file = scratch.write("task.omex.json", container(&smollm2(), SMALL));
    let report = |words: &[&str]| {
        let mut report = scratch.omex();
        report.args(words).args(["--any-path", "--profile", "pi4"]);
        stdout(ok(report.arg(&file)))
    };
    let short = report(&["debug"]);
    assert!(short.contains("target pi4"), "{short}");
    assert_eq!(short, report(&["debug", "memory", "report"]));
    fails(scratch.omex().arg("debug"), 2);
}

#[test]
fn validate_says_what_cannot_be_built() {
    let scratch = Scratch::new("validate");
    let text = container(Path::new("model.gguf"), SMALL);
    let limited = text.replacen(
        '{',
        r#"{"completion_policy": {"max_runtime_minutes": 1},"#,
        1,
    );
    for (text, verdict) in [
        (&text, "valid (task"),
        (&limited, "valid, but cannot be built"),
    ] {
        let file = scratch.write("task.omex.json", text);
        let output = ok(scratch.omex().arg("validate").arg(file));
        let said = stdout(output);
        assert!(said.contains(verdict), "{said}");
    }
    // A build may name another target than the container.
    let device = text.replacen('{', r#"{"context": {"device_profile": "pi6"},"#, 1);
    let file = scratch.write("task.omex.json", device);
    let output = ok(scratch.omex().arg("validate").arg(&file));
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.contains("there is no target `pi6`"), "{warning}");
}

#[test]
fn containers_are_held_against_devices_and_models() {
    let scratch = Scratch::new("held");
    let model = smollm2();
    let build = |text: String, flags: &[&str]| {
        let file = scratch.write("task.omex.json", text);
        let mut build = scratch.omexc();
        build.args(["build", "--any-path"]).arg(file).args(flags);
        build.arg("-o").arg(scratch.path("plan.bin"));
        build
    };
    let device = container(&model, SMALL);
    let device = device.replacen('{', r#"{"context": {"device_profile": "pi6"},"#, 1);
    let refusal = fails(&mut build(device.clone(), &[]), 3);
    assert!(refusal.contains("task.omex.json:1:"), "{refusal}");
    assert!(refusal.contains("there is no target `pi6`"), "{refusal}");
    ok(&mut build(device, &["--target", "pi4"]));
    let layers = |end: u32| {
        format!(
            r#"{{"omex_version": "0.3.0", "task_id": "t", "task_type": "summarization",
"model_requirements": {{"max_sequence_tokens": 256}}, "task_flow": [
{{"id": "load", "type": "model_load", "model_path": "{}", "load_layers": [0, {end}],
  "output": "model"}},
{{"id": "tok", "type": "tokenize", "input": "doc.txt", "output": "tokens"}},
{{"id": "fwd", "type": "forward_pass", "model": "model", "input": "tokens", "output": "logits"}},
{{"id": "gen", "type": "greedy_sample", "logits": "logits", "max_tokens": 4, "output": "ids"}},
{{"id": "dec", "type": "decode", "input": "ids", "output": "text"}}]}}"#,
            model.display()
        )
    };
    ok(&mut build(layers(30), &[]));
    let refusal = fails(&mut build(layers(31), &[]), 3);
    assert!(refusal.contains("the model has 30 layers"), "{refusal}");
}

#[test]
fn an_interrupt_ends_a_run_with_130() {
    let scratch = Scratch::new("interrupt");
    let plan = scratch.build(&smollm2(), "plan.bin", "", &[]);
    let mut run = scratch.omex();
    run.arg("run")
        .arg(&plan)
        .args(["-n", "1500", "-p", "Count from 1 to 1000 in words."]);
    run.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = run.spawn().unwrap();
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut byte)
        .unwrap();
    let pid = child.id().to_string();
    ok(std::process::Command::new("kill").args(["-INT", &pid]));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
}

/// The plan is read again by the next run, which should not wait for the disk.
#[test]
fn a_run_reads_nothing_that_is_cached() {
    let scratch = Scratch::new("cached");
    let plan = scratch.build(&smollm2(), "plan.bin", SMALL, &[]);
    let run = || {
        let mut run = scratch.omex();
        run.arg("run").arg(&plan).args(["-p", "Say", "-n", "1"]);
        u64_of(&report(&mut run), "bytes_read")
    };
    run();
    assert_eq!(run(), 0);
}
