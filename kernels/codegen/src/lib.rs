//! Machine code for kernels: `KernelSpec` and `Isa` in, `CodeBlob` out.
//!
//! [`compile`] makes position-independent code without relocations for any
//! target on any host. Its results equal those of `omex_kernels::reference` bit
//! for bit. With the feature `jit`, [`jit::compile_all`] makes the same code
//! executable in this process.

pub mod ceiling;
mod clif;
mod cost;
pub mod isa;
#[cfg(feature = "jit")]
pub mod jit;
mod wide;

pub use cost::KernelShape;
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

/// What makes code from kernel specifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackEnd {
    /// 128-bit vectors on every architecture.
    Cranelift,
    /// 256 and 512 bits on x86-64.
    Wide,
}

/// A back end, set up for an instruction set.
trait Target {
    fn compile(&self, spec: &KernelSpec) -> Result<CodeBlob, Unsupported>;
    fn asm_text(&self, spec: &KernelSpec) -> Result<String, Unsupported>;
    fn shape(&self, spec: &KernelSpec) -> Result<KernelShape, Unsupported>;
}

impl BackEnd {
    pub const ALL: [BackEnd; 2] = [BackEnd::Cranelift, BackEnd::Wide];

    pub const fn name(self) -> &'static str {
        match self {
            BackEnd::Cranelift => "cranelift",
            BackEnd::Wide => "wide",
        }
    }

    /// The one with the widest vectors of `isa`.
    pub fn for_isa(isa: &Isa) -> BackEnd {
        match wide::Target::new(isa) {
            Ok(_) => BackEnd::Wide,
            Err(_) => BackEnd::Cranelift,
        }
    }

    fn target(self, isa: &Isa) -> Result<Box<dyn Target>, Unsupported> {
        Ok(match self {
            BackEnd::Cranelift => Box::new(clif::Target::new(isa)?),
            BackEnd::Wide => Box::new(wide::Target::new(isa)?),
        })
    }

    /// As [`compile`], with this back end.
    pub fn compile(self, spec: &KernelSpec, isa: &Isa) -> Result<CodeBlob, Unsupported> {
        self.target(isa)?.compile(spec)
    }

    /// As [`asm_text`], with this back end.
    pub fn asm_text(self, spec: &KernelSpec, isa: &Isa) -> Result<String, Unsupported> {
        self.target(isa)?.asm_text(spec)
    }
}

/// Generates the code of `spec` for `isa`, with the back end that has the widest
/// vectors for it.
///
/// Errors: the kernel is not a matmul, breaks a rule of `validate`, or `isa` is
/// below the baseline (SSE4.1 on x86-64).
pub fn compile(spec: &KernelSpec, isa: &Isa) -> Result<CodeBlob, Unsupported> {
    BackEnd::for_isa(isa).compile(spec, isa)
}

/// Generates several kernels for one target, sharing its set-up.
pub fn compile_all(specs: &[KernelSpec], isa: &Isa) -> Result<Vec<CodeBlob>, Unsupported> {
    let target = BackEnd::for_isa(isa).target(isa)?;
    specs.iter().map(|spec| target.compile(spec)).collect()
}

/// The instructions that [`compile`] makes, one per line.
pub fn asm_text(spec: &KernelSpec, isa: &Isa) -> Result<String, Unsupported> {
    BackEnd::for_isa(isa).asm_text(spec, isa)
}

/// What the cost model chose for [`compile`] to make.
pub fn shape(spec: &KernelSpec, isa: &Isa) -> Result<KernelShape, Unsupported> {
    BackEnd::for_isa(isa).target(isa)?.shape(spec)
}

/// The kernel in cranelift's intermediate representation, which only that back
/// end has.
pub fn clif_text(spec: &KernelSpec, isa: &Isa) -> Result<String, Unsupported> {
    clif::Target::new(isa)?.clif_text(spec)
}
