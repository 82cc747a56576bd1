//! Prints the CLIF or the assembly of a matmul: `kernel_text FORMAT asm|clif [rows k] [feature...]`.
//! Without features it is for this CPU.

use omex_codegen::{Feature, Isa, asm_text, clif_text};
use omex_kernels::{KernelSpec, WeightFormat};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let format = args
        .first()
        .and_then(|n| WeightFormat::from_name(n))
        .ok_or("a weight format")?;
    let features: Vec<Feature> = args[1..]
        .iter()
        .filter_map(|n| Feature::from_name(n))
        .collect();
    let host = Isa::host().ok_or("an architecture with a back end")?;
    let isa = match features.first() {
        Some(first) => Isa::new(first.arch(), features.iter().copied()),
        None => host,
    };
    let spec = KernelSpec::Matmul {
        format,
        rows: 1536,
        k: 2048,
        bias: false,
        residual: false,
    };
    let text = match args.get(1).map(String::as_str) {
        Some("clif") => clif_text(&spec, &isa)?,
        _ => asm_text(&spec, &isa)?,
    };
    println!("{text}");
    Ok(())
}
