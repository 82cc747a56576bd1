use std::path::{Path, PathBuf};
use std::sync::Arc;

use omex_grammar::reference::ModelReference;

use super::*;
use crate::container::{Task, ValidateOptions, validate};
use crate::diagnostic::RenderOptions;

const REGISTRY: &str = r#"
search = ["../target"]

[default]
model = "zsei://models/small"

[models.small]
path = "small.gguf"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

[models."qwen2.5".q8]
path = "q8.gguf"

[models."qwen2.5".q4_k_m]
path = "/abs/q4.gguf"

[models.gone]
path = "gone.gguf"

[models.remote]
url = "https://example.org/remote.gguf"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"#;

fn registry(text: &str) -> Result<Registry, Vec<Diagnostic>> {
    Registry::parse(
        &Arc::new(Source::new("examples/omex.registry.toml", text)),
        Path::new("examples"),
    )
}

fn task(models: &[&str]) -> Task {
    let nodes: Vec<String> = models
        .iter()
        .enumerate()
        .map(|(n, model)| {
            let model = if model.is_empty() {
                String::new()
            } else {
                format!(r#", "model_reference": "{model}""#)
            };
            format!(r#"{{"id": "n{n}", "type": "inference_slices", "depends_on": ["a"]{model}}}"#)
        })
        .collect();
    let text = format!(
        r#"{{"omex_version": "0.3", "task_id": "t", "task_type": "chat", "execution_graph": {{"entry_node": "a", "nodes": [
{{"id": "a", "type": "token_chunk_parse", "input": "-"}},
{}
]}}}}"#,
        nodes.join(",\n")
    );
    let (task, found) = validate("t.json", text.into_bytes(), &ValidateOptions::default());
    task.unwrap_or_else(|| panic!("{found:?}"))
}

/// Resolves with these files in the world.
fn resolve(
    models: &[&str],
    flag: Option<&str>,
    files: &[&str],
    registries: &[Registry],
) -> Result<ResolvedModel, Diagnostic> {
    let places = Places {
        container: Some(PathBuf::from("examples")),
        working: PathBuf::from("work"),
        cache: Some(PathBuf::from("cache")),
    };
    let exists = |path: &Path| files.iter().any(|file| Path::new(file) == path);
    let resolver = Resolver {
        places: &places,
        registries,
        exists: &exists,
    };
    let flag = flag.map(|text| ModelReference::parse(text).expect("a reference"));
    resolver.resolve_task(&task(models), flag.as_ref())
}

#[test]
fn models_are_found_in_order() {
    let known = [registry(REGISTRY).expect("a right registry")];
    for (model, flag, files, expected) in [
        (
            "local://m.gguf",
            None,
            &["examples/m.gguf", "work/m.gguf"][..],
            "examples/m.gguf",
        ),
        (
            "local://m.gguf",
            None,
            &["work/m.gguf", "cache/m.gguf"],
            "work/m.gguf",
        ),
        (
            "m.gguf",
            None,
            &["examples/../target/m.gguf", "cache/m.gguf"],
            "examples/../target/m.gguf",
        ),
        ("m.gguf", None, &["cache/m.gguf"], "cache/m.gguf"),
        (
            "m.gguf",
            Some("other.gguf"),
            &["work/m.gguf", "work/other.gguf"],
            "work/m.gguf",
        ),
        (
            "",
            Some("m.gguf"),
            &["examples/m.gguf", "work/m.gguf"],
            "work/m.gguf",
        ),
        ("", Some("/abs/m.gguf"), &["/abs/m.gguf"], "/abs/m.gguf"),
        ("", None, &["examples/small.gguf"], "examples/small.gguf"),
        (
            "zsei://models/small?q4",
            None,
            &["examples/small.gguf"],
            "examples/small.gguf",
        ),
        (
            "zsei://models/qwen2.5?q8",
            None,
            &["examples/q8.gguf"],
            "examples/q8.gguf",
        ),
        (
            "zsei://models/qwen2.5?q4",
            None,
            &["/abs/q4.gguf"],
            "/abs/q4.gguf",
        ),
        (
            "zsei://models/qwen2.5?q4_k_m",
            None,
            &["/abs/q4.gguf"],
            "/abs/q4.gguf",
        ),
    ] {
        let found =
            resolve(&[model], flag, files, &known).unwrap_or_else(|e| panic!("{model}: {e}"));
        assert_eq!(found.path, Path::new(expected), "{model} with {flag:?}");
    }
    // Two names of one file are one model.
    let files = ["examples/small.gguf", "work/small.gguf"];
    let models = ["zsei://models/small", "local://small.gguf", ""];
    assert!(resolve(&models, None, &files, &known).is_ok());
}

#[test]
fn missing_models_say_what_to_do() {
    let known = [registry(REGISTRY).expect("a right registry")];
    let cases: [(&[&str], Option<&str>, &[Registry]); 10] = [
        (&["local://m.gguf"], None, &known),
        (&["m.gguf"], None, &[]),
        (&["zsei://models/gone"], None, &known),
        (&["zsei://models/remote"], None, &known),
        (&["zsei://models/smal?q8"], None, &known),
        (&["zsei://models/qwen2.5?q5_k"], None, &known),
        (&["zsei://models/slm-code-v1?q8"], None, &[]),
        (&[""], None, &[]),
        (&[""], Some("nowhere.gguf"), &[]),
        (&["zsei://models/small", "there.gguf"], None, &known),
    ];
    let mut report = String::new();
    for (models, flag, registries) in cases {
        let files = ["examples/small.gguf", "work/there.gguf"];
        let error = resolve(models, flag, &files, registries).expect_err("nothing is there");
        report.push_str(&format!("{}\n\n", error.render(&RenderOptions::default())));
    }
    insta::assert_snapshot!(report);
}

#[test]
fn wrong_registries_are_refused() {
    let digest = "0".repeat(63);
    let wrong = [
        "models = 5",
        "[models]\nx = \"path\"",
        "[models.x]",
        "[models.x]\npath = 5",
        "[models.x]\npath = \"\"",
        "[models.x]\npath = \"a\\u0000b\"",
        "[models.x]\npaht = \"a\"",
        "[models.x.q9]\npath = \"a\"",
        "[models.x.q8]\nurl = 5",
        "[models.x.q8]\nfile = \"m\"",
        "[models.\"a b\"]\npath = \"a\"",
        &format!("[models.x]\npath = \"a\"\nsha256 = \"{digest}\""),
        &format!("[models.x]\npath = \"a\"\nsha256 = \"{digest}g\""),
        "[models.x]\npath = \"a\"\nsha256 = 5",
        "[default]\nmodel = \"zsei://frameworks/x\"",
        "[default]\nmodle = \"x\"",
        "[frameworks.x]",
        "serach = []",
        "search = [\"\"]",
        "[models.x]\npath = \"a\"\n[models.x]\n",
        "\u{1b}[31m",
    ];
    let mut report = String::new();
    for text in wrong {
        for error in registry(text).expect_err(text) {
            assert_eq!(error.exit_status().as_u8(), 3, "{text}");
            report.push_str(&format!("{}\n\n", error.render(&RenderOptions::default())));
        }
    }
    insta::assert_snapshot!(report);
}

#[test]
fn digests_are_those_of_the_content() {
    let known = registry(REGISTRY).expect("a right registry");
    let sha256 = known.models["small"]
        .file
        .as_ref()
        .and_then(|file| file.digest)
        .expect("a digest");
    assert!(sha256.matches(&mut &b""[..]).expect("readable"));
    assert!(!sha256.matches(&mut &b"x"[..]).expect("readable"));
    let blake3 = FileDigest::Blake3(*blake3::hash(b"x").as_bytes());
    assert!(blake3.matches(&mut &b"x"[..]).expect("readable"));
    assert!(!blake3.matches(&mut &b""[..]).expect("readable"));
    let error = sha256.mismatch(Path::new("small.gguf"));
    assert_eq!(error.exit_status().as_u8(), 6);
}
