//! Memory reports and refusals of a budget, as people and programs see them.

mod common;

use common::{MIXED, SMOL, compile_shape, container, task};
use omex_compiler::container::{RamLimit, RamOrigin};
use omex_compiler::diagnostic::{ExitStatus, RenderOptions, exit_status};
use omex_compiler::pipeline::{Options, WeightsFrom};
use omex_compiler::report::MemoryReport;
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
