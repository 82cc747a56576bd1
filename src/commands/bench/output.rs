//! Rows as `llama-bench` prints them; what OMEX adds comes after its fields.

use std::io::{self, Write};

use omex_kernels::spec::KvFormat;
use omex_kernels::{KernelSpec, WeightFormat};
use omex_plan::{Plan, Step};
use serde_json::{Value, json};

use super::{Format, Row};
use crate::commands::output::bytes;

pub(super) struct Printer {
    format: Format,
    /// Whether rows have the speed of reads.
    reads: bool,
    rows: usize,
}

impl Printer {
    pub(super) fn new(format: Format, reads: bool) -> Printer {
        Printer {
            format,
            reads,
            rows: 0,
        }
    }

    /// Prints a row as soon as it is measured.
    pub(super) fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let first = self.rows == 0;
        self.rows += 1;
        match self.format {
            Format::Md => {
                let reads = row.reads.as_ref().map(|reads| {
                    let share = mean(&tokens_per_second(row))
                        * token_weights_bytes(row.plan) as f64
                        / reads.bytes_per_second();
                    let gb_per_s = reads.bytes_per_second() / 1e9;
                    [format!("{gb_per_s:.1}"), format!("{:.0} %", 100.0 * share)]
                });
                if first {
                    write!(
                        out,
                        "| {:30} | {:>10} | {:>10} | {:10} | {:>7} | {:>15} | {:>20} |",
                        "model", "size", "params", "backend", "threads", "test", "t/s"
                    )?;
                    if self.reads {
                        write!(out, " {:>11} | {:>8} |", "reads, GB/s", "of reads")?;
                    }
                    write!(
                        out,
                        "\n| {:-<30} | {:->9}: | {:->9}: | {:-<10} | {:->6}: | {:->14}: | {:->19}: |",
                        "", "", "", "", "", "", ""
                    )?;
                    if self.reads {
                        write!(out, " {:->10}: | {:->7}: |", "", "")?;
                    }
                    writeln!(out)?;
                }
                let ts = tokens_per_second(row);
                write!(
                    out,
                    "| {:30} | {:>10} | {:>10} | {:10} | {:>7} | {:>15} | {:>20} |",
                    model_type(row.plan),
                    bytes(weights_bytes(row.plan)),
                    parameters(count(row.plan)),
                    "CPU",
                    row.threads,
                    test_name(row),
                    format!("{:.2} ± {:.2}", mean(&ts), deviation(&ts)),
                )?;
                if self.reads {
                    let [speed, share] = reads.unwrap_or_default();
                    write!(out, " {speed:>11} | {share:>8} |")?;
                }
                writeln!(out)
            }
            Format::Csv => {
                let fields = fields(row);
                if first {
                    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
                    writeln!(out, "{}", names.join(","))?;
                }
                let cells: Vec<String> = fields.iter().map(|(_, value)| csv(value)).collect();
                writeln!(out, "{}", cells.join(","))
            }
            Format::Json => {
                let before = if first { "[\n" } else { ",\n" };
                write!(out, "{before}  {{\n    {}\n  }}", object(row, ",\n    "))
            }
            Format::Jsonl => writeln!(out, "{{{}}}", object(row, ", ")),
        }
    }

    pub(super) fn finish(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match (self.format, self.rows) {
            (Format::Json, 0) => writeln!(out, "[]"),
            (Format::Json, _) => writeln!(out, "\n]"),
            (Format::Md | Format::Csv | Format::Jsonl, _) => Ok(()),
        }
    }
}

fn csv(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// The members of a row's JSON object.
fn object(row: &Row<'_>, separator: &str) -> String {
    let mut fields = fields(row);
    fields.push(("samples_ns", json!(row.samples_ns)));
    fields.push(("samples_ts", json!(tokens_per_second(row))));
    let members: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    members.join(separator)
}

fn fields(row: &Row<'_>) -> Vec<(&'static str, Value)> {
    let ts = tokens_per_second(row);
    let ns: Vec<f64> = row.samples_ns.iter().map(|&ns| ns as f64).collect();
    let plan = row.plan;
    vec![
        (
            "build_commit",
            json!(concat!("omex-", env!("CARGO_PKG_VERSION"))),
        ),
        ("build_number", json!(0)),
        ("cpu_info", json!(cpu_name())),
        ("gpu_info", json!("")),
        ("backends", json!("CPU")),
        ("model_filename", json!(row.model)),
        ("model_type", json!(model_type(plan))),
        ("model_size", json!(weights_bytes(plan))),
        ("model_n_params", json!(count(plan))),
        ("n_batch", json!(plan.columns_max)),
        ("n_ubatch", json!(plan.columns_max)),
        ("n_threads", json!(row.threads)),
        ("type_k", json!(kv_type(plan))),
        ("type_v", json!(kv_type(plan))),
        ("n_prompt", json!(row.test.n_prompt)),
        ("n_gen", json!(row.test.n_gen)),
        ("n_depth", json!(row.test.n_depth)),
        ("test_time", json!(timestamp(row.test_time))),
        ("avg_ns", json!(mean(&ns) as u64)),
        ("stddev_ns", json!(deviation(&ns) as u64)),
        ("avg_ts", json!(mean(&ts))),
        ("stddev_ts", json!(deviation(&ts))),
        ("target", json!(plan.target.name)),
        (
            "rss_peak_predicted_bytes",
            json!(plan.memory.rss_peak_bytes()),
        ),
        ("rss_peak_bytes", json!(row.rss_peak_bytes)),
        ("token_weights_bytes", json!(token_weights_bytes(row.plan))),
        (
            "reads_bytes_per_s",
            json!(row.reads.as_ref().map(|r| r.bytes_per_second() as u64)),
        ),
    ]
}

/// ggml's name of what keys and values are kept in.
fn kv_type(plan: &Plan) -> &'static str {
    let format = plan.kernels.iter().find_map(|kernel| {
        if let KernelSpec::KvStore { format, .. } = *kernel.spec() {
            Some(format)
        } else {
            None
        }
    });
    match format {
        None | Some(KvFormat::F16) => "f16",
        Some(KvFormat::Q8) => "q8_0",
    }
}

fn tokens_per_second(row: &Row<'_>) -> Vec<f64> {
    let tokens = f64::from(row.test.n_prompt + row.test.n_gen);
    row.samples_ns
        .iter()
        .map(|&ns| 1e9 * tokens / (ns.max(1) as f64))
        .collect()
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// Of the sample; one sample has none.
fn deviation(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let mean = mean(samples);
    let squares: f64 = samples.iter().map(|x| (x - mean) * (x - mean)).sum();
    (squares / (samples.len() - 1) as f64).sqrt()
}

fn test_name(row: &Row<'_>) -> String {
    let test = row.test;
    let name = match (test.n_prompt, test.n_gen) {
        (p, 0) => format!("pp{p}"),
        (0, n) => format!("tg{n}"),
        (p, n) => format!("pp{p}+tg{n}"),
    };
    match test.n_depth {
        0 => name,
        depth => format!("{name} @ d{depth}"),
    }
}

/// Weights, the padding of panels left out.
fn count(plan: &Plan) -> u64 {
    let tensors = plan.weights.tensors.iter();
    tensors.map(|t| u64::from(t.rows) * u64::from(t.k)).sum()
}

fn weights_bytes(plan: &Plan) -> u64 {
    plan.weights.pages.iter().map(|page| page.bytes).sum()
}

/// Weights that every token reads: those of matmuls.
fn token_weights_bytes(plan: &Plan) -> u64 {
    let of_step = |step: &Step| {
        let spec = plan.kernels[step.kernel.index()].spec();
        let KernelSpec::Matmul { format, k, .. } = *spec else {
            return 0;
        };
        let panels = step.panels.map_or(spec.units(1), |range| range.count);
        u64::from(panels) * format.panel_bytes(k)
    };
    plan.steps.iter().map(of_step).sum()
}

/// Architecture and the format that has most of the weights.
fn model_type(plan: &Plan) -> String {
    let mut by_format = std::collections::BTreeMap::new();
    for tensor in &plan.weights.tensors {
        let name = tensor.format.get().map_or("?", WeightFormat::name);
        *by_format.entry(name).or_insert(0) += u64::from(tensor.rows) * u64::from(tensor.k);
    }
    let bulk = by_format.into_iter().max_by_key(|&(_, weights)| weights);
    let bulk = bulk.map_or("", |(name, _)| name);
    format!(
        "{} {} {bulk}",
        plan.model.architecture,
        parameters(count(plan)).replace(' ', "")
    )
}

fn parameters(count: u64) -> String {
    match count as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n => format!("{:.2} M", n / 1e6),
    }
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .filter_map(|line| line.strip_prefix("model name"))
        .find_map(|rest| rest.split_once(':'));
    match name {
        Some((_, name)) => name.trim().to_owned(),
        None => std::env::consts::ARCH.to_owned(),
    }
}

/// UTC in ISO 8601, by the civil calendar (Hinnant's days-to-civil algorithm).
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), expected);
        }
    }

    #[test]
    fn means_and_deviations_are_of_the_sample() {
        let samples = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(mean(&samples), 5.0);
        assert!((deviation(&samples) - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(deviation(&[3.0]), 0.0);
    }
}
