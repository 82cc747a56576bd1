//! Machine code for kernels: `KernelSpec` and `Isa` in, `CodeBlob` out.
//!
//! [`compile`] makes position-independent code without relocations for any
//! target on any host. Its results equal those of `omex_kernels::reference` bit
//! for bit. With the feature `jit`, [`jit::compile_all`] makes the same code
//! executable in this process.

mod clif;
pub mod isa;
#[cfg(feature = "jit")]
pub mod jit;

pub use isa::{Arch, Feature, Features, Isa};
use omex_kernels::KernelSpec;
use std::fmt;

/// The code of one kernel: `extern "C" fn(*const MatmulArgs)` at offset 0,
/// constants behind it, no relocations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeBlob {
    pub code: Vec<u8>,
    /// Alignment in bytes that the first byte needs, a power of two.
    pub align: u32,
    /// What a CPU must have to execute it.
    pub required_features: Features,
}

/// Why there is no code for a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The runtime executes this operation itself.
    Operation,
    /// The architecture's lowest level that kernels are generated for.
    NeedsFeature(Feature),
    /// The specification breaks a rule of `KernelSpec::validate`.
    Invalid(&'static str),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::Operation => f.write_str("no code is generated for this operation"),
            Unsupported::NeedsFeature(feature) => {
                write!(f, "generated code needs a CPU with {}", feature.name())
            }
            Unsupported::Invalid(rule) => f.write_str(rule),
        }
    }
}

impl std::error::Error for Unsupported {}

/// Generates the code of `spec` for `isa`.
///
/// Errors: the kernel is not a matmul, breaks a rule of `validate`, or `isa` is
/// below the baseline (SSE4.1 on x86-64).
pub fn compile(spec: &KernelSpec, isa: &Isa) -> Result<CodeBlob, Unsupported> {
    clif::Target::new(isa)?.compile(spec)
}

/// Generates several kernels for one target, sharing its set-up.
pub fn compile_all(specs: &[KernelSpec], isa: &Isa) -> Result<Vec<CodeBlob>, Unsupported> {
    let target = clif::Target::new(isa)?;
    specs.iter().map(|spec| target.compile(spec)).collect()
}

/// The kernel in cranelift's intermediate representation.
pub fn clif_text(spec: &KernelSpec, isa: &Isa) -> Result<String, Unsupported> {
    clif::Target::new(isa)?.clif_text(spec)
}

/// The kernel in cranelift's disassembly: one line per instruction, blocks labelled.
pub fn asm_text(spec: &KernelSpec, isa: &Isa) -> Result<String, Unsupported> {
    clif::Target::new(isa)?.asm_text(spec)
}
