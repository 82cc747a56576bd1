//! Page plans of made-up models: they pass the runtime's checks, use the whole
//! budget and spread what is read.

mod common;

use common::{MIXED, SMOL, Shape, compile_shape, container, flow, task};
use omex_compiler::diagnostic::RenderOptions;
use omex_compiler::emit::text::{parse_plan, plan_text};
use omex_compiler::paging::{Cost, paging_text};
use omex_compiler::pipeline::{Compiled, Options, Paging, WeightsFrom};
use omex_kernels::WeightFormat;
use omex_plan::paging::PagePlan;
use omex_plan::{Plan, WeightSource, check};

/// Llama-3.2-1B's shape in Q8_0, with fewer tokens.
const LLAMA_1B: Shape = Shape {
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_len: 64,
    feed_forward: 8192,
    vocabulary: 32000,
    format: WeightFormat::Q8_0,
    other_format: WeightFormat::Q8_0,
    tied: true,
    biases: false,
    extras: false,
};

fn limit(bytes: u64) -> Options {
    Options {
        limits: vec![omex_compiler::container::RamLimit {
            bytes,
            origin: omex_compiler::container::RamOrigin::Flag,
        }],
        ..Options::default()
    }
}

fn compiled(shape: &Shape, options: &Options) -> Compiled {
    compile_shape(shape, &task(&container("")), options).unwrap()
}

fn paged(plan: &Plan) -> &PagePlan {
    match &plan.weights.source {
        WeightSource::Paged(paged) => paged,
        other => panic!("{other:?} is not paged"),
    }
}

fn needed(plan: &Plan) -> u64 {
    let memory = &plan.memory;
    memory.rss_peak_bytes().max(memory.charge_peak_bytes())
}

#[test]
fn page_plans_pass_the_checks_at_every_budget_and_size() {
    for shape in [SMOL, MIXED, LLAMA_1B] {
        let biased = Shape {
            biases: true,
            tied: false,
            ..shape
        };
        for shape in [shape, biased] {
            let weights: u64 = shape.packed_index().pages.iter().map(|p| p.bytes).sum();
            for part in [0, 1, 3, 7, 10] {
                for paging in [
                    Paging::default(),
                    Paging {
                        slots_bytes_max: 3 << 20,
                        read_bytes_max: 1,
                        depth: 1,
                    },
                    Paging {
                        slots_bytes_max: 64 << 20,
                        read_bytes_max: 8 << 20,
                        depth: 3,
                    },
                ] {
                    let options = Options {
                        weights: Some(WeightsFrom::Paged),
                        columns_max: Some(16),
                        paging,
                        ..limit((72 << 20) + weights * part / 10)
                    };
                    let compiled = compiled(&shape, &options);
                    let code_bytes = compiled.code.len() as u64;
                    let limit = options.limits[0].bytes;
                    assert!(needed(&compiled.plan) <= limit, "{shape:?} {options:?}");
                    if let Err(e) = check(compiled.plan, code_bytes) {
                        panic!("{e}: {shape:?} {options:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_budget_is_used_and_every_layer_keeps_an_equal_share() {
    let budget = 500 << 20;
    let plan = compiled(&LLAMA_1B, &limit(budget)).plan;
    let page_plan = paged(&plan);
    let unused = budget - needed(&plan);
    assert!(unused < 2 << 20, "{unused} bytes are unused");
    // Per layer: what its steps' pages are and what of it is read.
    let mut shares = Vec::new();
    for layer in 0..plan.model.layers {
        let prefix = format!("blk.{layer}.");
        let tensors = &plan.weights.tensors;
        let pieces = tensors.iter().filter(|t| t.name.starts_with(&prefix));
        let (mut all, mut stay) = (0, 0);
        for piece in pieces.flat_map(|t| &t.pieces) {
            let bytes = plan.weights.pages[piece.page.index()].bytes;
            all += bytes;
            stay += bytes * u64::from(page_plan.resident[piece.page.index()].is_some());
        }
        shares.push(stay as f64 / all as f64);
    }
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((0.2..0.8).contains(&mean), "{shares:?}");
    assert!(shares.iter().all(|s| (s - mean).abs() < 0.08), "{shares:?}");
    let cost = Cost::of(&plan).unwrap();
    let per_s = page_plan.storage_bytes_per_s as f64;
    assert_eq!(cost.token_s, cost.token_bytes as f64 / per_s);
}

#[test]
fn pages_are_read_compressed_where_that_saves_more_than_it_takes() {
    let weights: u64 = (LLAMA_1B.packed_index().pages.iter())
        .map(|p| p.bytes)
        .sum();
    let on = |budget: u64, frame_tenths: u64| {
        let machine = common::Machine {
            storage_bytes_per_s: 100_000_000,
            frame_tenths,
            ..common::Machine::default()
        };
        let task = task(&container(""));
        let options = Options {
            weights: Some(WeightsFrom::Paged),
            columns_max: Some(16),
            paging: Paging {
                slots_bytes_max: 6 << 20,
                ..Paging::default()
            },
            ..limit(budget)
        };
        common::compile_on(&LLAMA_1B, &task, &common::laptop(), &options, machine)
            .unwrap()
            .plan
    };
    let whole = needed(&on(4 << 30, 0));
    // `None` where everything fits.
    let compresses = |missing: u64| {
        let [plain, framed] = [0, 9].map(|tenths| on(whole - missing, tenths));
        let token_s = |plan| Cost::of(plan).unwrap().token_s;
        assert!(
            token_s(&framed) <= token_s(&plain),
            "{missing} bytes do not fit"
        );
        let reads = [&plain, &framed].map(|plan| !paged(plan).reads.is_empty());
        (reads == [true; 2]).then_some(paged(&framed).stages.is_some())
    };
    // A tenth of what little is read is less than what frames are read into.
    let few = (0..80).step_by(4).find_map(|mib| compresses(mib << 20));
    assert_eq!(few, Some(false));
    assert_eq!(compresses(weights / 2), Some(true));
    assert_eq!(compresses(weights * 9 / 10), Some(true));
}

#[test]
fn everything_fits_means_nothing_is_read() {
    let fits = compiled(&LLAMA_1B, &limit(4 << 30)).plan;
    assert!(matches!(fits.weights.source, WeightSource::Read { .. }));
    let options = Options {
        weights: Some(WeightsFrom::Paged),
        ..limit(4 << 30)
    };
    let asked = compiled(&LLAMA_1B, &options).plan;
    assert!(paged(&asked).reads.is_empty());
    assert_eq!(asked.phases.len(), fits.phases.len(), "no phase is cut");
}

#[test]
fn results_do_not_depend_on_paging() {
    let whole = compiled(&SMOL, &Options::default()).plan.result_id;
    let small = compiled(&SMOL, &limit(64 << 20));
    assert!(!paged(&small.plan).reads.is_empty());
    assert_eq!(small.plan.result_id, whole);
}

#[test]
fn a_budget_below_slots_and_buffers_is_refused() {
    let errors = compile_shape(&LLAMA_1B, &task(&container("")), &limit(10 << 20)).unwrap_err();
    let text = format!("{errors:?}");
    assert!(text.contains("BudgetExceeded"), "{text}");
}

#[test]
fn page_plans_parse_back() {
    let plan = compiled(&SMOL, &limit(64 << 20)).plan;
    let text = plan_text(&plan);
    assert_eq!(parse_plan(&text).unwrap(), plan);
}

#[test]
fn memory_levels_of_nodes_choose_the_working_set() {
    let of = |level: &str, options: &Options| {
        let text = container("").replace(
            r#""type": "inference_slices","#,
            &format!(r#""type": "inference_slices", "memory_profile": "{level}","#),
        );
        compile_shape(&LLAMA_1B, &task(&text), options)
    };
    let low = of("low", &limit(4 << 30)).unwrap().plan;
    assert_eq!(low.columns_max, 16);
    assert!(paged(&low).resident.iter().all(Option::is_none));
    of("high", &limit(500 << 20)).unwrap_err();
    let high = of("high", &limit(4 << 30)).unwrap().plan;
    assert!(matches!(high.weights.source, WeightSource::Read { .. }));
    // Adaptive is what the budget allows, as without the field.
    for budget in [500 << 20, 4 << 30] {
        let options = limit(budget);
        let adaptive = of("adaptive", &options).unwrap().plan;
        assert_eq!(adaptive, compiled(&LLAMA_1B, &options).plan);
    }
}

#[test]
fn layers_that_are_loaded_first_stay() {
    let of = |layers: &str| {
        let stage = r#"{"id": "load", "type": "model_load""#;
        let text = flow("").replace(stage, &format!("{stage}{layers}"));
        assert!(text.contains(layers), "{text}");
        compile_shape(&LLAMA_1B, &task(&text), &limit(500 << 20))
            .unwrap()
            .plan
    };
    let streamed = |plan: &Plan, layer: u32| {
        let prefix = format!("blk.{layer}.");
        let tensors = plan.weights.tensors.iter();
        let pieces = tensors.filter(|t| t.name.starts_with(&prefix));
        let mut pages = pieces.flat_map(|t| &t.pieces).map(|piece| piece.page);
        pages.any(|page| paged(plan).resident[page.index()].is_none())
    };
    let even = of("");
    assert!((0..16).all(|layer| streamed(&even, layer)));
    let chosen = of(r#", "load_layers": [5, 8]"#);
    for layer in 0..16 {
        assert_eq!(
            streamed(&chosen, layer),
            !(5..8).contains(&layer),
            "{layer}"
        );
    }
}

#[test]
fn slow_plans_say_so_with_a_better_choice() {
    let plan = |budget: u64| compiled(&LLAMA_1B, &limit(budget)).warnings;
    assert!(plan(500 << 20).is_empty());
    let storage = |bytes_per_s| {
        let machine = common::Machine {
            storage_bytes_per_s: bytes_per_s,
            ..common::Machine::default()
        };
        let target = common::laptop();
        common::compile_on(
            &LLAMA_1B,
            &task(&container("")),
            &target,
            &limit(300 << 20),
            machine,
        )
        .unwrap()
    };
    let warnings = storage(90_000_000).warnings;
    let text = warnings
        .iter()
        .map(|w| w.render(&RenderOptions::default()))
        .collect::<String>();
    insta::assert_snapshot!(text);
}

#[test]
fn paging_is_text() {
    let shape = Shape {
        layers: 3,
        vocabulary: 16000,
        ..SMOL
    };
    let options = Options {
        columns_max: Some(8),
        context: Some(512),
        paging: Paging {
            slots_bytes_max: 3 << 20,
            read_bytes_max: 1 << 20,
            depth: 2,
        },
        ..limit(11 << 20)
    };
    let compiled = compiled(&shape, &options);
    insta::assert_snapshot!(paging_text(&compiled.plan));
}
