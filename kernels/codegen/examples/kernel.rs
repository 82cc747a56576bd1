//! Writes a matmul of 1536 rows to standard output, as CLIF, as assembly or as
//! the raw code of the plan: `kernel FORMAT clif|asm|code [K [ARCH [FEATURE...]]]`.
//! Without an architecture it is for this CPU.

use omex_codegen::{Arch, Feature, Isa, asm_text, clif_text, compile};
use omex_kernels::{KernelSpec, WeightFormat};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [format, form, rest @ ..] = arguments.as_slice() else {
        return Err("usage: kernel FORMAT clif|asm|code [K [ARCH [FEATURE...]]]".into());
    };
    let (k, isa) = match rest {
        [] => (None, None),
        [k] => (Some(k), None),
        [k, arch, features @ ..] => (Some(k), Some(isa(arch, features)?)),
    };
    let isa = isa
        .or_else(Isa::host)
        .ok_or("no back end has this CPU's architecture")?;
    let spec = KernelSpec::Matmul {
        format: WeightFormat::from_name(format).ok_or("unknown format")?,
        rows: 1536,
        k: k.map_or(Ok(2048), |k| k.parse())?,
        bias: false,
        residual: false,
    };
    let out = match *form {
        "clif" => clif_text(&spec, &isa)?.into_bytes(),
        "asm" => asm_text(&spec, &isa)?.into_bytes(),
        "code" => compile(&spec, &isa)?.code,
        _ => return Err("the form is clif, asm or code".into()),
    };
    std::io::stdout().write_all(&out)?;
    Ok(())
}

fn isa(arch: &str, features: &[&str]) -> Result<Isa, String> {
    let arch = [Arch::X86_64, Arch::Aarch64]
        .into_iter()
        .find(|a| a.name() == arch)
        .ok_or_else(|| format!("unknown architecture {arch}"))?;
    let features: Result<Vec<_>, _> = features
        .iter()
        .map(|name| Feature::from_name(name).ok_or_else(|| format!("unknown feature {name}")))
        .collect();
    Ok(Isa::new(arch, features?))
}
