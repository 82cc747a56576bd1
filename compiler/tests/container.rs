//! Containers in, findings and tasks out. Each `filetests/container/*.json` has its report beside
//! it; `INSTA_UPDATE=always cargo test --release -p omex-compiler` blesses them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use omex_compiler::container::{Task, ValidateOptions, validate};
use omex_compiler::diagnostic::{Diagnostic, RenderOptions, Source, exit_status};
use omex_compiler::registry::{Places, REGISTRY_FILE, Registry, Resolver};

fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("readable folder").path());
    let mut files: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files
}

fn render(diagnostics: &[Diagnostic]) -> String {
    diagnostics
        .iter()
        .map(|d| d.render(&RenderOptions::default()) + "\n\n")
        .collect()
}

fn read(name: &str, text: impl Into<Vec<u8>>) -> (Option<Task>, Vec<Diagnostic>) {
    let (task, found) = validate(name, text.into(), &ValidateOptions::default());
    assert_eq!(
        task.is_some(),
        found.iter().all(|d| !d.is_error()),
        "{name}: a task iff no error"
    );
    (task, found)
}

/// Findings, then what the task is, then what of it cannot be built.
fn report(name: &str, text: Vec<u8>) -> String {
    let (task, found) = read(name, text);
    let mut out = render(&found);
    if let Some(task) = task {
        out.push_str(&format!("{task}\n"));
        out.push_str(&render(&task.require_supported()));
    }
    out.trim_end().to_owned()
}

fn check_folder(folder: &Path, snapshots: &Path) {
    let files = files(folder);
    assert!(!files.is_empty(), "{} holds containers", folder.display());
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(snapshots);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for file in files {
            let name = file
                .file_name()
                .and_then(|n| n.to_str())
                .expect("UTF-8 file names");
            let text = std::fs::read(&file).expect("readable container");
            insta::assert_snapshot!(name, report(name, text));
        }
    });
}

#[test]
fn filetests() {
    let folder = manifest("tests/filetests/container");
    check_folder(&folder, &folder);
}

/// The two samples of the format's description, byte for byte.
#[test]
fn samples() {
    check_folder(
        &manifest("../tests/containers"),
        &manifest("tests/filetests/samples"),
    );
}

/// What the repository shows as examples is valid, supported and without a warning.
#[test]
fn examples() {
    for file in files(&manifest("../examples")) {
        let name = file.display().to_string();
        let (task, found) = read(&name, std::fs::read(&file).expect("readable example"));
        assert_eq!(render(&found), "", "{name}");
        let task = task.expect("no findings");
        assert_eq!(render(&task.require_supported()), "", "{name}");
        assert!(task.inferences().count() > 0, "{name}");
    }
}

/// The examples' registry leads every one of them to the file that is fetched for them.
#[test]
fn examples_find_their_model() {
    let folder = manifest("../examples");
    let path = folder.join(REGISTRY_FILE);
    let text = std::fs::read_to_string(&path).expect("readable registry");
    let source = Arc::new(Source::new(path.display().to_string(), text));
    let registries = [Registry::parse(&source, Path::new("examples")).expect("a right registry")];
    let model = Path::new("examples/../target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let places = Places {
        container: Some(PathBuf::from("examples")),
        working: PathBuf::from("elsewhere"),
        cache: None,
    };
    let resolver = Resolver {
        places: &places,
        registries: &registries,
        exists: &|path| path == model,
    };
    for file in files(&folder) {
        let name = file.display().to_string();
        let (task, _) = read(&name, std::fs::read(&file).expect("readable example"));
        let found = resolver.resolve_task(&task.expect("valid"), None);
        assert_eq!(
            found.map(|found| found.path),
            Ok(model.to_owned()),
            "{name}"
        );
    }
}

#[test]
fn strict_turns_warnings_about_the_format_into_errors() {
    for (file, error) in [
        ("unknown-fields.json", "OMX0010"),
        ("runner-remote.json", "OMX0030"),
    ] {
        let text = std::fs::read(manifest("tests/filetests/container").join(file)).expect("there");
        assert!(read(file, text.clone()).0.is_some(), "{file} is valid");
        let strict = ValidateOptions {
            strict: true,
            any_path: false,
        };
        let (task, found) = validate(file, text, &strict);
        assert!(task.is_none(), "{file} is invalid under --strict");
        assert!(
            found
                .iter()
                .any(|d| d.is_error() && d.code().to_string() == error),
            "{file}"
        );
    }
}

/// A container around the given member.
fn with(member: &str) -> String {
    format!(
        r#"{{"omex_version": "0.3.0", "task_id": "t", "task_type": "chat", "execution_graph": {{"entry_node": "a", "nodes": [{{"id": "a", "type": "inference_slices", "input": "-"}}]}}, {member}}}"#
    )
}

/// Text that is not a container: bytes, the code, and the byte that the caret points at.
#[test]
fn broken_text() {
    let deep = |levels: usize| {
        with(&format!(
            "\"metadata\": {{\"a\": {}{}}}",
            "[".repeat(levels),
            "]".repeat(levels)
        ))
    };
    let start = with("").find(", }").expect("the member's place") + 2;
    let cases: Vec<(&str, Vec<u8>, &str, usize)> = vec![
        ("empty", b"".to_vec(), "OMX0003", 0),
        ("blank", b" \n\t ".to_vec(), "OMX0003", 0),
        (
            "BOM",
            [b"\xef\xbb\xbf", with("\"stop\": []").as_bytes()].concat(),
            "OMX0002",
            0,
        ),
        (
            "invalid UTF-8",
            b"{\"omex_version\": \"\xff\"}".to_vec(),
            "OMX0002",
            18,
        ),
        (
            "truncated UTF-8",
            b"{\"a\": \"\xe2\x82".to_vec(),
            "OMX0002",
            7,
        ),
        ("UTF-16", b"{\0\"\0".to_vec(), "OMX0001", 1),
        (
            "lone surrogate",
            with(r#""stop": ["ab\ud83dcd"]"#).into_bytes(),
            "OMX0002",
            start + 12,
        ),
        (
            "lone low surrogate",
            with(r#""stop": ["\udc00"]"#).into_bytes(),
            "OMX0002",
            start + 10,
        ),
        (
            "surrogate in a key",
            with(r#""\ud800": 1"#).into_bytes(),
            "OMX0002",
            start + 1,
        ),
        (
            "depth 129",
            deep(127).into_bytes(),
            "OMX0005",
            start + 18 + 126,
        ),
        (
            "depth 10^6",
            deep(1_000_000).into_bytes(),
            "OMX0005",
            start + 18 + 126,
        ),
        ("only brackets", vec![b'['; 10_000_000], "OMX0005", 128),
        (
            "2^64",
            with("\"max_tokens\": 18446744073709551616").into_bytes(),
            "OMX0006",
            start + 14,
        ),
        (
            "2^64+1",
            with("\"x\": [18446744073709551617]").into_bytes(),
            "OMX0006",
            start + 6,
        ),
        (
            "-2^63-1",
            with("\"x\": -9223372036854775809").into_bytes(),
            "OMX0006",
            start + 5,
        ),
        (
            "1e999",
            with("\"sampling\": {\"top_p\": 1e999}").into_bytes(),
            "OMX0006",
            start + 22,
        ),
        (
            "-1e999",
            with("\"x\": -1e999").into_bytes(),
            "OMX0006",
            start + 5,
        ),
        (
            "duplicate key",
            with("\"task_id\": \"u\"").into_bytes(),
            "OMX0004",
            start,
        ),
        (
            "escaped duplicate",
            with(r#""a\u0062": 1, "ab": 2"#).into_bytes(),
            "OMX0004",
            start + 14,
        ),
        (
            "cut off",
            with("\"x\": 1").into_bytes()[..start + 5].to_vec(),
            "OMX0001",
            start + 4,
        ),
        ("cut off string", b"{\"omex_version".to_vec(), "OMX0001", 14),
        ("trailing comma", with("").into_bytes(), "OMX0001", start),
        (
            "trailing text",
            format!("{} x", with("\"stop\": []")).into_bytes(),
            "OMX0001",
            with("\"stop\": []").len() + 1,
        ),
        ("single quotes", b"{'a': 1}".to_vec(), "OMX0001", 1),
        ("comment", b"// a\n{}".to_vec(), "OMX0001", 0),
        ("NaN", b"{\"a\": NaN}".to_vec(), "OMX0001", 6),
        ("leading zero", b"{\"a\": 01}".to_vec(), "OMX0001", 7),
        ("raw newline", b"{\"a\": \"b\nc\"}".to_vec(), "OMX0001", 8),
        ("bad escape", b"{\"a\": \"\\x\"}".to_vec(), "OMX0001", 8),
        ("NUL", b"{\"a\": \0}".to_vec(), "OMX0001", 6),
        ("array", b"[1]".to_vec(), "OMX0008", 0),
        ("string", b"\"task\"".to_vec(), "OMX0008", 0),
    ];
    for (name, bytes, code, offset) in cases {
        let (task, found) = read(name, bytes);
        assert!(task.is_none(), "{name}");
        let error = found.iter().find(|d| d.is_error()).expect(name);
        assert_eq!(error.code().to_string(), code, "{name}: {error}");
        assert_eq!(exit_status(&found).as_u8(), 3, "{name}");
        match error.place() {
            omex_compiler::diagnostic::Place::Text(label) => {
                assert_eq!(
                    label.span.start as usize,
                    offset,
                    "{name}: {}",
                    render(&found)
                );
            }
            other => panic!("{name}: no caret but {other:?}"),
        }
        let rendered = render(&found);
        assert!(
            rendered.len() < 4000,
            "{name} prints {} bytes",
            rendered.len()
        );
    }
    assert!(read("depth 128", deep(126)).0.is_some());
    assert!(
        read("-0", with("\"sampling\": {\"top_k\": -0}"))
            .0
            .is_some()
    );
}

/// Every prefix of a valid container, and every one with a byte replaced, is refused or read; none
/// panics.
#[test]
fn damaged_samples_never_panic() {
    for file in files(&manifest("../tests/containers")) {
        let text = std::fs::read(&file).expect("readable sample");
        for length in 0..text.len() {
            let (_, found) = read("cut", &text[..length]);
            // Only the final line break may be missing.
            assert!(
                length + 1 == text.len() || found.iter().any(Diagnostic::is_error),
                "cut at {length}"
            );
        }
        for at in 0..text.len() {
            for byte in [
                0, b'"', b'{', b'}', b'[', b',', b'9', b'-', b'\\', 0xff, b'a',
            ] {
                let mut damaged = text.clone();
                damaged[at] = byte;
                for diagnostic in read("damaged", damaged).1 {
                    diagnostic.render(&RenderOptions::default());
                }
            }
        }
    }
}

/// A graph of `nodes` after one another, closed to a circle or not.
fn chain(nodes: usize, circle: bool) -> String {
    let mut text = String::from(
        r#"{"omex_version": "0.3.0", "task_id": "t", "task_type": "chat", "execution_graph": {"entry_node": "0", "nodes": ["#,
    );
    text.push_str(r#"{"id": "0", "type": "token_chunk_parse", "input": "-"}"#);
    for n in 1..nodes {
        let before = if circle && n == 1 { nodes - 1 } else { n - 1 };
        text.push_str(&format!(
            r#",{{"id": "{n}", "type": "summary_generation", "depends_on": ["{before}"]}}"#
        ));
    }
    text.push_str("]}}");
    text
}

/// Whatever is more than linear in these would not end.
#[test]
fn huge_graphs_are_read() {
    let (task, found) = read("chain", chain(1_000_000, false));
    assert_eq!(
        task.map(|task| task.nodes.len()),
        Some(1_000_000),
        "{}",
        render(&found)
    );

    let (_, found) = read("circle", chain(1_000_000, true));
    assert_eq!(found[0].code().to_string(), "OMX0022");
    assert!(render(&found).len() < 4000);

    let (_, found) = read("too many", chain((1 << 20) + 1, false));
    assert_eq!(found[0].code().to_string(), "OMX0007");

    let dangling = chain(100_000, false).replace("\"depends_on\": [\"", "\"depends_on\": [\"x");
    let (_, found) = read("dangling", dangling);
    assert_eq!(found.len(), 50);
    assert!(
        found[49]
            .notes()
            .iter()
            .any(|note| note.contains("more like these"))
    );

    let wide = "\"0\",".repeat(1_000_000);
    let fan = chain(3, false).replace("[\"1\"]", &format!("[{}\"1\"]", wide));
    assert!(read("fan", fan).0.is_some());
}

/// Whatever is more than linear in these would not end.
#[test]
fn huge_texts_are_read() {
    let long = "x".repeat(100 << 20);
    let (task, _) = read(
        "long",
        with(&format!("\"metadata\": {{\"a\": \"{long}\"}}")),
    );
    assert!(task.is_some());

    let (_, found) = read(
        "id",
        with("\"x\": 1").replace("\"t\"", &format!("\"{long}\"")),
    );
    assert_eq!(found[0].code().to_string(), "OMX0012");
    assert!(render(&found).len() < 4000, "the id is cut");

    let too_large = vec![b' '; omex_compiler::container::CONTAINER_BYTES_MAX + 1];
    let (_, found) = read("large", too_large);
    assert_eq!(found[0].code().to_string(), "OMX0007");

    let keys: String = (0..1_000_000).map(|n| format!("\"k{n}\":0,")).collect();
    let (task, found) = read("keys", with(&format!("{keys}\"x\": 1")));
    assert!(task.is_some());
    assert_eq!(found.len(), 50);

    let values = with(&format!(
        "\"metadata\": {{\"a\": [{}0]}}",
        "0,".repeat(1 << 24)
    ));
    let (_, found) = read("values", values);
    assert_eq!(found[0].code().to_string(), "OMX0007");
}
