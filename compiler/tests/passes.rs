//! Passes on graphs in text form. Each `filetests/PASS/*.ir` has what the pass
//! makes of it beside it; `INSTA_UPDATE=always cargo test --release -p
//! omex-compiler` blesses them.

use std::path::{Path, PathBuf};

use omex_compiler::diagnostic::RenderOptions;
use omex_compiler::ir::text::parse;
use omex_compiler::ir::{Graph, Stage, verify};
use omex_compiler::passes::fuse::fuse;
use omex_compiler::passes::normalize::normalize;
use omex_compiler::passes::schedule::schedule;
use omex_compiler::passes::select::select;

fn folder(pass: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/filetests")
        .join(pass)
}

/// Runs `pass` on every graph of its folder, which is of stage `before`.
fn check(pass_name: &str, before: Stage, pass: impl Fn(Graph) -> String) {
    let folder = folder(pass_name);
    let entries = std::fs::read_dir(&folder).unwrap();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "ir"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds graphs", folder.display());
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        let graph = parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        verify(before, &graph).unwrap_or_else(|e| panic!("{name}: {e}"));
        let result = pass(graph);
        settings.bind(|| insta::assert_snapshot!(name, result));
    }
}

fn verified(stage: Stage, graph: Graph) -> Graph {
    verify(stage, &graph).unwrap_or_else(|e| panic!("{e}\n{graph}"));
    graph
}

fn selected(graph: Graph) -> Graph {
    verified(Stage::Selected, select(graph).unwrap())
}

#[test]
fn normalize_orders_and_merges() {
    check("normalize", Stage::Built, |graph| {
        verified(Stage::Normalized, normalize(graph)).to_string()
    });
}

#[test]
fn fuse_joins_neighbours() {
    check("fuse", Stage::Normalized, |graph| {
        verified(Stage::Fused, fuse(graph)).to_string()
    });
}

#[test]
fn select_names_what_has_no_kernel() {
    check("select", Stage::Fused, |graph| match select(graph) {
        Ok(graph) => verified(Stage::Selected, graph).to_string(),
        Err(faults) => faults
            .iter()
            .map(|d| d.render(&RenderOptions::default()) + "\n")
            .collect(),
    });
}

#[test]
fn schedule_makes_phases() {
    check("schedule", Stage::Fused, |graph| {
        let graph = selected(graph);
        schedule(&graph).text(&graph)
    });
}
