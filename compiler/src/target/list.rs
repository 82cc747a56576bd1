//! `omexc targets`: every profile, as a table and as JSON.

use serde_json::{Value, json};

use super::profile::{Figure, Profile};

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn mark<T>(figure: &Figure<T>, text: String) -> String {
    if figure.estimate {
        format!("~{text}")
    } else {
        text
    }
}

/// A table for people. `~` marks estimates.
pub fn list_text(profiles: &[Profile]) -> String {
    let header = [
        "TARGET",
        "ARCH",
        "CORES",
        "PAGE",
        "RAM FOR APP",
        "MEMORY",
        "STORAGE",
        "FEATURES",
        "ALIASES",
    ];
    let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    for p in profiles {
        let features: Vec<&str> = p.features.iter().map(|f| f.name()).collect();
        let gigabytes = p.memory_bytes_per_s.value as f64 / 1e9;
        let megabytes = p.storage_bytes_per_s.value as f64 / 1e6;
        rows.push(vec![
            p.name.clone(),
            p.arch.to_string(),
            mark(&p.cores, p.cores.value.to_string()),
            mark(&p.page_bytes, format!("{} KiB", p.page_bytes.value >> 10)),
            mark(&p.ram_app_bytes, gib(p.ram_app_bytes.value)),
            mark(&p.memory_bytes_per_s, format!("{gigabytes} GB/s")),
            mark(&p.storage_bytes_per_s, format!("{megabytes} MB/s")),
            features.join(" "),
            p.aliases.join(" "),
        ]);
    }
    let widths: Vec<usize> = (0..header.len())
        .map(|c| {
            rows.iter()
                .map(|row| row[c].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out.push_str(
        "\n~ estimate, not measured. `omexc targets --json` gives the source of each figure.\n",
    );
    out
}

fn figure<T: Copy + Into<u64>>(figure: &Figure<T>) -> Value {
    let value: u64 = figure.value.into();
    json!({"value": value, "estimate": figure.estimate, "source": figure.source})
}

/// Every figure with its source.
pub fn list_json(profiles: &[Profile]) -> Value {
    let targets: Vec<Value> = profiles
        .iter()
        .map(|p| {
            json!({
                "name": p.name,
                "aliases": p.aliases,
                "description": p.description,
                "arch": p.arch.name(),
                "features": p.features.iter().map(|f| f.name()).collect::<Vec<_>>(),
                "cores": figure(&p.cores),
                "threads": figure(&p.threads),
                "page_bytes": figure(&p.page_bytes),
                "l1d_bytes": figure(&p.l1d_bytes),
                "l2_bytes": figure(&p.l2_bytes),
                "l3_bytes": p.l3_bytes.as_ref().map(figure),
                "memory_bytes_per_s": figure(&p.memory_bytes_per_s),
                "memory_latency_ns": figure(&p.memory_latency_ns),
                "prefetch_pages": figure(&p.prefetch_pages),
                "macs_per_s": figure(&p.macs_per_s),
                "storage_bytes_per_s": figure(&p.storage_bytes_per_s),
                "zstd_bytes_per_s": figure(&p.zstd_bytes_per_s),
                "ram_total_bytes": figure(&p.ram_total_bytes),
                "ram_app_bytes": figure(&p.ram_app_bytes),
            })
        })
        .collect();
    json!({"schema_version": 1, "targets": targets})
}
