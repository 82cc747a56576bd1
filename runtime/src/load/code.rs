//! The plan's code: mapped when it is trusted, made again where that is
//! possible, refused otherwise.

use omex_plan::Plan;
use omex_plan::file::SectionKind;

use super::{LoadOptions, PlanFile};
use crate::error::RunError;
use crate::exec::KeptCode;
use crate::os::memory::{Code, Region};

/// Entry points of a plan's kernels, and what keeps them alive.
pub(super) struct LoadedCode {
    pub(super) entries: Vec<Option<*const u8>>,
    pub(super) keep: Option<KeptCode>,
}

pub(super) fn load(
    file: &PlanFile<'_>,
    plan: &Plan,
    options: &LoadOptions,
) -> Result<LoadedCode, RunError> {
    let section = file.header.section(SectionKind::Code);
    let mut region = Region::zeroed(section.bytes as usize)
        .map_err(|e| RunError::Memory(format!("no memory for the plan's code: {e}")))?;
    file.read(SectionKind::Code, region.bytes_mut())?;
    file.verify(SectionKind::Code, region.bytes_mut())?;
    if plan.kernels.iter().all(|kernel| kernel.code.is_none()) {
        return Ok(LoadedCode {
            entries: vec![None; plan.kernels.len()],
            keep: None,
        });
    }
    let beside = || {
        let mut path = file.path.as_os_str().to_owned();
        path.push(".sig");
        path.into()
    };
    let signature = options.signature.clone().unwrap_or_else(beside);
    let trusted = match &options.trust {
        Some(store) => store.accepts(&file.header_bytes, &signature)?,
        None => false,
    };
    if !trusted {
        return generate(file, plan).ok_or_else(|| RunError::Untrusted {
            path: file.path.to_owned(),
        })?;
    }
    let mapping = Code::new(region).map_err(RunError::io("make the code executable", file.path))?;
    let entry = |range: omex_plan::CodeRange| mapping.address(range.offset as usize);
    Ok(LoadedCode {
        entries: plan.kernels.iter().map(|k| k.code.map(entry)).collect(),
        keep: Some(KeptCode::Mapped(mapping)),
    })
}

/// Code for the plan's kernels made on this machine, or `None` where this
/// build has no code generator.
#[cfg(feature = "jit")]
fn generate(file: &PlanFile<'_>, plan: &Plan) -> Option<Result<LoadedCode, RunError>> {
    let with_code = plan.kernels.iter().filter(|kernel| kernel.code.is_some());
    let specs: Vec<omex_kernels::KernelSpec> = with_code.map(|kernel| *kernel.spec()).collect();
    let refuse = |why: &dyn std::fmt::Display| RunError::Machine {
        path: file.path.to_owned(),
        what: format!("its code is not trusted and cannot be made again: {why}"),
    };
    let made = isa(&plan.target)
        .ok_or_else(|| refuse(&"there is no code generator for its architecture"))
        .and_then(|isa| {
            omex_codegen::jit::compile_all(&specs, &isa).map_err(|error| refuse(&error))
        });
    Some(made.map(|code| {
        let mut made = code.entries().iter().map(|&entry| entry as *const u8);
        let entry = |kernel: &omex_plan::Kernel| kernel.code.and_then(|_| made.next());
        LoadedCode {
            entries: plan.kernels.iter().map(entry).collect(),
            keep: Some(KeptCode::Made(Box::new(code))),
        }
    }))
}

/// Code for the plan's kernels made on this machine, or `None` where this
/// build has no code generator.
#[cfg(not(feature = "jit"))]
fn generate(_file: &PlanFile<'_>, _plan: &Plan) -> Option<Result<LoadedCode, RunError>> {
    None
}

/// What the plan's code was made for: code that is made again is the same, and
/// needs the memory that the plan states for it.
#[cfg(feature = "jit")]
fn isa(target: &omex_plan::Target) -> Option<omex_codegen::Isa> {
    use omex_codegen::{Arch, Feature, Isa};

    let mut archs = [Arch::X86_64, Arch::Aarch64].into_iter();
    let arch = archs.find(|arch| arch.name() == target.arch)?;
    let features = target.features.iter();
    Some(Isa {
        l2_bytes: target.l2_bytes,
        memory_bytes_per_s: target.memory_bytes_per_s,
        memory_latency_ns: target.memory_latency_ns,
        prefetch_pages: target.prefetch_pages,
        ..Isa::new(arch, features.filter_map(|name| Feature::from_name(name)))
    })
}

#[cfg(all(test, feature = "jit"))]
mod tests {
    /// The same target gives the same code.
    #[test]
    fn plans_state_all_that_their_code_is_made_for() {
        let mut with_code = 0;
        for profile in omex_compiler::target::built_in() {
            let Some(target) = profile.plan_target() else {
                continue;
            };
            assert_eq!(super::isa(&target), profile.isa(), "{}", profile.name);
            with_code += 1;
        }
        assert!(with_code > 1);
    }
}
