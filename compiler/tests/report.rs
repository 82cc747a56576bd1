//! Memory reports and refusals of a budget, as people and programs see them.

mod common;

use common::{MIXED, SMOL, compile_shape, container, task};
use omex_compiler::container::{RamLimit, RamOrigin};
use omex_compiler::diagnostic::{ExitStatus, RenderOptions, exit_status};
use omex_compiler::pipeline::{Options, WeightsFrom};
use omex_compiler::report::MemoryReport;
use omex_kernels::spec::KvFormat;
use omex_plan::check;

#[test]
fn memory_reports() {
    for (name, shape, read) in [
        ("smol", SMOL, false),
        ("mixed", MIXED, false),
        ("smol_read", SMOL, true),
    ] {
        let options = Options {
            weights: Some(if read {
                WeightsFrom::Read
            } else {
                WeightsFrom::Mapped
            }),
            ..Options::default()
        };
        let plan = compile_shape(&shape, &task(&container("")), &options)
            .unwrap()
            .plan;
        insta::assert_snapshot!(format!("report_{name}"), MemoryReport::new(&plan).text());
    }
    let plan = compile_shape(&MIXED, &task(&container("")), &Options::default())
        .unwrap()
        .plan;
    let json = serde_json::to_string_pretty(&MemoryReport::new(&plan).json()).unwrap();
    insta::assert_snapshot!("report_mixed_json", json);
}

#[test]
fn budgets_are_kept_or_refused_with_numbers() {
    let limited = |mib: u64| Options {
        limits: vec![RamLimit {
            bytes: mib << 20,
            origin: RamOrigin::Flag,
        }],
        weights: Some(WeightsFrom::Read),
        ..Options::default()
    };
    let container = container(r#""model_requirements": {"max_sequence_tokens": 2048},"#);
    let task = task(&container);
    let mut chunks = Vec::new();
    for mib in (100..=300).step_by(4) {
        match compile_shape(&SMOL, &task, &limited(mib)) {
            Ok(compiled) => {
                let plan = compiled.plan;
                assert!(plan.memory.rss_peak_bytes() <= mib << 20);
                assert!(plan.memory.charge_peak_bytes() <= mib << 20);
                chunks.push(plan.columns_max);
                check(plan, compiled.code.len() as u64).unwrap();
            }
            Err(findings) => {
                assert!(chunks.is_empty(), "{mib} MiB is refused, less was not");
                assert_eq!(exit_status(&findings), ExitStatus::MemoryBudget);
            }
        }
    }
    assert!(
        chunks.is_sorted() && chunks.last() == Some(&512),
        "{chunks:?}"
    );
    let refusal = compile_shape(&SMOL, &task, &limited(80)).unwrap_err();
    insta::assert_snapshot!(
        "budget_refusal",
        refusal[0].render(&RenderOptions::default())
    );
    let refusal = compile_shape(&SMOL, &task, &limited(130)).unwrap_err();
    insta::assert_snapshot!(
        "context_would_fit",
        refusal[0].render(&RenderOptions::default())
    );
}

/// Every change that a refusal proposes fits when it is made, in as much as it
/// says.
#[test]
fn what_would_fit_fits() {
    let mut proposed = std::collections::BTreeSet::new();
    let mut check = |name: &str, text: &str, options: &Options| {
        let task = task(text);
        let findings = compile_shape(&SMOL, &task, options).unwrap_err();
        assert_eq!(exit_status(&findings), ExitStatus::MemoryBudget, "{name}");
        let refusal = findings[0].render(&RenderOptions::default());
        let changes = refusal.lines().filter_map(|line| {
            let (_, change) = line.split_once("help: ")?;
            change.split_once(" would take ")
        });
        let changes: Vec<_> = changes.collect();
        assert!((1..=3).contains(&changes.len()), "{name}: {refusal}");
        for (what, takes) in changes {
            let mut options = options.clone();
            if what.contains("the model in") {
                proposed.insert("model");
                continue;
            }
            if let Some((_, context)) = what.split_once("(-c ") {
                options.context = Some(context.trim_end_matches(')').parse().unwrap());
                proposed.insert("context");
            }
            if what.contains("--kv q8") {
                options.kv = KvFormat::Q8;
                proposed.insert("kv");
            }
            if what.contains("--weights paged") {
                options.weights = Some(WeightsFrom::Paged);
                proposed.insert("paging");
            }
            if what.contains("no --ubatch-size") {
                options.columns_max = None;
                proposed.insert("chunk");
            }
            let plan = compile_shape(&SMOL, &task, &options).unwrap().plan;
            let needed = plan.memory.needed_bytes();
            assert!(needed <= options.limits[0].bytes, "{name}: {what}");
            let hundredths = (needed * 100).div_ceil(1 << 20);
            let stated = format!("{}.{:02} MiB", hundredths / 100, hundredths % 100);
            assert_eq!(takes, stated, "{name}: {what}");
        }
    };
    let container = container(r#""model_requirements": {"max_sequence_tokens": 4096},"#);
    let limited = |mib: u64, weights, columns_max| Options {
        limits: vec![RamLimit {
            bytes: mib << 20,
            origin: RamOrigin::Flag,
        }],
        weights,
        columns_max,
        ..Options::default()
    };
    let read = Some(WeightsFrom::Read);
    check("all but a little", &container, &limited(185, read, None));
    check("half the context", &container, &limited(150, read, None));
    check("hardly weights", &container, &limited(104, read, None));
    check("less than weights", &container, &limited(90, read, None));
    check("a large chunk", &container, &limited(190, read, Some(4096)));
    check(
        "mapped",
        &container,
        &limited(150, Some(WeightsFrom::Mapped), None),
    );
    check("paged", &container, &limited(60, None, None));
    check("hardly pages", &container, &limited(20, None, None));
    let all = ["chunk", "context", "kv", "model", "paging"];
    assert!(proposed.into_iter().eq(all));
}

/// What grows shows in review.
#[test]
fn budgets() {
    use omex_plan::file::{Arch, encode};
    use omex_runtime::memory::{GENERATOR_BYTES, RUNTIME_BYTES, START_BYTES};

    let mut lines = vec![
        format!("runtime, fixed: {RUNTIME_BYTES}"),
        format!("code generator, fixed: {GENERATOR_BYTES}"),
        format!("start: {START_BYTES}"),
    ];
    for (name, shape) in [("smol", SMOL), ("mixed", MIXED)] {
        let compiled = compile_shape(&shape, &task(&container("")), &Options::default()).unwrap();
        let plan = &compiled.plan;
        let file = encode(plan, Arch::X86_64, &compiled.code, &[], None);
        lines.push(format!(
            "{name}: arena {}, code {}, plan without tokenizer {}",
            plan.arena_bytes,
            compiled.code.len(),
            file.bytes.len()
        ));
    }
    insta::assert_snapshot!("budgets", lines.join("\n"));
}
