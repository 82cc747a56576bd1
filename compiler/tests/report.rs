//! Memory reports and refusals of a budget, as people and programs see them.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{MIXED, SLIDING, SMOL, Shape, compile_shape, container, task};
use omex_compiler::arena::{Effort, Item, Problem, solve};
use omex_compiler::container::{RamLimit, RamOrigin};
use omex_compiler::diagnostic::{ExitStatus, RenderOptions, exit_status};
use omex_compiler::pipeline::{Options, WeightsFrom};
use omex_compiler::report::MemoryReport;
use omex_kernels::spec::KvFormat;
use omex_plan::{Buffer, BufferKind, Plan, check};
use serde_json::Value;

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
    let mut proposed = BTreeSet::new();
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

/// Buffers with lifetimes in moments and MiB, which need one more than are ever
/// alive at once. `low` and `high` must lie at the edges of 4 MiB, for `below`
/// and `above` leave them no other place; beside `left` and `right`, `middle`
/// would have to touch both, between which there is room for two.
const FORCED: [(&str, u32, u32, u64); 10] = [
    ("first", 0, 1, 3),
    ("below", 1, 2, 3),
    ("low", 1, 4, 1),
    ("left", 2, 3, 2),
    ("middle", 2, 5, 1),
    ("beside", 3, 4, 1),
    ("high", 3, 6, 1),
    ("right", 4, 5, 2),
    ("above", 5, 6, 3),
    ("last", 6, 8, 2),
];

#[test]
fn a_gap_is_explained_by_the_buffers_that_force_it() {
    let mib = |mib: u64| mib << 20;
    let compile = |text: &str| compile_shape(&MIXED, &task(text), &Options::default());
    let mut plan = compile(&container("")).unwrap().plan;
    let items = FORCED.map(|(_, lower, upper, size)| Item {
        lower,
        upper,
        bytes: mib(size),
        align: 64,
    });
    let layout = solve(
        &Problem {
            items: items.into(),
        },
        Effort::default(),
    );
    plan.arena_bytes = layout.bytes;
    let buffers = FORCED.iter().zip(&layout.offsets);
    let buffers = buffers.map(|(&(name, first_phase, end_phase, size), &offset)| Buffer {
        name: name.to_owned(),
        kind: BufferKind::Activation,
        offset,
        bytes: mib(size),
        first_phase,
        end_phase,
    });
    plan.buffers = buffers.collect();
    let explained = |plan: &Plan| {
        let text = MemoryReport::new(plan).text();
        let lines = text.lines().filter(|line| {
            ["arena ", "the gap ", "not proved "]
                .iter()
                .any(|start| line.starts_with(start))
        });
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let forced = "the gap is forced: 5.00 MiB are needed for \
                  below, low, left, middle, high, right, above";
    let arena = "arena 5.00 MiB · lower bound 4.00 MiB · gap 1.00 MiB (1048576 bytes)";
    assert_eq!(explained(&plan), [arena, forced]);
    let json = MemoryReport::new(&plan).json();
    let names = "below low left middle high right above";
    let names: Vec<&str> = names.split(' ').collect();
    assert_eq!(json["arena"]["gap_forced_by"], serde_json::json!(names));
    assert_eq!(json["arena"]["proved_bytes"], mib(5));

    // What lies higher than it must is no part of the reason.
    plan.buffers.last_mut().unwrap().offset = mib(4);
    plan.arena_bytes = mib(6);
    let arena = "arena 6.00 MiB · lower bound 4.00 MiB · gap 2.00 MiB (2097152 bytes)";
    let loose = "not proved to be needed is what exceeds 5.00 MiB: last";
    assert_eq!(explained(&plan), [arena, forced, loose]);

    // Nor is there one where the largest load suffices.
    plan.buffers.retain(|buffer| buffer.name == "last");
    plan.buffers[0].offset = 0;
    plan.arena_bytes = mib(2);
    let arena = "arena 2.00 MiB · lower bound 2.00 MiB · gap none: no arena is smaller";
    assert_eq!(explained(&plan), [arena]);
}

/// The first rule of the Trace Event Format, or of the plan that it shows, that
/// a trace breaks.
fn validate_trace(trace: &Value, plan: &Plan) -> Result<(), String> {
    const MOMENT_US: u64 = 1000;
    let end = u64::from(plan.moments()) * MOMENT_US;
    let events = trace["traceEvents"].as_array().ok_or("no events")?;
    let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
    let mut lanes: BTreeMap<_, Vec<(u64, u64)>> = BTreeMap::new();
    let (mut counted, mut spans) = (BTreeMap::new(), BTreeMap::new());
    for event in events {
        let number = |field: &str| {
            let value = event[field].as_u64();
            value.ok_or_else(|| format!("no {field}: {event}"))
        };
        let pid = number("pid")?;
        let name = event["name"].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("no name: {event}"))?;
        let ph = event["ph"].as_str().ok_or("no ph")?;
        if ph == "M" {
            let lane = match name {
                "process_name" => None,
                "thread_name" => Some(number("tid")?),
                _ => return Err(format!("unknown metadata: {event}")),
            };
            if event["args"]["name"].as_str().is_none_or(str::is_empty) {
                return Err(format!("empty name: {event}"));
            }
            named.insert((pid, lane));
            continue;
        }
        used.insert((pid, None));
        let ts = number("ts")?;
        let dur = if ph == "X" { number("dur")? } else { 0 };
        if ts + dur > end {
            return Err(format!("late: {event}"));
        }
        match ph {
            "X" => {
                let tid = number("tid")?;
                used.insert((pid, Some(tid)));
                lanes.entry((pid, tid)).or_default().push((ts, ts + dur));
            }
            "C" => {
                let args = event["args"].as_object().ok_or("no args")?;
                let values: Option<Vec<u64>> = args.values().map(Value::as_u64).collect();
                let values = values.ok_or_else(|| format!("not numeric: {event}"))?;
                counted.insert(ts, values.iter().sum::<u64>());
            }
            "b" | "e" => {
                let id = number("id")?;
                let times: &mut Vec<_> = spans.entry((id, name)).or_default();
                times.push((ph, ts));
            }
            _ => return Err(format!("unknown ph: {event}")),
        }
    }
    if let Some(lane) = used.difference(&named).next() {
        return Err(format!("nameless: {lane:?}"));
    }
    for slices in lanes.values_mut() {
        slices.sort_unstable();
        if let Some(two) = slices.windows(2).find(|two| two[0].1 > two[1].0) {
            return Err(format!("overlap: {two:?}"));
        }
    }
    // One for every step, and one for every moment between passes.
    let slices: usize = lanes.values().map(Vec::len).sum();
    let expected = plan.steps.len() + plan.moments() as usize - plan.phases.len();
    if slices != expected {
        return Err(format!("{slices} slices, not {expected}"));
    }
    for moment in 0..plan.moments() {
        let alive = |b: &&Buffer| b.first_phase <= moment && moment < b.end_phase;
        let alive: u64 = plan.buffers.iter().filter(alive).map(|b| b.bytes).sum();
        if counted.get(&(u64::from(moment) * MOMENT_US)) != Some(&alive) {
            return Err(format!("counts: not {alive} in moment {moment}"));
        }
    }
    for (id, buffer) in plan.buffers.iter().enumerate() {
        let [first, end] = [buffer.first_phase, buffer.end_phase].map(|m| u64::from(m) * MOMENT_US);
        let span = spans.remove(&(id as u64, buffer.name.as_str()));
        if span != Some(vec![("b", first), ("e", end)]) {
            return Err(format!("span of {}: {span:?}", buffer.name));
        }
    }
    match spans.is_empty() {
        true => Ok(()),
        false => Err(format!("span of nothing: {spans:?}")),
    }
}

#[test]
fn traces_are_valid() {
    let compile = |shape: &Shape, read: bool| {
        let options = Options {
            weights: read.then_some(WeightsFrom::Read),
            ..Options::default()
        };
        compile_shape(shape, &task(&container("")), &options).unwrap()
    };
    let trace_of = |plan: &Plan| -> Value {
        serde_json::from_str(&MemoryReport::new(plan).trace().to_string()).unwrap()
    };
    for shape in [SMOL, MIXED, SLIDING] {
        for read in [false, true] {
            let plan = compile(&shape, read).plan;
            assert_eq!(validate_trace(&trace_of(&plan), &plan), Ok(()));
        }
    }

    let plan = compile(&MIXED, false).plan;
    let sound = trace_of(&plan);
    fn event<'a>(trace: &'a mut Value, ph: &str) -> &'a mut Value {
        let events = trace["traceEvents"].as_array_mut().unwrap();
        events.iter_mut().rfind(|e| e["ph"] == ph).unwrap()
    }
    type Spoil = fn(&mut Value);
    let spoiled: [(&str, Spoil); 15] = [
        ("no events", |t| t["traceEvents"] = Value::Null),
        ("slices, not", |t| {
            let events = t["traceEvents"].as_array_mut().unwrap();
            events.retain(|e| e["ph"] != "X");
        }),
        ("nameless", |t| event(t, "M")["tid"] = 7.into()),
        ("nameless", |t| event(t, "X")["tid"] = 7.into()),
        ("nameless", |t| event(t, "C")["pid"] = 7.into()),
        ("empty name", |t| event(t, "M")["args"]["name"] = "".into()),
        ("no ts", |t| event(t, "X")["ts"] = (-1).into()),
        ("no dur", |t| event(t, "X")["dur"] = (-1).into()),
        ("late", |t| event(t, "X")["dur"] = 1001.into()),
        ("overlap", |t| event(t, "X")["ts"] = 0.into()),
        ("late", |t| event(t, "e")["ts"] = (1u64 << 40).into()),
        ("not numeric", |t| {
            event(t, "C")["args"]["logits"] = "4".into();
        }),
        ("counts", |t| event(t, "C")["args"]["logits"] = 1.into()),
        ("span of", |t| event(t, "b")["ph"] = "e".into()),
        ("unknown ph", |t| event(t, "b")["ph"] = "q".into()),
    ];
    for (word, spoil) in spoiled {
        let mut trace = sound.clone();
        spoil(&mut trace);
        let found = validate_trace(&trace, &plan).unwrap_err();
        assert!(found.contains(word), "{found} is not about: {word}");
    }
}

/// What grows shows in review.
#[test]
fn budgets() {
    use omex_plan::file::{Arch, encode};
    use omex_runtime::memory::{ENCODER_TABLES_BYTES, GENERATOR_BYTES, RUNTIME_BYTES, START_BYTES};

    let mut lines = vec![
        format!("runtime, fixed: {RUNTIME_BYTES}"),
        format!("code generator, fixed: {GENERATOR_BYTES}"),
        format!("its tables, fixed: {ENCODER_TABLES_BYTES}"),
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
