//! The pipeline on made-up models: plans pass the runtime's checks.

mod common;

use common::{MIXED, SLIDING, SMOL, compile_shape, container, task};
use omex_compiler::diagnostic::Code;
use omex_compiler::emit::text::{parse_plan, plan_text};
use omex_compiler::ir::text::parse;
use omex_compiler::ir::{Stage, verify};
use omex_compiler::pipeline::{Options, WeightsFrom};
use omex_kernels::spec::KvFormat;
use omex_kernels::{KernelSpec, WeightFormat};
use omex_plan::file::encode_metadata;
use omex_plan::{BufferKind, WeightSource, check};
use omex_runtime::memory::Device;

#[test]
fn plans_pass_the_checks() {
    for shape in [SMOL, MIXED, SLIDING] {
        for (format, other) in [
            (shape.format, shape.other_format),
            (WeightFormat::F16, WeightFormat::Q8_0),
            (WeightFormat::F32, WeightFormat::F32),
        ] {
            for read in [false, true] {
                for columns in [None, Some(1), Some(7), Some(4096)] {
                    let shape = common::Shape {
                        format,
                        other_format: other,
                        ..shape
                    };
                    let options = Options {
                        columns_max: columns,
                        weights: Some(if read {
                            WeightsFrom::Read
                        } else {
                            WeightsFrom::Mapped
                        }),
                        ..Options::default()
                    };
                    let compiled = compile_shape(&shape, &task(&container("")), &options).unwrap();
                    let code_bytes = compiled.code.len() as u64;
                    let layout = &compiled.stages.layout;
                    assert_eq!(layout.gap_bytes(), 0, "{shape:?}: the arena has a gap");
                    let plan = check(compiled.plan, code_bytes).unwrap();
                    let source = &plan.plan().weights.source;
                    assert_eq!(matches!(source, WeightSource::Read { .. }), read);
                    assert_eq!(plan.plan().threads_max, 3);
                }
            }
        }
    }
}

#[test]
fn phases_are_as_few_as_the_longest_path() {
    let compiled = compile_shape(&SMOL, &task(&container("")), &Options::default()).unwrap();
    let plan = &compiled.plan;
    // Per layer: norm, projections, store, attention, output, norm, gate and
    // up, gate function, down. Before them the embedding, after them the head.
    assert_eq!(plan.phases.len(), 1 + 9 * 30 + 2);
    assert_eq!(plan.body_phases, 1 + 9 * 30);
    assert_eq!(plan.steps.len(), 2 + 12 * 30 + 2);
    let matmuls = plan
        .kernels
        .iter()
        .filter(|k| matches!(k.spec(), KernelSpec::Matmul { .. }));
    // Q and the output differ in the residual.
    assert_eq!(matmuls.count(), 6);
    let residuals = plan.buffers.iter().filter(|b| b.name == "token_embd");
    assert_eq!(residuals.count(), 1, "the residual stream has one slot");
    let rings = plan.buffers.iter().filter(|b| b.kind == BufferKind::KvRing);
    let ring = u64::from(plan.model.context.next_multiple_of(16));
    let sequences = u64::from(plan.sequences_max);
    let rings: u64 = rings.map(|b| b.bytes).sum();
    assert_eq!(rings, sequences * 30 * 2 * 192 * ring * 2);
}

#[test]
fn graphs_parse_back_at_every_stage() {
    for shape in [SMOL, MIXED, SLIDING] {
        let compiled = compile_shape(&shape, &task(&container("")), &Options::default()).unwrap();
        assert_eq!(compiled.stages.graphs.len(), Stage::ALL.len());
        for (stage, graph) in &compiled.stages.graphs {
            let text = graph.to_string();
            let parsed = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            verify(*stage, &parsed).unwrap();
            assert_eq!(parsed.to_string(), text);
        }
    }
}

#[test]
fn equal_inputs_give_equal_bytes_and_ids_ignore_what_changes_no_bit() {
    let compiled =
        |options: &Options| compile_shape(&SMOL, &task(&container("")), options).unwrap();
    let first = compiled(&Options::default());
    let second = compiled(&Options::default());
    assert_eq!(encode_metadata(&first.plan), encode_metadata(&second.plan));
    assert_eq!(first.code, second.code);

    let id = first.plan.result_id;
    for same in [
        Options {
            columns_max: Some(7),
            ..Options::default()
        },
        Options {
            threads_max: Some(64),
            ..Options::default()
        },
        Options {
            weights: Some(WeightsFrom::Read),
            ..Options::default()
        },
    ] {
        assert_eq!(compiled(&same).plan.result_id, id, "{same:?}");
    }
    let other = compiled(&Options {
        context: Some(1024),
        ..Options::default()
    });
    assert_ne!(other.plan.result_id, id);
    let int8 = compiled(&Options {
        kv: KvFormat::Q8,
        ..Options::default()
    });
    assert_ne!(int8.plan.result_id, id);
    let sampled = container(r#""sampling": {"temperature": 0.5, "seed": 1},"#);
    let sampled = compile_shape(&SMOL, &task(&sampled), &Options::default()).unwrap();
    assert_ne!(sampled.plan.result_id, id);
}

#[test]
fn plan_texts_parse_back() {
    for read in [false, true] {
        let options = Options {
            weights: Some(if read {
                WeightsFrom::Read
            } else {
                WeightsFrom::Mapped
            }),
            ..Options::default()
        };
        let plan = compile_shape(&MIXED, &task(&container("")), &options)
            .unwrap()
            .plan;
        let text = plan_text(&plan);
        let parsed = parse_plan(&text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(parsed, plan);
        // Records are needed as a whole and in their order.
        for (line, _) in text.match_indices('\n') {
            let cut = &text[..line - 1];
            assert!(parse_plan(cut).is_err(), "cut at {line}");
        }
        let lines: Vec<&str> = text.lines().collect();
        for gone in 0..lines.len() {
            let rest = [&lines[..gone], &lines[gone + 1..]].concat().join("\n");
            let other = parse_plan(&rest).ok();
            assert_ne!(other.as_ref(), Some(&plan), "without {}", lines[gone]);
        }
    }
}

/// The whole plan as text, for several tasks, weight sources and targets.
#[test]
fn plan_texts() {
    let windows = container("");
    let sampled = container(r#""sampling": {"temperature": 0.5, "seed": 1}, "stop": ["END"],"#);
    let flow = common::flow(r#""model_requirements": {"max_sequence_tokens": 512},"#);
    for (name, text, target, read) in [
        ("windows_laptop_mapped", &windows, "laptop", false),
        ("sampled_pi5_read", &sampled, "pi5", true),
        ("flow_pi4_mapped", &flow, "pi4", false),
    ] {
        let options = Options {
            weights: Some(if read {
                WeightsFrom::Read
            } else {
                WeightsFrom::Mapped
            }),
            ..Options::default()
        };
        let target = common::target(target);
        let compiled = common::compile_shape_for(&MIXED, &task(text), &target, &options);
        insta::assert_snapshot!(format!("plan_{name}"), plan_text(&compiled.unwrap().plan));
    }
}

#[test]
fn rings_of_sliding_layers_hold_a_window_and_a_chunk() {
    let rings = |columns| {
        let options = Options {
            columns_max: Some(columns),
            sequences_max: Some(1),
            context: Some(1024),
            ..Options::default()
        };
        let compiled = compile_shape(&SLIDING, &task(&container("")), &options).unwrap();
        let plan = compiled.plan;
        let buffers = plan.buffers.iter();
        let rings = buffers.filter(|b| b.kind == BufferKind::KvRing);
        let positions: Vec<u64> = rings.map(|b| b.bytes / (64 * 2)).collect();
        (positions, plan.result_id)
    };
    let (short, id) = rings(7);
    assert_eq!(short, [80, 80, 1024, 1024, 80, 80, 1024, 1024]);
    let (long, same_id) = rings(512);
    assert_eq!(long[..4], [576, 576, 1024, 1024]);
    assert_eq!(id, same_id);
}

/// A layer with norms behind its parts and of its heads: they cost no barrier.
#[test]
fn norms_behind_parts_of_a_layer_join_the_next_norm() {
    let compiled = compile_shape(&SLIDING, &task(&container("")), &Options::default()).unwrap();
    let plan = &compiled.plan;
    // Before the layers the embedding and the first norm; per layer the
    // projections, store, attention, output, both norms, gate and up, gate
    // function, down, both norms. Behind them norm, head and cap.
    assert_eq!(plan.body_phases, 2 + 9 * 4);
    assert_eq!(plan.phases.len(), 2 + 9 * 4 + 3);
    let tables = plan.kernels.iter();
    let tables = tables.filter(|k| matches!(k.spec(), KernelSpec::RopeTable { .. }));
    assert_eq!(tables.count(), 1, "both rotations have one kernel");
    assert_eq!(plan.constants.len(), 64, "and frequencies of their own");
}

#[test]
fn contexts_of_any_length_are_built_or_refused() {
    use omex_compiler::choices::context;
    use omex_kernels::spec::CONTEXT_MAX;
    let task = task(&container(""));
    let program = omex_plan::task::Program {
        task_id: "test".to_owned(),
        inputs: Vec::new(),
        nodes: Vec::new(),
    };
    let of = |asked| context(&task, &program, u32::MAX, asked);
    assert_eq!(of(Some(CONTEXT_MAX)).unwrap(), CONTEXT_MAX);
    assert!(of(None).unwrap() <= CONTEXT_MAX);
    for asked in [CONTEXT_MAX + 1, u32::MAX - 15, u32::MAX] {
        let refusal = of(Some(asked)).unwrap_err();
        assert_eq!(refusal.code(), Code::ContextTooLong);
        assert!(refusal.message().contains("1048576"), "{refusal:?}");
    }
}

/// Contexts below the shortest chunk that is worth mapping weights for.
#[test]
fn short_contexts_page_nothing() {
    for context in [16, 31, 32] {
        let options = Options {
            context: Some(context),
            ..Options::default()
        };
        let task = common::flow("").replace(r#""max_tokens": 64"#, r#""max_tokens": 1"#);
        let plan = compile_shape(&SMOL, &common::task(&task), &options)
            .unwrap()
            .plan;
        assert!(
            matches!(plan.weights.source, WeightSource::Mapped),
            "{context}"
        );
    }
}

/// On kernels with larger pages, more of every area and of what a cgroup is charged
/// ahead is unused.
#[test]
fn contracts_count_in_pages_of_the_device() {
    let charge = |page_bytes| {
        let machine = common::Machine {
            device: Device {
                cores: 4,
                page_bytes,
            },
            ..common::Machine::default()
        };
        let (task, options) = (task(&container("")), Options::default());
        let compiled = common::compile_on(&SMOL, &task, &common::laptop(), &options, machine);
        compiled.unwrap().plan.memory.charge_peak_bytes()
    };
    let ahead = 4 * 63 * ((16 << 10) - 4096);
    assert!(charge(16 << 10) > charge(4096) + ahead);
    assert!(charge(64 << 10) > charge(16 << 10) + 4 * ahead);
}
