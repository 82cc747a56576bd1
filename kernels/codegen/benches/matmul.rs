//! Generated matmuls: `cargo bench -p omex-codegen -- Q4_1`.
//!
//! - `decode`: one column over 200 MB of panels, so that weights come from
//!   memory; bytes of weights per second.
//! - `cached`: one column over a matrix that stays in the cache.
//! - `prefill`: 256 columns of 1536 x 2048; multiply-adds per second.
//! - `compile`: from spec to code.
//!
//! `decode/reads` is the machine's own speed of reading memory. The environment
//! variable `WITHOUT` names features of this CPU to leave unused, e.g.
//! `WITHOUT=avxvnni,avx512vnni`; without `f16c` the code is cranelift's.

#[path = "../tests/support/mod.rs"]
mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use omex_codegen::{Feature, Isa, compile};
use omex_kernels::{KernelSpec, WeightFormat, pad_to_panel};
use std::time::{Duration, Instant};
use support::exec::Executable;
use support::{Data, Random, pack, random_q8, random_rows};

const ROWS: u32 = 1536;
const K: u32 = 2048;
const COLUMNS: u32 = 256;
const MEMORY_BYTES: usize = 200_000_000;

fn spec(format: WeightFormat, rows: u32) -> KernelSpec {
    KernelSpec::Matmul {
        format,
        rows,
        k: K,
        bias: false,
        residual: false,
    }
}

fn isa() -> Isa {
    let mut isa = Isa::host().expect("an architecture with a back end");
    let without = std::env::var("WITHOUT").unwrap_or_default();
    isa.features = isa
        .features
        .without(without.split(',').filter_map(Feature::from_name).collect());
    isa
}

/// Time of `iterations` runs of `work(thread)` on all threads at once.
fn on_threads(threads: usize, iterations: u64, work: impl Fn(usize) + Sync) -> Duration {
    let start = Instant::now();
    std::thread::scope(|s| {
        for t in 0..threads {
            let work = &work;
            s.spawn(move || (0..iterations).for_each(|_| work(t)));
        }
    });
    start.elapsed()
}

struct Matmul {
    format: WeightFormat,
    weights: Vec<u8>,
    activations: Vec<u8>,
    isa: Isa,
}

impl Matmul {
    fn new(format: WeightFormat, isa: Isa) -> Matmul {
        let mut r = Random(9);
        let rows = random_rows(&mut r, format, ROWS, K, Data::Usual);
        let activations = if format.takes_q8() {
            random_q8(&mut r, K, COLUMNS, Data::Usual)
        } else {
            (0..pad_to_panel(K) * COLUMNS)
                .flat_map(|i| (i as f32).to_le_bytes())
                .collect()
        };
        Matmul {
            format,
            weights: pack(format, ROWS, K, &rows),
            activations,
            isa,
        }
    }

    /// Each thread computes `columns` columns of its part of the panels.
    fn run(&self, weights: &[u8], columns: u32, threads: usize, iterations: u64) -> Duration {
        let panel_bytes = self.format.panel_bytes(K) as usize;
        let panels = weights.len() / panel_bytes / threads;
        let spec = spec(self.format, 16 * panels as u32);
        let code = Executable::new(&compile(&spec, &self.isa).expect("a supported kernel"));
        let activations =
            &self.activations[..self.activations.len() / COLUMNS as usize * columns as usize];
        on_threads(threads, iterations, |t| {
            let part = &weights[t * panels * panel_bytes..(t + 1) * panels * panel_bytes];
            code.matmul(&spec, columns, part, activations, &[], &[]);
        })
    }
}

fn matmuls(c: &mut Criterion) {
    let isa = isa();
    let memory = vec![1u64; MEMORY_BYTES / 8];
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(MEMORY_BYTES as u64));
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new("reads", threads), |b| {
            b.iter_custom(|n| {
                on_threads(threads, n, |t| {
                    let len = memory.len() / threads;
                    let mut lanes = [0u64; 16];
                    for step in memory[t * len..(t + 1) * len].chunks_exact(16) {
                        lanes.iter_mut().zip(step).for_each(|(lane, x)| *lane ^= x);
                    }
                    std::hint::black_box(lanes);
                })
            });
        });
    }
    group.finish();
    drop(memory);

    for format in WeightFormat::ALL {
        let matmul = Matmul::new(format, isa);
        let copies = MEMORY_BYTES.div_ceil(matmul.weights.len());
        let mut many: Vec<u8> = Vec::new();
        let mut group = c.benchmark_group("decode");
        group.throughput(Throughput::Bytes((copies * matmul.weights.len()) as u64));
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new(format.name(), threads), |b| {
                if many.is_empty() {
                    many = matmul.weights.repeat(copies);
                }
                b.iter_custom(|n| matmul.run(&many, 1, threads, n));
            });
        }
        group.finish();
        let mut group = c.benchmark_group("cached");
        group.throughput(Throughput::Bytes(matmul.weights.len() as u64));
        group.bench_function(format.name(), |b| {
            b.iter_custom(|n| matmul.run(&matmul.weights, 1, 1, n))
        });
        group.finish();
        let mut group = c.benchmark_group("prefill");
        group.throughput(Throughput::Elements(
            ROWS as u64 * K as u64 * COLUMNS as u64,
        ));
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new(format.name(), threads), |b| {
                b.iter_custom(|n| matmul.run(&matmul.weights, COLUMNS, threads, n));
            });
        }
        group.finish();
        c.bench_function(&format!("compile/{}", format.name()), |b| {
            b.iter(|| compile(&spec(format, ROWS), &isa).expect("a supported kernel"));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(600));
    targets = matmuls
}
criterion_main!(benches);
