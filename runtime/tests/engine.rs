//! Logits of hand-built plans are those of a naive evaluation, bit for bit,
//! however they are computed.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use common::naive::Naive;
use common::{EPS, Folder, Options, Random, Style, Tiny, feature_sets, threads};
use omex_kernels::spec::{self, Activation, KvFormat, NormKind};
use omex_kernels::{KernelSpec, WeightFormat};
use omex_runtime::Session;

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

fn tokens(tiny: &Tiny, count: usize) -> Vec<u32> {
    let random = &mut Random(99);
    let vocabulary = tiny.plan.model.vocabulary;
    (0..count).map(|_| random.next() % vocabulary).collect()
}

#[test]
fn logits_are_those_of_the_naive_evaluation() {
    use {KvFormat::*, Style::*, WeightFormat::F32, WeightFormat::Q8_0};
    for (format, tied, style, kv) in [
        (Q8_0, true, Plain, F16),
        (F32, false, Plain, F16),
        (Q8_0, false, Capped, F16),
        (F32, true, Capped, Q8),
    ] {
        let options = Options {
            format,
            tied,
            style,
            kv,
            ..Options::default()
        };
        let tiny = Tiny::new(options);
        let tokens = tokens(&tiny, 150);
        let mut naive = Naive::new(&tiny);
        let wanted: Vec<_> = tokens.iter().map(|&t| bits(&naive.push(t))).collect();
        let distinct: std::collections::BTreeSet<_> = wanted.iter().collect();
        assert!(distinct.len() > 140, "the model ignores its input");
        let sets = feature_sets().into_iter();
        for (read, features) in sets.flat_map(|set| [(false, set.clone()), (true, set)]) {
            let mut tiny = Tiny::new(Options { read, ..options });
            tiny.plan.target.features = features;
            let folder = Folder::new(&format!("engine-{}-{style:?}-{read}", format.name()));
            let plan = tiny.write(&folder.0);
            for (thread_count, chunk) in [(1, 1), (1, 64), (2, 7), (3, 64), (4, 33)] {
                let mut session = Session::load(&plan, &threads(thread_count)).unwrap();
                let engine = session.engine();
                let mut position = 0;
                for chunk in tokens.chunks(chunk) {
                    engine.forward(chunk, position).unwrap();
                    // Any column of a pass may be selected, in any order.
                    for column in (0..chunk.len() as u32).rev() {
                        let logits = bits(engine.logits(column).unwrap());
                        let at = (position + column) as usize;
                        assert!(
                            logits == wanted[at],
                            "{thread_count} threads, read {read}, {:?}, position {at}",
                            tiny.plan.target.features
                        );
                    }
                    position += chunk.len() as u32;
                }
            }
        }
    }
}

/// Every norm, with float and with quantized results: for lengths that are no multiple of
/// the 16 lanes where the result is float.
#[test]
fn norms_are_those_of_the_naive_evaluation() {
    use {Activation::F32, Activation::Q8, WeightFormat::Q8_0};
    let mut cases = Vec::new();
    for kind in [NormKind::Rms, NormKind::Layer] {
        for (bias, residual) in [(false, false), (false, true), (true, false), (true, true)] {
            for (output, len) in [(F32, 1), (F32, 37), (F32, 64), (Q8, 32), (Q8, 352)] {
                cases.push((kind, bias, residual, output, len));
            }
        }
    }
    for (kind, bias, residual, output, len) in cases {
        let spec = KernelSpec::Norm {
            kind,
            len,
            eps: spec::F32::new(EPS),
            bias,
            residual,
            output,
        };
        let mut tiny = Tiny::of_norm(
            spec,
            Options {
                format: if output == Q8 {
                    Q8_0
                } else {
                    WeightFormat::F32
                },
                ..Options::default()
            },
        );
        let tokens: Vec<u32> = (0..tiny.plan.model.vocabulary).collect();
        let naive = Naive::new(&tiny);
        let wanted: Vec<_> = tokens
            .iter()
            .map(|&token| bits(&naive.logits_of_norm(token, spec)))
            .collect();
        for features in feature_sets() {
            tiny.plan.target.features = features;
            let folder = Folder::new("norms");
            let plan = tiny.write(&folder.0);
            let mut session = Session::load(&plan, &threads(2)).unwrap();
            let engine = session.engine();
            for (chunk, wanted) in tokens.chunks(50).zip(wanted.chunks(50)) {
                engine.forward(chunk, 0).unwrap();
                for (column, wanted) in wanted.iter().enumerate() {
                    let logits = bits(engine.logits(column as u32).unwrap());
                    assert!(
                        &logits == wanted,
                        "{spec:?}, {:?}, token {}",
                        tiny.plan.target.features,
                        chunk[column]
                    );
                }
            }
        }
    }
}

#[test]
fn values_that_are_not_finite_name_their_step() {
    let mut tiny = Tiny::new(Options {
        format: WeightFormat::F32,
        ..Options::default()
    });
    // The weights of the second layer's down projection overflow.
    let tensor = tiny
        .plan
        .weights
        .tensors
        .iter()
        .find(|t| t.name == "1.down")
        .unwrap();
    let piece = tensor.pieces[0];
    let page = &mut tiny.plan.weights.pages[piece.page.index()];
    let start = (page.file_offset + piece.offset) as usize;
    for weight in tiny.packed[start..start + 4096].chunks_mut(4) {
        weight.copy_from_slice(&f32::MAX.to_le_bytes());
    }
    let bytes = &tiny.packed[page.file_offset as usize..][..page.bytes as usize];
    page.digest = *blake3::hash(bytes).as_bytes();
    let folder = Folder::new("not-finite");
    let plan = tiny.write(&folder.0);
    let mut messages = std::collections::BTreeSet::new();
    for thread_count in 1..=3 {
        let mut session = Session::load(&plan, &threads(thread_count)).unwrap();
        let engine = session.engine();
        let result = engine
            .forward(&[5, 6, 7], 0)
            .and_then(|_| engine.logits(2).map(|_| ()));
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        messages.insert(error.to_string());
    }
    assert_eq!(
        messages.into_iter().collect::<Vec<_>>(),
        ["`norm` met a value that is NaN or infinite in a pass from position 2 on"]
    );
}

#[test]
fn mapped_weights_that_are_overwritten_end_the_run() {
    let tiny = Tiny::new(Options::default());
    let folder = Folder::new("mapped-changed");
    let plan = tiny.write(&folder.0);
    let name = omex_runtime::packed_file_name(&tiny.plan.weights.packed_digest);
    let mut session = Session::load(&plan, &threads(2)).unwrap();
    let engine = session.engine();
    engine.forward(&[5], 0).unwrap();
    let packed = OpenOptions::new().write(true).open(folder.0.join(name));
    packed.unwrap().write_all_at(&[1; 100], 20_000).unwrap();
    let error = engine.forward(&[6], 1).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    assert!(error.to_string().contains("changed"), "{error}");
}

#[test]
fn the_head_computes_several_columns_as_one_by_one() {
    for style in [Style::Plain, Style::Capped] {
        let tiny = Tiny::new(Options {
            head_columns: 5,
            style,
            ..Options::default()
        });
        let folder = Folder::new(&format!("engine-head-{style:?}"));
        let plan = tiny.write(&folder.0);
        let tokens = tokens(&tiny, 9);
        let mut session = Session::load(&plan, &threads(2)).unwrap();
        let engine = session.engine();
        engine.forward(&tokens, 0).unwrap();
        let alone: Vec<_> = (0..9)
            .map(|column| bits(engine.logits(column).unwrap()))
            .collect();
        for (first, count) in [(0, 5), (4, 5), (3, 2), (8, 1)] {
            engine.head(first, count).unwrap();
            for index in 0..count {
                let logits = bits(engine.head_logits_mut(index).unwrap());
                assert!(logits == alone[(first + index) as usize], "{first}+{index}");
            }
        }
    }
}
