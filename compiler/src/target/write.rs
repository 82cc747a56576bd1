//! Profiles as TOML that [`super::read_profiles`] reads back.

use std::fmt::Write;

use super::profile::{Figure, Profile};

/// The file of one profile; `notes` become comments at its top.
pub fn profile_toml(profile: &Profile, notes: &[String]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    for note in notes {
        let _ = writeln!(out, "# {}", note.replace(char::is_control, " "));
    }
    if !notes.is_empty() {
        out.push('\n');
    }
    let features = profile.features.iter().map(|f| text(f.name()));
    let features = features.collect::<Vec<_>>().join(", ");
    let aliases = profile.aliases.iter().map(|a| text(a));
    let aliases = aliases.collect::<Vec<_>>().join(", ");
    let _ = writeln!(out, "name = {}", text(&profile.name));
    if !profile.aliases.is_empty() {
        let _ = writeln!(out, "aliases = [{aliases}]");
    }
    let _ = writeln!(out, "description = {}", text(&profile.description));
    let _ = writeln!(out, "arch = {}", text(profile.arch.name()));
    let _ = writeln!(out, "features = [{features}]\n");
    let mut put = |name: &str, value: String, estimate: bool, source: &str| {
        let estimate = if estimate { ", estimate = true" } else { "" };
        let source = text(source);
        let _ = writeln!(
            out,
            "{name} = {{ value = {value}, source = {source}{estimate} }}"
        );
    };
    let mut figure = |name: &str, f: &Figure<u64>| {
        put(name, f.value.to_string(), f.estimate, &f.source);
    };
    let wide = |f: &Figure<u32>| Figure {
        value: u64::from(f.value),
        estimate: f.estimate,
        source: f.source.clone(),
    };
    figure("cores", &wide(&profile.cores));
    figure("threads", &wide(&profile.threads));
    figure("page_size", &wide(&profile.page_bytes));
    figure("l1d", &profile.l1d_bytes);
    figure("l2", &profile.l2_bytes);
    if let Some(l3) = &profile.l3_bytes {
        figure("l3", l3);
    }
    figure("memory_latency_ns", &wide(&profile.memory_latency_ns));
    figure("prefetch_pages", &wide(&profile.prefetch_pages));
    figure("ram_total", &profile.ram_total_bytes);
    figure("ram_app", &profile.ram_app_bytes);
    for (name, unit, f) in [
        ("memory_gb_per_s", 1e9, &profile.memory_bytes_per_s),
        ("gmac_per_s", 1e9, &profile.macs_per_s),
        ("storage_mb_per_s", 1e6, &profile.storage_bytes_per_s),
        ("zstd_mb_per_s", 1e6, &profile.zstd_bytes_per_s),
    ] {
        let value = format!("{:?}", f.value as f64 / unit);
        put(name, value, f.estimate, &f.source);
    }
    out
}

/// A TOML basic string.
fn text(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::diagnostic::Source;
    use crate::target::{built_in, read_profiles};

    #[test]
    fn written_profiles_read_back() {
        for mut profile in built_in() {
            profile.description = "a \"quoted\" \\ \t text".to_owned();
            let toml = profile_toml(&profile, &["measured\nhere".to_owned()]);
            let source = Arc::new(Source::new("profile.toml", toml.clone()));
            let read = read_profiles(&source).unwrap_or_else(|e| panic!("{e:?}\n{toml}"));
            assert_eq!(read, [profile], "{toml}");
        }
    }
}
