//! The sampler, which runs between two passes: `cargo bench -p omex-runtime --bench sample`.
//!
//! Logits of two vocabularies: most lie within a few of each other and some far
//! above, as a model's do.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use omex_plan::session::sampler_words;
use omex_plan::task::Sampling;
use omex_runtime::sample::{sample, uniform};

/// Sums of uniform numbers, and one in 4,000 larger by up to 20.
fn logits(vocabulary: u32) -> Vec<f32> {
    let number = |id: u32, n: u32| uniform(n.into(), id) as f32;
    let of = |id| {
        let bell: f32 = (0..4).map(|n| number(id, n)).sum();
        let outlier = match id % 4_000 {
            7 => 20.0 * number(id, 4),
            _ => 0.0,
        };
        4.0 * bell + outlier
    };
    (0..vocabulary).map(of).collect()
}

fn sampler(criterion: &mut Criterion) {
    let warm = Sampling {
        temperature: 0.8,
        ..Sampling::GREEDY
    };
    let cases = [
        ("greedy", Sampling::GREEDY),
        ("temperature", warm),
        ("top_k 40", Sampling { top_k: 40, ..warm }),
        (
            "top_p 0.95",
            Sampling {
                top_p: 0.95,
                ..warm
            },
        ),
        (
            "min_p 0.05",
            Sampling {
                min_p: 0.05,
                ..warm
            },
        ),
    ];
    for vocabulary in [49_152, 262_144] {
        let mut group = criterion.benchmark_group(format!("sample of {vocabulary}"));
        group.sample_size(20);
        let logits = logits(vocabulary);
        let (candidates, bits) = sampler_words(vocabulary);
        let mut memory = vec![0; candidates + bits];
        for (name, sampling) in &cases {
            let mut history = Vec::new();
            group.bench_function(*name, |b| {
                b.iter_batched_ref(
                    || logits.clone(),
                    |logits| {
                        let token = sample(sampling, logits, &mut memory, &history);
                        // Another position is another draw.
                        history.push(black_box(token));
                    },
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, sampler);
criterion_main!(benches);
