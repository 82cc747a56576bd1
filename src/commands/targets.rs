//! `omexc targets`, and the target of a build.

use clap::Args;
use omex_codegen::{Feature, Isa};
use omex_compiler::container::RamLimit;
use omex_compiler::diagnostic::{Code, Diagnostic, quoted};
use omex_plan::Target;
use omex_plan::file::Arch;

use super::output::{Failure, Output};

#[derive(Debug, Args)]
pub struct TargetsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A target as a build uses it.
pub struct Resolved {
    pub plan: Target,
    pub arch: Arch,
    /// What code may use; `None` where no code is generated.
    pub isa: Option<Isa>,
    pub cores: u32,
    pub limits: Vec<RamLimit>,
}

pub fn resolve(name: Option<&str>) -> Result<Resolved, Failure> {
    match name {
        None | Some("host") => host(),
        Some(other) => {
            let message = format!("there is no target {}", quoted(other));
            Err(Diagnostic::error(Code::TargetUnknown, message).into())
        }
    }
}

fn host() -> Result<Resolved, Failure> {
    let isa = Isa::host().expect("OMEX builds for x86-64 and aarch64 only");
    let arch = match isa.arch {
        omex_codegen::Arch::X86_64 => Arch::X86_64,
        omex_codegen::Arch::Aarch64 => Arch::Aarch64,
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut features: Vec<String> = isa.features.iter().map(Feature::name).map(String::from).collect();
    features.sort();
    Ok(Resolved {
        plan: Target {
            name: "host".to_owned(),
            arch: arch.name().to_owned(),
            features,
        },
        arch,
        isa: Some(isa),
        cores: u32::try_from(cores).unwrap_or(u32::MAX),
        limits: Vec::new(),
    })
}

pub fn targets(_args: &TargetsArgs, _output: &Output) -> Result<(), Failure> {
    Ok(())
}
