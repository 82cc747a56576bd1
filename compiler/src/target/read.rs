//! Profiles from TOML. A value that no device can have is refused.

use std::ops::RangeInclusive;
use std::sync::Arc;

use toml::de::DeValue;

use super::profile::{Arch, CpuFeature, Figure, Profile};
use crate::diagnostic::{Code, Diagnostic, Source, Span, Spanned, did_you_mean, quoted};
use crate::toml_fields::{
    Reader, Table, Value, as_amount, as_bool, as_number, as_string, as_table, parse,
};

const CORES_MAX: u64 = 4096;
const MIB: u64 = 1 << 20;
/// 64 TiB: above any machine, far below what overflows.
const RAM_BYTES_MAX: u64 = 1 << 46;
const CACHE_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 34;
const PAGE_SIZES: [u64; 3] = [4 << 10, 16 << 10, 64 << 10];
/// GB/s of 10^9 bytes.
const MEMORY_GB_PER_S: RangeInclusive<f64> = 0.01..=100_000.0;
const MEMORY_LATENCY_NS: RangeInclusive<u64> = 1..=1_000_000;
const PREFETCH_PAGES: RangeInclusive<u64> = 0..=omex_plan::PREFETCH_PAGES_MAX as u64;
/// MB/s of 10^6 bytes.
const ZSTD_MB_PER_S: RangeInclusive<f64> = 0.01..=1_000_000.0;
/// 10^9 per second.
const GMAC_PER_S: RangeInclusive<f64> = 0.001..=10_000_000.0;
const STORAGE_MB_PER_S: RangeInclusive<f64> = 0.01..=1_000_000.0;

/// The profiles of a file: one for each `[variants.NAME]`, else one.
///
/// # Errors
///
/// Everything that is wrong with the file.
pub fn read_profiles(source: &Arc<Source>) -> Result<Vec<Profile>, Vec<Diagnostic>> {
    let mut reader = Reader::new(source, Code::ProfileInvalid);
    let profiles = read_file(&mut reader);
    if reader.sink.has_errors() {
        return Err(reader.sink.into_vec());
    }
    Ok(profiles.expect("a file without errors gives profiles"))
}

fn read_file(reader: &mut Reader<'_>) -> Option<Vec<Profile>> {
    let root = parse(reader)?;
    let mut top = Table::new("the profile", root.get_ref(), Span::from_range(root.span()));
    let base = read_base(reader, &mut top);
    let profiles = match top.table(reader, "variants") {
        Some(variants) => read_variants(reader, &variants, base),
        None => {
            let ram = read_ram(reader, &mut top);
            base.zip(ram).map(|(base, ram)| vec![with_ram(base, ram)])
        }
    };
    top.finish(reader);
    profiles
}

fn read_variants(
    reader: &mut Reader<'_>,
    variants: &Table<'_, '_>,
    base: Option<Profile>,
) -> Option<Vec<Profile>> {
    let mut profiles = Vec::new();
    for (name, value) in variants.entries() {
        let Some(mut table) = as_table(reader, &name.value, value) else {
            continue;
        };
        let aliases = table.strings(reader, "aliases");
        let ram = read_ram(reader, &mut table);
        table.finish(reader);
        let (Some(base), Some(ram)) = (&base, ram) else {
            continue;
        };
        profiles.push(Profile {
            name: name.value,
            aliases: aliases
                .into_iter()
                .flatten()
                .map(|alias| alias.value)
                .collect(),
            ..with_ram(base.clone(), ram)
        });
    }
    if profiles.is_empty() && !reader.sink.has_errors() {
        reader.error("`variants` is empty", variants.span, "");
    }
    profiles.sort_by_key(|profile| profile.ram_total_bytes.value);
    Some(profiles)
}

struct Ram {
    total: Figure<u64>,
    app: Figure<u64>,
}

fn with_ram(base: Profile, ram: Ram) -> Profile {
    Profile {
        ram_total_bytes: ram.total,
        ram_app_bytes: ram.app,
        ..base
    }
}

fn read_ram(reader: &mut Reader<'_>, table: &mut Table<'_, '_>) -> Option<Ram> {
    let range = MIB..=RAM_BYTES_MAX;
    let total = amount(reader, table, "ram_total", range.clone());
    let app = amount(reader, table, "ram_app", range);
    let (total, app) = (total?, app?);
    if app.value.value > total.value.value {
        let message = "`ram_app` is more than `ram_total`";
        reader.error(message, app.span, "an app cannot have more than there is");
        return None;
    }
    Some(Ram {
        total: total.value,
        app: app.value,
    })
}

/// What most cores reach on weights; profiles need not say.
pub fn zstd_guess() -> Figure<u64> {
    Figure {
        value: 400_000_000,
        estimate: true,
        source: "not measured; a common value".to_owned(),
    }
}

/// What most cores reach beside such memory; profiles need not say. With it a token
/// beside another, in 4 bits and a half, costs about a quarter of the first.
pub fn macs_guess(memory_bytes_per_s: u64) -> Figure<u64> {
    Figure {
        value: memory_bytes_per_s.saturating_mul(14),
        estimate: true,
        source: "not measured; a common ratio to memory reads".to_owned(),
    }
}

/// What most memory takes; profiles need not say.
pub fn latency_guess() -> Figure<u32> {
    Figure {
        value: omex_codegen::isa::MEMORY_LATENCY_NS,
        estimate: true,
        source: "not measured; a common value".to_owned(),
    }
}

/// Most hardware goes on by itself; profiles need not say.
pub fn prefetch_guess() -> Figure<u32> {
    Figure {
        value: 0,
        estimate: true,
        source: "not measured; most hardware needs none".to_owned(),
    }
}

/// Everything but the RAM, which variants have of their own.
fn read_base(reader: &mut Reader<'_>, top: &mut Table<'_, '_>) -> Option<Profile> {
    let name = top
        .require(reader, "name")
        .and_then(|value| as_string(reader, "name", value));
    let aliases = top.strings(reader, "aliases");
    let description = top.string(reader, "description");
    let arch = read_arch(reader, top);
    let features = read_features(reader, top, arch);
    let cores = amount(reader, top, "cores", 1..=CORES_MAX);
    let threads = amount(reader, top, "threads", 1..=CORES_MAX);
    let page = read_page(reader, top);
    let l1d = amount(reader, top, "l1d", CACHE_BYTES);
    let l2 = amount(reader, top, "l2", CACHE_BYTES);
    let memory = rate(reader, top, "memory_gb_per_s", MEMORY_GB_PER_S, 1e9);
    let macs = optional_rate(reader, top, "gmac_per_s", GMAC_PER_S, 1e9);
    let storage = rate(reader, top, "storage_mb_per_s", STORAGE_MB_PER_S, 1e6);
    let zstd = optional_rate(reader, top, "zstd_mb_per_s", ZSTD_MB_PER_S, 1e6);
    let mut optional = |name, range| match top.get(name) {
        Some(_) => amount(reader, top, name, range).map(Some),
        None => Some(None),
    };
    let l3 = optional("l3", CACHE_BYTES);
    let latency = optional("memory_latency_ns", MEMORY_LATENCY_NS);
    let prefetch = optional("prefetch_pages", PREFETCH_PAGES);
    if let (Some(cores), Some(threads)) = (&cores, &threads)
        && threads.value.value > cores.value.value
    {
        reader.error(
            "`threads` is more than `cores`",
            threads.span,
            "threads beyond the cores only wait",
        );
    }
    let narrow = |figure: Spanned<Figure<u64>>| Figure {
        value: u32::try_from(figure.value.value).expect("the range fits 32 bits"),
        estimate: figure.value.estimate,
        source: figure.value.source,
    };
    let memory = memory?;
    let macs = macs?.unwrap_or_else(|| macs_guess(memory.value));
    let name = name?;
    if name.value.is_empty() || name.value.chars().any(char::is_control) {
        reader.error("`name` is empty or has control characters", name.span, "");
    }
    Some(Profile {
        name: name.value,
        aliases: aliases
            .into_iter()
            .flatten()
            .map(|alias| alias.value)
            .collect(),
        description: description.map(|text| text.value).unwrap_or_default(),
        arch: arch?,
        features: features?,
        cores: narrow(cores?),
        threads: narrow(threads?),
        page_bytes: narrow(page?),
        l1d_bytes: l1d?.value,
        l2_bytes: l2?.value,
        l3_bytes: l3?.map(|figure| figure.value),
        memory_bytes_per_s: memory,
        macs_per_s: macs,
        memory_latency_ns: latency?.map_or_else(latency_guess, narrow),
        prefetch_pages: prefetch?.map_or_else(prefetch_guess, narrow),
        storage_bytes_per_s: storage?,
        zstd_bytes_per_s: zstd?.unwrap_or_else(zstd_guess),
        ram_total_bytes: Figure::known(0, ""),
        ram_app_bytes: Figure::known(0, ""),
    })
}

fn read_arch(reader: &mut Reader<'_>, top: &mut Table<'_, '_>) -> Option<Arch> {
    let value = top.require(reader, "arch")?;
    let text = as_string(reader, "arch", value)?;
    let arch = Arch::from_name(&text.value);
    if arch.is_none() {
        let names = Arch::ALL.iter().map(|arch| arch.name());
        unknown(reader, "architecture", &text, names);
    }
    arch
}

fn read_features(
    reader: &mut Reader<'_>,
    top: &mut Table<'_, '_>,
    arch: Option<Arch>,
) -> Option<Vec<CpuFeature>> {
    top.require(reader, "features")?;
    let mut features = Vec::new();
    for text in top.strings(reader, "features")? {
        match CpuFeature::from_name(&text.value) {
            Some(feature) if arch.is_none_or(|arch| arch == feature.arch()) => {
                features.push(feature)
            }
            Some(feature) => {
                let message = format!("{} is a feature of {}", quoted(&text.value), feature.arch());
                reader.error(message, text.span, "not of this architecture");
            }
            None => {
                let names = CpuFeature::ALL
                    .iter()
                    .filter(|f| arch.is_none_or(|arch| arch == f.arch()));
                unknown(reader, "CPU feature", &text, names.map(|f| f.name()));
            }
        }
    }
    features.sort_unstable();
    features.dedup();
    Some(features)
}

fn unknown(
    reader: &mut Reader<'_>,
    what: &str,
    text: &Spanned<String>,
    names: impl Iterator<Item = &'static str> + Clone,
) {
    let help = match did_you_mean(&text.value, names.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it is one of: {}", names.collect::<Vec<_>>().join(", ")),
    };
    reader.sink.push(
        Diagnostic::error(
            reader.code,
            format!("the {what} {} is not known", quoted(&text.value)),
        )
        .at(reader.source, text.span, "")
        .help(help),
    );
}

fn read_page(reader: &mut Reader<'_>, top: &mut Table<'_, '_>) -> Option<Spanned<Figure<u64>>> {
    let page = amount(reader, top, "page_size", 1..=u64::MAX)?;
    if !PAGE_SIZES.contains(&page.value.value) {
        reader.error(
            "`page_size` must be 4, 16 or 64 KiB",
            page.span,
            "no kernel has this",
        );
        return None;
    }
    Some(page)
}

/// The value of a figure: bare, or in `{value, source, estimate}`.
fn figure<'t, 's>(
    reader: &mut Reader<'_>,
    table: &mut Table<'t, 's>,
    name: &'static str,
) -> Option<(Value<'t, 's>, bool, String)> {
    let value = table.require(reader, name)?;
    if !matches!(value.value, DeValue::Table(_)) {
        return Some((value, false, String::new()));
    }
    let mut inner = as_table(reader, name, value)?;
    let estimate = inner
        .get("estimate")
        .and_then(|value| as_bool(reader, "estimate", value));
    let source = inner.string(reader, "source");
    let value = inner.require(reader, "value");
    inner.finish(reader);
    Some((
        value?,
        estimate.unwrap_or(false),
        source.map(|text| text.value).unwrap_or_default(),
    ))
}

fn amount(
    reader: &mut Reader<'_>,
    table: &mut Table<'_, '_>,
    name: &'static str,
    range: RangeInclusive<u64>,
) -> Option<Spanned<Figure<u64>>> {
    let (value, estimate, source) = figure(reader, table, name)?;
    let span = value.span;
    let value = as_amount(reader, name, value, range)?;
    Some(Spanned::new(
        Figure {
            value,
            estimate,
            source,
        },
        span,
    ))
}

/// A rate, in bytes per second.
fn rate(
    reader: &mut Reader<'_>,
    table: &mut Table<'_, '_>,
    name: &'static str,
    range: RangeInclusive<f64>,
    unit: f64,
) -> Option<Figure<u64>> {
    let (value, estimate, source) = figure(reader, table, name)?;
    let value = as_number(reader, name, value, range)?;
    // In range, so the product fits.
    Some(Figure {
        value: (value * unit).round() as u64,
        estimate,
        source,
    })
}

/// A rate that profiles need not state; `None` for one that is wrong.
fn optional_rate(
    reader: &mut Reader<'_>,
    table: &mut Table<'_, '_>,
    name: &'static str,
    range: RangeInclusive<f64>,
    unit: f64,
) -> Option<Option<Figure<u64>>> {
    match table.get(name) {
        Some(_) => rate(reader, table, name, range, unit).map(Some),
        None => Some(None),
    }
}
