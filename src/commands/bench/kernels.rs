//! `omex bench --kernels`: where a pass's time goes, beside the machine's ceilings.

use std::collections::BTreeMap;
use std::io::Write;

use omex_codegen::ceiling::{self, Memory};
use omex_kernels::KernelSpec;
use omex_kernels::spec::{Access, OperandClass, ring_bytes};
use omex_runtime::{RunError, Session};

use super::Tokens;
use crate::commands::output::Failure;

/// The calls of one kernel in a pass.
#[derive(Default)]
struct Calls {
    calls: u32,
    seconds: f64,
    bytes: u64,
    macs: u64,
}

/// Prints one table for a pass of one token and one for a full prefill pass.
pub(super) fn print(session: &mut Session, repetitions: u32) -> Result<(), Failure> {
    let engine = session.engine();
    let threads = engine.threads();
    let shared = engine.shared_plan();
    let plan = shared.plan();
    // The head's steps run for one selected column.
    let head = plan.phases[plan.body_phases as usize].first_step as usize;
    let read = Memory::new().bytes_per_second(threads).0 / 1e9;
    let mac = ceiling::macs_per_second(threads) / 1e9;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} threads; ceilings measured here: memory reads {read:.1} GB/s, \
         8-bit multiply-adds {mac:.0} Gmac/s\n",
        threads
    )?;
    for columns in [1, plan.columns_max.min(plan.model.context - 1)] {
        let position = if columns == 1 {
            plan.model.context / 2
        } else {
            0
        };
        let seconds = time(session, columns, position, repetitions)?;
        let mut kernels: BTreeMap<usize, Calls> = BTreeMap::new();
        for (index, (step, seconds)) in plan.steps.iter().zip(&seconds).enumerate() {
            let kernel = step.kernel.index();
            let step_columns = if index < head { columns } else { 1 };
            let (bytes, macs) = work(plan.kernels[kernel].spec(), step_columns, position);
            let calls = kernels.entry(kernel).or_default();
            calls.calls += 1;
            calls.seconds += seconds;
            calls.bytes += bytes;
            calls.macs += macs;
        }
        let total: f64 = kernels.values().map(|calls| calls.seconds).sum();
        let mut rows: Vec<_> = kernels.into_iter().collect();
        rows.sort_by(|(_, a), (_, b)| b.seconds.total_cmp(&a.seconds));
        writeln!(
            out,
            "| {columns} column{} at position {position} | code | calls | ms | share | GB/s | of reads | Gmac/s | of macs |",
            if columns == 1 { "" } else { "s" }
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
        for (kernel, calls) in rows {
            let kernel = &plan.kernels[kernel];
            let gbs = calls.bytes as f64 / calls.seconds / 1e9;
            let gmacs = calls.macs as f64 / calls.seconds / 1e9;
            let (mac_cell, mac_share) = match calls.macs {
                0 => ("-".to_owned(), "-".to_owned()),
                _ => (format!("{gmacs:.1}"), percent(gmacs / mac)),
            };
            writeln!(
                out,
                "| {} | {} | {} | {:.3} | {} | {gbs:.1} | {} | {mac_cell} | {mac_share} |",
                name(kernel.spec()),
                if kernel.code.is_some() {
                    "plan"
                } else {
                    "runtime"
                },
                calls.calls,
                1e3 * calls.seconds,
                percent(calls.seconds / total),
                percent(gbs / read),
            )?;
        }
        writeln!(out, "| all | | | {:.3} | | | | | |\n", 1e3 * total)?;
    }
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// Median seconds of each step, alone on all threads.
fn time(
    session: &mut Session,
    columns: u32,
    position: u32,
    repetitions: u32,
) -> Result<Vec<f64>, RunError> {
    let engine = session.engine();
    let mut tokens = Tokens::new(engine.plan().model.vocabulary);
    let pass: Vec<u32> = (0..columns).map(|_| tokens.next()).collect();
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); engine.plan().steps.len()];
    for repetition in 0..=repetitions {
        let seconds = engine.time_steps(&pass, position)?;
        // The first pass warms up.
        if repetition > 0 {
            for (samples, seconds) in samples.iter_mut().zip(seconds) {
                samples.push(seconds.as_secs_f64());
            }
        }
    }
    Ok(samples
        .into_iter()
        .map(|mut samples| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 2]
        })
        .collect())
}

/// Bytes that a call reads and writes at least once, and its multiply-adds.
fn work(spec: &KernelSpec, columns: u32, position: u32) -> (u64, u64) {
    let c = u64::from(columns);
    let operands = spec.operands(columns);
    let buffers: u64 = operands
        .as_slice()
        .iter()
        .filter(|o| o.class == OperandClass::Buffer)
        .map(|o| o.bytes)
        .sum();
    let weights: u64 = operands
        .as_slice()
        .iter()
        .filter(|o| o.class == OperandClass::Weights && o.access == Access::Read)
        .map(|o| o.bytes)
        .sum();
    match *spec {
        KernelSpec::Embed { format, k, .. } => (buffers + c * format.row_bytes(k), 0),
        KernelSpec::Matmul { rows, k, .. } => {
            (buffers + weights, c * u64::from(rows) * u64::from(k))
        }
        KernelSpec::KvStore {
            kv_heads,
            head_dim,
            ring,
            format,
            ..
        } => {
            let position_bytes = ring_bytes(format, kv_heads, head_dim, ring) / u64::from(ring);
            (buffers + weights + 2 * c * position_bytes, 0)
        }
        KernelSpec::Attention {
            heads,
            kv_heads,
            head_dim,
            ring,
            format,
            window,
            ..
        } => {
            let seen = |query: u32| {
                u64::from(match window {
                    0 => query + 1,
                    window => (query + 1).min(window),
                })
            };
            let pairs: u64 = (position..position + columns).map(seen).sum();
            let last = seen(position + columns - 1);
            let position_bytes = ring_bytes(format, kv_heads, head_dim, ring) / u64::from(ring);
            (
                buffers + weights + 2 * last * position_bytes,
                2 * pairs * u64::from(heads) * u64::from(head_dim),
            )
        }
        KernelSpec::RopeTable { .. }
        | KernelSpec::Norm { .. }
        | KernelSpec::NormAddNorm { .. }
        | KernelSpec::Quantize { .. }
        | KernelSpec::Softcap { .. }
        | KernelSpec::Gate { .. } => (buffers + weights, 0),
    }
}

fn name(spec: &KernelSpec) -> String {
    match *spec {
        KernelSpec::Embed {
            format, rows, k, ..
        } => format!("embed {} {rows}x{k}", format.name()),
        KernelSpec::RopeTable { pairs, .. } => format!("rope table {pairs}"),
        KernelSpec::Norm { len, .. } => format!("norm {len}"),
        KernelSpec::NormAddNorm { len, .. } => format!("norm add norm {len}"),
        KernelSpec::Softcap { len, .. } => format!("softcap {len}"),
        KernelSpec::Quantize { len } => format!("quantize {len}"),
        KernelSpec::Matmul {
            format,
            rows,
            k,
            bias,
            residual,
        } => format!(
            "matmul {} {rows}x{k}{}{}",
            format.name(),
            if bias { " +bias" } else { "" },
            if residual { " +residual" } else { "" }
        ),
        KernelSpec::KvStore {
            kv_heads, head_dim, ..
        } => format!("kv store {kv_heads}x{head_dim}"),
        KernelSpec::Attention {
            heads,
            kv_heads,
            head_dim,
            window,
            ..
        } => {
            let window = match window {
                0 => String::new(),
                window => format!(" window {window}"),
            };
            format!("attention {heads}/{kv_heads}x{head_dim}{window}")
        }
        KernelSpec::Gate { len, .. } => format!("gate {len}"),
    }
}
