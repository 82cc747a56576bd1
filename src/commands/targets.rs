//! `omexc targets`, and the target of a build.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use omex_codegen::{Feature, Isa};
use omex_compiler::container::{RamLimit, RamOrigin};
use omex_compiler::diagnostic::{Code, Diagnostic, Source, quoted};
use omex_compiler::target::{self, CpuFeature, Figure, HOST, Profile};
use omex_plan::Target;
use omex_plan::file;
use omex_runtime::memory::Device;

use super::output::{Failure, Output};

#[derive(Debug, Args)]
pub struct TargetsArgs {
    /// Print one JSON object, with the source of each figure
    #[arg(long)]
    json: bool,
}

/// A target as a build uses it.
#[derive(Debug)]
pub struct Resolved {
    pub plan: Target,
    pub arch: file::Arch,
    /// What code may use, and what it is shaped for.
    pub isa: Isa,
    pub device: Device,
    pub storage_bytes_per_s: u64,
    pub memory_bytes_per_s: u64,
    /// 8-bit multiply-adds of all cores.
    pub macs_per_s: u64,
    /// Of all cores.
    pub zstd_bytes_per_s: u64,
    pub limits: Vec<RamLimit>,
}

/// Prints the profiles, this machine first.
pub fn targets(args: &TargetsArgs, _output: &Output) -> Result<(), Failure> {
    let mut profiles = vec![host()];
    profiles.extend(target::built_in());
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", target::list_json(&profiles))?;
    } else {
        write!(stdout, "{}", target::list_text(&profiles))?;
    }
    Ok(())
}

/// The target with this name, or of this file (`.toml`); none is the host.
pub fn resolve(name: Option<&str>) -> Result<Resolved, Failure> {
    let profile = match name {
        None => host(),
        Some(HOST) => host(),
        Some(path) if path.ends_with(".toml") => from_file(Path::new(path))?,
        Some(name) => target::find_or_explain(name)?,
    };
    let (Some(isa), Some(plan)) = (profile.isa(), profile.plan_target()) else {
        let message = format!("plans for {} are not built yet", profile.arch.name());
        return Err(Diagnostic::error(Code::NotSupported, message)
            .help("`omexc targets` lists the others")
            .into());
    };
    let arch = match isa.arch {
        omex_codegen::Arch::X86_64 => file::Arch::X86_64,
        omex_codegen::Arch::Aarch64 => file::Arch::Aarch64,
    };
    Ok(Resolved {
        plan,
        arch,
        isa,
        device: Device {
            cores: profile.cores.value,
            page_bytes: profile.page_bytes.value,
        },
        storage_bytes_per_s: profile.storage_bytes_per_s.value,
        memory_bytes_per_s: profile.memory_bytes_per_s.value,
        macs_per_s: profile.macs_per_s.value,
        zstd_bytes_per_s: profile.zstd_bytes_per_s.value * u64::from(profile.cores.value),
        limits: vec![RamLimit {
            bytes: profile.ram_app_bytes.value,
            origin: RamOrigin::Target,
        }],
    })
}

fn from_file(path: &Path) -> Result<Profile, Failure> {
    let name = path.to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).map_err(|e| {
        let message = format!("the profile cannot be read: {e}");
        Diagnostic::error(Code::FileRead, message).in_file(&name, None)
    })?;
    let source = Arc::new(Source::new(&name, text));
    let mut profiles = target::read_profiles(&source)?;
    if profiles.is_empty() {
        let message = format!("{} holds no profile", quoted(&name));
        return Err(Diagnostic::error(Code::ProfileInvalid, message).into());
    }
    Ok(profiles.swap_remove(0))
}

/// Memory reads of a machine that was not measured.
const MEMORY_BYTES_PER_S: u64 = 20_000_000_000;

/// This machine, as far as it tells without measuring.
pub fn host() -> Profile {
    let isa = Isa::host().expect("OMEX builds for x86-64 and aarch64 only");
    let arch = match isa.arch {
        omex_codegen::Arch::X86_64 => target::Arch::X86_64,
        omex_codegen::Arch::Aarch64 => target::Arch::Aarch64,
    };
    let features = isa.features.iter().map(Feature::name);
    let features: Vec<CpuFeature> = features.filter_map(CpuFeature::from_name).collect();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let guess = |value: u64| Figure {
        value,
        estimate: true,
        source: "not measured; a common value".to_owned(),
    };
    let ram = ram_total_bytes();
    let mut profile = Profile {
        name: HOST.to_owned(),
        aliases: Vec::new(),
        description: "this machine".to_owned(),
        arch,
        features,
        cores: Figure::known(cores, "the scheduler's affinity mask"),
        threads: Figure::known(cores, "the scheduler's affinity mask"),
        page_bytes: Figure::known(rustix::param::page_size() as u32, "sysconf"),
        l1d_bytes: guess(32 << 10),
        l2_bytes: guess(1 << 20),
        l3_bytes: None,
        memory_bytes_per_s: guess(MEMORY_BYTES_PER_S),
        macs_per_s: target::macs_guess(MEMORY_BYTES_PER_S),
        memory_latency_ns: target::latency_guess(),
        prefetch_pages: match isa.prefetch_pages {
            0 => target::prefetch_guess(),
            pages => Figure {
                value: pages,
                estimate: true,
                source: "not measured; Intel's prefetchers end with a page".to_owned(),
            },
        },
        storage_bytes_per_s: guess(1_000_000_000),
        zstd_bytes_per_s: target::zstd_guess(),
        ram_total_bytes: Figure::known(ram, "/proc/meminfo"),
        ram_app_bytes: Figure::known(ram, "/proc/meminfo"),
    };
    read_caches(&mut profile);
    profile
}

/// MemTotal; without it nothing is known, and nothing limits.
fn ram_total_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib << 10)
}

/// The first core's caches, where the system tells.
fn read_caches(profile: &mut Profile) {
    let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
    for index in 0..8 {
        let read = |name: &str| {
            let path = folder.join(format!("index{index}")).join(name);
            std::fs::read_to_string(path).ok()
        };
        let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size"))
        else {
            continue;
        };
        let kib = size
            .trim()
            .strip_suffix('K')
            .and_then(|n| n.parse::<u64>().ok());
        let Some(bytes) = kib.map(|kib| kib << 10).filter(|bytes| *bytes > 0) else {
            continue;
        };
        let figure = Figure::known(bytes, "sysfs, of the first core");
        match (level.trim(), kind.trim()) {
            ("1", "Data" | "Unified") => profile.l1d_bytes = figure,
            ("2", _) => profile.l2_bytes = figure,
            ("3", _) => profile.l3_bytes = Some(figure),
            _ => {}
        }
    }
}
