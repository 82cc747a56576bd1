//! Windows that go through the model together give the bits that each gives
//! alone, whatever else is in a pass with them.

mod common;

use common::naive::Naive;
use common::{Folder, Options, Random, Style, Tiny, threads, vocabulary};
use omex_compiler::paging::{Request, page};
use omex_kernels::WeightFormat;
use omex_kernels::spec::KvFormat;
use omex_plan::task::NodeKind;
use omex_plan::{Plan, check};
use omex_runtime::events::{Event, Sink};
use omex_runtime::exec::Span;
use omex_runtime::{Bindings, RunOptions, SamplingChanges, Session};

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn spans_of_a_pass_are_computed_as_if_alone() {
    use {KvFormat::*, Style::*};
    for (style, kv, read) in [(Plain, F16, false), (Capped, Q8, true), (Capped, F16, true)] {
        let tiny = Tiny::new(Options {
            columns_max: 24,
            head_columns: 4,
            sequences: 4,
            style,
            kv,
            read,
            ..Options::default()
        });
        let folder = Folder::new(&format!("windows-spans-{style:?}-{kv:?}"));
        let plan = tiny.write(&folder.0);
        let random = &mut Random(3);
        let vocabulary = tiny.plan.model.vocabulary;
        let texts: Vec<Vec<u32>> = (0..4)
            .map(|_| (0..70).map(|_| random.next() % vocabulary).collect())
            .collect();
        let wanted: Vec<Vec<_>> = texts
            .iter()
            .map(|text| {
                let mut naive = Naive::new(&tiny);
                text.iter().map(|&t| bits(&naive.push(t))).collect()
            })
            .collect();
        for thread_count in [1, 3] {
            let mut session = Session::load(&plan, &threads(thread_count)).unwrap();
            let engine = session.engine();
            let mut done = [0usize; 4];
            while done.iter().any(|&n| n < 70) {
                // Any sequences, in any order, with any number of columns.
                let first = random.next() % 4;
                let (mut tokens, mut spans) = (Vec::new(), Vec::new());
                for i in 0..4 {
                    let sequence = (first + i) % 4;
                    let at = done[sequence as usize];
                    let most = [1, 1, 3, 18][(random.next() % 4) as usize];
                    let count = most.min(70 - at).min(24 - tokens.len());
                    if count == 0 || random.next().is_multiple_of(4) {
                        continue;
                    }
                    tokens.extend(&texts[sequence as usize][at..at + count]);
                    spans.push(Span {
                        sequence,
                        position: at as u32,
                        columns: count as u32,
                    });
                }
                if spans.is_empty() {
                    continue;
                }
                engine.forward_spans(&tokens, &spans, true).unwrap();
                let columns: Vec<_> = spans
                    .iter()
                    .flat_map(|s| (0..s.columns).map(|c| (s.sequence, s.position + c)))
                    .collect();
                for start in (0..columns.len()).step_by(4) {
                    let count = (columns.len() - start).min(4);
                    engine.head(start as u32, count as u32).unwrap();
                    for (i, (sequence, position)) in columns[start..][..count].iter().enumerate() {
                        let got = bits(engine.head_logits_mut(i as u32).unwrap());
                        assert!(
                            got == wanted[*sequence as usize][*position as usize],
                            "sequence {sequence}, position {position} of {spans:?}"
                        );
                    }
                }
                for span in &spans {
                    done[span.sequence as usize] += span.columns as usize;
                }
            }
        }
    }
}

/// Everything that a run tells, apart from how prompts progress and when
/// windows start.
#[derive(Debug, Default)]
struct Told {
    text: Vec<u8>,
    events: Vec<String>,
}

impl Sink for Told {
    fn text(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.text.extend_from_slice(bytes);
        self.events.push(format!("text of {} bytes", bytes.len()));
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>) -> std::io::Result<()> {
        match event {
            Event::Prompt { .. } | Event::Prefill { .. } => {}
            other => self.events.push(format!("{other:?}")),
        }
        Ok(())
    }
}

fn run(plan: &std::path::Path, thread_count: u32, options: &RunOptions) -> (Told, u64, [u8; 32]) {
    let mut session = Session::load(plan, &threads(thread_count)).unwrap();
    let mut told = Told::default();
    let report = session.run(options, &mut told).unwrap();
    (told, report.generated_tokens, report.result_id)
}

/// Words that the tiny vocabulary spells, in no order.
fn text(words: usize) -> String {
    let random = &mut Random(11);
    let word = |n: u32| ["the", "thing", "in", "ring", "a", "say", "end"][n as usize % 7];
    let words: Vec<_> = (0..words).map(|_| word(random.next())).collect();
    words.join(" ")
}

#[test]
fn windows_together_tell_what_they_tell_alone() {
    let mut finishes = std::collections::BTreeSet::new();
    for (sequences, head_columns, columns_max, paged) in [
        (3, 3, 64, false),
        (4, 4, 5, false),
        (8, 8, 32, true),
        (2, 7, 64, true),
    ] {
        let tiny = Tiny::new(Options {
            sequences,
            head_columns,
            columns_max,
            ..Options::default()
        });
        let mut plan = tiny.plan.clone();
        plan.model.end_tokens = (0..plan.model.vocabulary).step_by(40).collect();
        for node in &mut plan.program.nodes {
            if let NodeKind::Infer { stop, .. } = &mut node.kind {
                *stop = vec!["e".to_owned()];
            }
        }
        if paged {
            plan = streamed(&plan);
        }
        check(plan.clone(), 0).unwrap();
        let tiny = Tiny { plan, ..tiny };
        let folder = Folder::new(&format!("windows-{sequences}-{paged}"));
        let plan = tiny.write(&folder.0);
        for (temperature, predict) in [(0.0, 5), (0.8, 12), (0.8, 1), (0.0, 0)] {
            let options = |parallel: u32, ubatch: Option<u32>| RunOptions {
                bindings: Bindings {
                    prompt: Some(text(130)),
                    ..Bindings::default()
                },
                predict: Some(predict),
                sampling: SamplingChanges {
                    temperature: Some(temperature),
                    top_k: Some(9),
                    seed: Some(4),
                    ..SamplingChanges::default()
                },
                prefill_chunk: ubatch,
                parallel: Some(parallel),
                ..RunOptions::default()
            };
            let (wanted, tokens, id) = run(&plan, 2, &options(1, None));
            let ends = wanted.events.iter().filter(|e| e.contains("WindowEnd"));
            assert!(ends.count() >= 4, "few windows: {:?}", wanted.events);
            for event in &wanted.events {
                finishes.extend(event.split("finish: ").nth(1).map(str::to_owned));
            }
            for (threads, parallel, ubatch) in
                [(1, sequences, None), (3, sequences, Some(3)), (2, 2, None)]
            {
                let got = run(&plan, threads, &options(parallel, ubatch));
                assert_eq!(got.0.text, wanted.text, "{parallel} at a time");
                assert_eq!(got.0.events, wanted.events, "{parallel} at a time");
                assert_eq!((got.1, got.2), (tokens, id), "{parallel} at a time");
            }
        }
    }
    assert_eq!(finishes.len(), 3, "{finishes:?}");
}

/// What a window makes of a weight that is NaN fails that window, in its turn,
/// and none that was on its way with it.
#[test]
fn a_window_that_fails_takes_no_older_one_with_it() {
    let z = vocabulary().tokens.iter().position(|t| t == "z").unwrap();
    let tiny = Tiny::new(Options {
        format: WeightFormat::F32,
        tied: false,
        sequences: 4,
        head_columns: 9,
        nan_token: Some(z as u32),
        ..Options::default()
    });
    let folder = Folder::new("windows-nan");
    let plan = tiny.write(&folder.0);
    let failed = |parallel: u32, thread_count: u32| {
        let options = RunOptions {
            bindings: Bindings {
                prompt: Some(format!("{} z {}", text(70), text(40))),
                ..Bindings::default()
            },
            predict: Some(6),
            parallel: Some(parallel),
            ..RunOptions::default()
        };
        let mut session = Session::load(&plan, &threads(thread_count)).unwrap();
        let mut told = Told::default();
        let error = session.run(&options, &mut told).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        (told.text, told.events)
    };
    let wanted = failed(1, 1);
    let ends = wanted.1.iter().filter(|e| e.contains("WindowEnd"));
    assert!(ends.count() >= 2, "few windows before: {:?}", wanted.1);
    for (parallel, thread_count) in [(2, 1), (3, 2), (4, 3)] {
        assert_eq!(
            failed(parallel, thread_count),
            wanted,
            "{parallel} at a time"
        );
    }
}

/// The plan with as little of its weights in memory as can be.
fn streamed(plan: &Plan) -> Plan {
    let request = |weights_bytes_max| Request {
        weights_bytes_max,
        slots_bytes_max: 64 << 10,
        read_bytes_max: 1,
        depth: 2,
        first_layers: 0..0,
        storage_bytes_per_s: 1,
        memory_bytes_per_s: 1,
        macs_per_s: 1,
        frames: omex_compiler::paging::Frames::default(),
    };
    let least = page(plan, &request(0)).unwrap_err().weights_bytes_min;
    page(plan, &request(least)).unwrap()
}

#[test]
fn more_windows_than_the_plan_has_rings_are_refused() {
    let tiny = Tiny::new(Options {
        format: WeightFormat::F32,
        sequences: 2,
        head_columns: 2,
        ..Options::default()
    });
    let folder = Folder::new("windows-refused");
    let plan = tiny.write(&folder.0);
    let mut session = Session::load(&plan, &threads(1)).unwrap();
    let options = RunOptions {
        bindings: Bindings {
            prompt: Some("the".to_owned()),
            ..Bindings::default()
        },
        parallel: Some(3),
        ..RunOptions::default()
    };
    let error = session.run(&options, &mut Told::default()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("1 to 2"), "{error}");

    let mut plan = tiny.plan.clone();
    plan.sequences_max = 3;
    let refused = |plan: Plan| check(plan, 0).unwrap_err().0;
    assert!(refused(plan.clone()).contains("sequences_max"));
    plan.head_columns_max = 3;
    plan.buffers[plan.logits_buffer.index()].bytes *= 2;
    let last = plan.buffers[plan.logits_buffer.index()].offset;
    plan.arena_bytes = plan.arena_bytes.max(last + (1 << 20));
    let words = refused(plan);
    assert!(
        words.contains("keys") || words.contains("overlap"),
        "{words}"
    );
}
