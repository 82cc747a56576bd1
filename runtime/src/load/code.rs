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
    let made = omex_codegen::jit::compile_all(&specs).map_err(|e| RunError::Machine {
        path: file.path.to_owned(),
        what: format!("its code is not trusted and cannot be made again: {e}"),
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
