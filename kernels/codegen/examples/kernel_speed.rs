//! Measures generated matmuls: `kernel_speed [FORMAT...] [-FEATURE...]`, without
//! the features that are named, e.g. `-avx-vnni`.
//!
//! Decode is one column over 200 MB of panels, prefill 256 columns over a
//! matrix of 1536 x 2048, each on one and on two threads.

#[path = "../tests/support/mod.rs"]
mod support;

use omex_codegen::{Feature, Isa, compile};
use omex_kernels::{KernelSpec, WeightFormat, pad_to_panel};
use std::time::{Duration, Instant};
use support::exec::Executable;
use support::{Data, Random, pack, random_q8, random_rows};

const K: u32 = 2048;

/// Seconds of the fastest of some runs of `threads` threads, each with its part.
fn fastest(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let start = Instant::now();
    let mut best = f64::MAX;
    while start.elapsed() < Duration::from_millis(600) {
        let run = Instant::now();
        std::thread::scope(|s| {
            for t in 1..threads {
                let work = &work;
                s.spawn(move || work(t));
            }
            work(0);
        });
        best = best.min(run.elapsed().as_secs_f64());
    }
    best
}

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let mut isa = Isa::host().expect("an architecture with a back end");
    let without = names
        .iter()
        .filter_map(|n| Feature::from_name(n.strip_prefix('-')?));
    isa.features = isa.features.without(without.collect());
    let names: Vec<&String> = names.iter().filter(|n| !n.starts_with('-')).collect();
    let memory = vec![1u64; 25_000_000];
    let read = |threads: usize| {
        let part = memory.len() / threads;
        let seconds = fastest(threads, |t| {
            let part = &memory[t * part..(t + 1) * part];
            let lanes = part.chunks_exact(16).fold([0u64; 16], |mut s, c| {
                for (s, c) in s.iter_mut().zip(c) {
                    *s ^= c;
                }
                s
            });
            std::hint::black_box(lanes);
        });
        200e6 / seconds / 1e9
    };
    println!(
        "plain reads: {:.1} GB/s on one thread, {:.1} on two",
        read(1),
        read(2)
    );
    println!(
        "{:8} {:>10} {:>10} {:>10} {:>12} {:>12} {:>10}",
        "format", "cached", "1 GB/s", "2 GB/s", "1 Gmac/s", "2 Gmac/s", "compile us"
    );
    for format in WeightFormat::ALL {
        if !names.is_empty() && !names.iter().any(|n| *n == format.name()) {
            continue;
        }
        let mut r = Random(9);
        let panel_bytes = format.panel_bytes(K) as usize;
        let rows = random_rows(&mut r, format, 1536, K, Data::Usual);
        let few = pack(format, 1536, K, &rows);
        let mut many = Vec::new();
        while many.len() < 200_000_000 {
            many.extend_from_slice(&few);
        }
        let columns = 256;
        let activations = if format.takes_q8() {
            random_q8(&mut r, K, columns, Data::Usual)
        } else {
            (0..pad_to_panel(K) * columns)
                .flat_map(|i| (i as f32).to_le_bytes())
                .collect()
        };
        let kernel = |rows: u32| KernelSpec::Matmul {
            format,
            rows,
            k: K,
            bias: false,
            residual: false,
        };
        let measure = |weights: &[u8], columns: u32, threads: usize| {
            let panels = weights.len() / panel_bytes / threads;
            let spec = kernel(16 * panels as u32);
            let code = Executable::new(&compile(&spec, &isa).expect("a supported kernel"));
            let stride = activations.len() / 256;
            fastest(threads, |t| {
                let part = &weights[t * panels * panel_bytes..(t + 1) * panels * panel_bytes];
                code.matmul(
                    &spec,
                    columns,
                    part,
                    &activations[..stride * columns as usize],
                    &[],
                    &[],
                );
            })
        };
        let decode = [1, 2].map(|t| many.len() as f64 / measure(&many, 1, t) / 1e9);
        let cached = few.len() as f64 / measure(&few, 1, 1) / 1e9;
        let macs = 1536.0 * K as f64 * columns as f64;
        let prefill = [1, 2].map(|t| macs / measure(&few, columns, t) / 1e9);
        let start = Instant::now();
        for _ in 0..10 {
            compile(&kernel(1536), &isa).expect("a supported kernel");
        }
        let micros = start.elapsed().as_micros() / 10;
        println!(
            "{:8} {:10.1} {:10.1} {:10.1} {:12.1} {:12.1} {micros:10}",
            format.name(),
            cached,
            decode[0],
            decode[1],
            prefill[0],
            prefill[1]
        );
    }
}
