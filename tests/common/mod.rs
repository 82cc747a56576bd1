//! What the end-to-end tests share: a scratch folder with an OMEX home of its
//! own, the two binaries, and the real model.
#![allow(dead_code, reason = "every test binary uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// SmolLM2-135M-Instruct Q4_1, which `examples/fetch_model.sh` provides.
pub(crate) fn smollm2() -> PathBuf {
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    model("OMEX_TEST_MODEL_SMOLLM2", name, "examples/fetch_model.sh")
}

/// Gemma 3 270M Q4_K_M, which `examples/fetch_model.sh gemma3` provides.
pub(crate) fn gemma3() -> PathBuf {
    let name = "gemma-3-270m-q4_k_m.gguf";
    model(
        "OMEX_TEST_MODEL_GEMMA3",
        name,
        "examples/fetch_model.sh gemma3",
    )
}

fn model(variable: &str, name: &str, fetch: &str) -> PathBuf {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => root().join("target/models").join(name),
    };
    assert!(path.is_file(), "{} is missing: run {fetch}", path.display());
    path
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A scratch folder that is removed when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        // A folder of that name is left of a process that died.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn omexc(&self) -> Command {
        self.command(env!("CARGO_BIN_EXE_omexc"))
    }

    pub(crate) fn omex(&self) -> Command {
        self.command(env!("CARGO_BIN_EXE_omex"))
    }

    /// A command in this folder that sees no configuration but its own.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.0)
            .env("OMEX_HOME", self.path("home"))
            .env_remove("OMEX_TARGET")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Builds a container that says `fields` beside its fixed part.
    pub(crate) fn build(&self, model: &Path, plan: &str, fields: &str, flags: &[&str]) -> PathBuf {
        let container = container(model, fields);
        let file = self.write(&format!("{plan}.omex.json"), container);
        let out = self.path(plan);
        let mut command = self.omexc();
        command.arg("build").arg(&file).arg("-o").arg(&out);
        // The model lies outside the scratch folder.
        command.arg("--any-path");
        if !flags.contains(&"--target") {
            command.args(["--target", "host"]);
        }
        ok(command.args(flags));
        out
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-over files in the target folder harm nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A completion container over `input.txt`.
pub(crate) fn container(model: &Path, fields: &str) -> String {
    let model = model.to_str().unwrap();
    format!(
        r#"{{
  "omex_version": "0.3.0",
  "task_id": "test",
  "task_type": "summarization",
  {fields}
  "task_flow": [
    {{"id": "load", "type": "model_load", "model_path": "{model}", "output": "model"}},
    {{"id": "read", "type": "tokenize", "input": "input.txt", "output": "tokens"}},
    {{"id": "infer", "type": "forward_pass", "model": "model", "input": "tokens", "output": "logits"}},
    {{"id": "pick", "type": "greedy_sample", "logits": "logits", "max_tokens": 64, "output": "generated"}},
    {{"id": "text", "type": "decode", "input": "generated", "output": "result"}}
  ]
}}"#
    )
}

/// A container that cuts `long.txt` into windows of 64 tokens and generates 4
/// tokens from each, to `joined.txt`.
pub(crate) fn windows_container(model: &Path) -> String {
    format!(
        r#"{{
  "omex_version": "0.3.0",
  "task_id": "windows",
  "task_type": "summarization",
  "model_requirements": {{"max_sequence_tokens": 256}},
  "execution_graph": {{
    "entry_node": "cut",
    "nodes": [
      {{"id": "cut", "type": "token_chunk_parse", "input": ["long.txt"], "output": ["chunks"],
        "window_size": 64, "stride": 64}},
      {{"id": "infer", "type": "inference_slices", "depends_on": ["cut"], "input": ["chunks"],
        "output": ["parts"], "model_reference": "{}", "max_tokens": 4}},
      {{"id": "join", "type": "output_merge_and_decode", "depends_on": ["infer"],
        "output": ["joined.txt"]}}
    ]
  }}
}}"#,
        model.display()
    )
}

/// Runs a command that must succeed.
pub(crate) fn ok(command: &mut Command) -> Output {
    let output = command.output().expect("the binary starts");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command that must end with `code`, and returns its standard error.
pub(crate) fn fails(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("the binary starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// The report of `omex run --json`.
pub(crate) fn report(command: &mut Command) -> serde_json::Value {
    let output = ok(command.arg("--json"));
    serde_json::from_slice(&output.stdout).expect("--json prints one JSON object")
}

pub(crate) fn u64_of(report: &serde_json::Value, field: &str) -> u64 {
    report[field]
        .as_u64()
        .unwrap_or_else(|| panic!("{field} in {report}"))
}
