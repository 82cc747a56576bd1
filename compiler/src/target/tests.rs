use std::sync::Arc;

use super::*;
use crate::diagnostic::RenderOptions;

#[test]
fn built_in_profiles_are_listed() {
    insta::assert_snapshot!(list_text(&built_in()));
}

#[test]
fn json_form_holds_every_profile_and_source() {
    let profiles = built_in();
    let value = list_json(&profiles);
    let targets = value["targets"].as_array().expect("an array");
    assert_eq!(targets.len(), profiles.len());
    for target in targets {
        for figure in [
            "cores",
            "threads",
            "page_bytes",
            "memory_bytes_per_s",
            "memory_latency_ns",
            "prefetch_pages",
            "ram_app_bytes",
        ] {
            let source = target[figure]["source"].as_str().expect("a source");
            assert!(!source.is_empty(), "{} of {}", figure, target["name"]);
        }
    }
}

#[test]
fn names_and_aliases_are_unique_and_found() {
    let profiles = built_in();
    let mut names: Vec<&str> = vec![HOST];
    for profile in &profiles {
        names.push(&profile.name);
        names.extend(profile.aliases.iter().map(String::as_str));
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for (name, found) in [
        ("pi5", "pi5-4gb"),
        ("raspberry-pi-5", "pi5-4gb"),
        ("raspberry-pi-4", "pi4-4gb"),
        ("pi4-1gb", "pi4-1gb"),
        ("mobile-mid-tier", "mobile-mid-tier"),
        ("mobile-high-tier", "mobile-high-tier"),
        ("laptop", "laptop"),
        ("wasm32", "wasm32"),
        ("pi-zero-2w", "pi-zero-2w"),
    ] {
        assert_eq!(find(name).expect(name).name, found);
    }
    let error = find_or_explain("pi5-4bg").expect_err("mistyped");
    assert_eq!(error.helps(), ["did you mean `pi5-4gb`?"]);
    assert_eq!(error.exit_status().as_u8(), 2);
}

#[test]
fn code_generator_knows_the_instruction_sets() {
    use omex_codegen::Feature;
    let isa = |name: &str| find(name).expect(name).isa();
    let pi5 = isa("pi5").expect("aarch64");
    assert!(pi5.has(Feature::Dotprod) && !pi5.has(Feature::I8mm));
    assert!(!isa("pi4").expect("aarch64").has(Feature::Dotprod));
    assert!(isa("laptop").expect("x86-64").has(Feature::Avx2));
    assert!(isa("wasm32").is_none());
    // A name that differs between the two tables would drop the feature silently.
    for feature in Feature::ALL {
        assert!(
            CpuFeature::from_name(feature.name()).is_some(),
            "{}",
            feature.name()
        );
    }
}

const GOOD: &str = r#"
name = "board"
arch = "aarch64"
features = ["dotprod"]
cores = 4
threads = 4
page_size = "16KiB"
l1d = 65536
l2 = "512KiB"
memory_gb_per_s = 9.5
memory_latency_ns = 130
prefetch_pages = 2
storage_mb_per_s = { value = 40, estimate = true, source = "guess" }
ram_total = "4GiB"
ram_app = 3_000_000_000
"#;

fn read(text: &str) -> Result<Vec<Profile>, Vec<Diagnostic>> {
    read_profiles(&Arc::new(Source::new("board.toml", text)))
}

#[test]
fn user_profiles_are_read() {
    let profiles = read(GOOD).expect("a right profile");
    assert_eq!(profiles.len(), 1);
    let board = &profiles[0];
    assert_eq!(board.page_bytes.value, 16384);
    assert_eq!(board.memory_bytes_per_s.value, 9_500_000_000);
    let isa = board.isa().expect("aarch64");
    assert_eq!(
        (isa.l2_bytes, isa.memory_bytes_per_s, isa.memory_latency_ns),
        (512 << 10, 9_500_000_000, 130)
    );
    assert_eq!(isa.prefetch_pages, 2);
    let common = GOOD.replace("memory_latency_ns = 130", "");
    let board = &read(&common).expect("a latency is optional")[0];
    assert!(board.memory_latency_ns.estimate && board.memory_latency_ns.value == 100);
    let common = GOOD.replace("prefetch_pages = 2", "");
    let unmeasured = &read(&common).expect("prefetching is optional")[0];
    assert!(unmeasured.prefetch_pages.estimate && unmeasured.prefetch_pages.value == 0);
    assert!(board.storage_bytes_per_s.estimate);
    assert_eq!(board.ram_app_bytes.value, 3_000_000_000);
}

/// Each wrong line instead of the right one; findings as a user sees them.
#[test]
fn impossible_devices_are_refused() {
    let wrong = [
        "ram_app = 0",
        "ram_app = 9223372036854775808",
        "ram_app = -1",
        "ram_app = \"5GiB\"",
        "ram_app = \"much\"",
        "ram_total = \"16777216TiB\"",
        "cores = 0",
        "cores = 1000000",
        "cores = 2.5",
        "threads = 5",
        "page_size = \"8KiB\"",
        "page_size = 0",
        "memory_gb_per_s = nan",
        "memory_gb_per_s = inf",
        "memory_gb_per_s = -1.0",
        "memory_gb_per_s = 0",
        "memory_latency_ns = 0",
        "memory_latency_ns = 5000000",
        "memory_latency_ns = 0.5",
        "prefetch_pages = 65",
        "prefetch_pages = -1",
        "storage_mb_per_s = { vlaue = 3 }",
        "features = [\"dotprd\"]",
        "features = [\"avx2\"]",
        "features = \"dotprod\"",
        "arch = \"arm64\"",
        "l2 = 18446744073709551616",
        "name = \"\"",
        "name = 5",
        "l1d = [",
    ];
    let mut report = String::new();
    for line in wrong {
        let key = line.split_once(' ').expect("key = value").0;
        let lines = GOOD.lines().map(|good| {
            if good.starts_with(&format!("{key} ")) {
                line
            } else {
                good
            }
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        let errors = read(&text).expect_err(line);
        for error in errors {
            assert!(matches!(error.exit_status().as_u8(), 3 | 4), "{line}");
            report.push_str(&format!("{}\n\n", error.render(&RenderOptions::default())));
        }
    }
    insta::assert_snapshot!(report);
}

#[test]
fn every_missing_or_extra_field_is_an_error() {
    let is_optional = |line: &str| {
        let optional = ["memory_latency_ns", "prefetch_pages"];
        optional.iter().any(|name| line.starts_with(name))
    };
    let required = |line: &&str| !line.is_empty() && !is_optional(line);
    for missing in GOOD.lines().filter(required) {
        let text: Vec<&str> = GOOD.lines().filter(|line| *line != missing).collect();
        assert!(read(&text.join("\n")).is_err(), "without {missing}");
    }
    for extra in [
        "corse = 4",
        "[variants]",
        "[variants.x]",
        "l3 = nan",
        "name = \"twice\"",
        "\0",
    ] {
        assert!(read(&format!("{GOOD}{extra}\n")).is_err(), "with {extra}");
    }
    assert!(read("").is_err());
    assert!(read(&"[".repeat(1_000_000)).is_err());
    assert!(read(&"#".repeat(5 << 20)).is_err());
}
