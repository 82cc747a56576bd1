//! The cranelift back end: 128-bit vectors on x86-64 and aarch64.
//!
//! A kernel is one function built in the order in which it is to execute:
//! - `emit`: instructions and loops,
//! - `codes`: quantized codes from their bit planes,
//! - `scales`: block headers to f32 scale tables,
//! - `dot`: int8 dot products per instruction set,
//! - `quantized`, `float`: the two kinds of matmul,
//! - `frame`: the loops over panels and columns that both share.

mod codes;
mod dot;
mod emit;
mod float;
mod frame;
mod quantized;
mod scales;

use crate::{Arch, CodeBlob, Feature, Isa, KernelShape, Unsupported};
use cranelift_codegen::ir::{AbiParam, Function, Signature, UserFuncName, types};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::{CompiledCode, Context, control::ControlPlane};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use emit::Emit;
use omex_kernels::KernelSpec;
use omex_kernels::format::Descriptor;

/// A cranelift target for an `Isa` that kernels can be generated for.
pub(crate) struct Target {
    isa: Isa,
    cranelift: OwnedTargetIsa,
}

impl Target {
    pub(crate) fn new(isa: &Isa) -> Result<Target, Unsupported> {
        if isa.arch == Arch::X86_64 {
            for feature in [Feature::Ssse3, Feature::Sse41] {
                if !isa.has(feature) {
                    return Err(Unsupported::NeedsFeature(feature));
                }
            }
        }
        let cranelift = isa.cranelift();
        Ok(Target {
            isa: *isa,
            cranelift,
        })
    }

    /// The kernel's signature: one pointer, nothing back.
    fn signature(&self) -> Signature {
        let mut signature = Signature::new(self.cranelift.default_call_conv());
        signature.params.push(AbiParam::new(types::I64));
        signature
    }

    fn frame(&self, spec: &KernelSpec) -> Result<frame::Frame, Unsupported> {
        spec.validate().map_err(Unsupported::Invalid)?;
        let KernelSpec::Matmul {
            format,
            rows,
            k,
            bias,
            residual,
        } = *spec
        else {
            return Err(Unsupported::Operation);
        };
        Ok(frame::Frame::new(format, rows, k, bias, residual))
    }

    /// Builds the function of a kernel.
    fn function(&self, spec: &KernelSpec) -> Result<Function, Unsupported> {
        let frame = self.frame(spec)?;
        let mut function = Function::with_name_signature(UserFuncName::default(), self.signature());
        let mut context = FunctionBuilderContext::new();
        let mut e = Emit::new(
            FunctionBuilder::new(&mut function, &mut context),
            self.isa.arch,
        );
        match frame.format.descriptor() {
            Descriptor::Float { .. } => float::build(&mut e, &frame),
            Descriptor::Quantized(q) => quantized::build(&mut e, &frame, &q, &self.isa),
        }
        e.finish(self.cranelift.frontend_config());
        Ok(function)
    }

    fn compile_function(
        &self,
        spec: &KernelSpec,
        disasm: bool,
    ) -> Result<CompiledCode, Unsupported> {
        let mut context = Context::for_function(self.function(spec)?);
        context.set_disasm(disasm);
        let compiled = context
            .compile(&*self.cranelift, &mut ControlPlane::default())
            .unwrap_or_else(|e| panic!("cranelift failed on {spec:?}: {:?}", e.inner));
        let relocations = compiled.buffer.relocs();
        assert!(
            relocations.is_empty(),
            "{spec:?} has relocations: {relocations:?}"
        );
        Ok(context.take_compiled_code().expect("compiled above"))
    }

    pub(crate) fn clif_text(&self, spec: &KernelSpec) -> Result<String, Unsupported> {
        Ok(self.function(spec)?.display().to_string())
    }
}

impl crate::Target for Target {
    fn compile(&self, spec: &KernelSpec) -> Result<CodeBlob, Unsupported> {
        let compiled = self.compile_function(spec, false)?;
        Ok(CodeBlob {
            code: compiled.buffer.data().to_vec(),
            align: compiled.buffer.alignment.max(64),
            required_features: self.isa.features,
        })
    }

    fn shape(&self, spec: &KernelSpec) -> Result<KernelShape, Unsupported> {
        let frame = self.frame(spec)?;
        Ok(match frame.format.descriptor() {
            Descriptor::Float { .. } => float::shape(),
            Descriptor::Quantized(q) => quantized::shape(&frame, &q, &self.isa),
        })
    }

    fn asm_text(&self, spec: &KernelSpec) -> Result<String, Unsupported> {
        let compiled = self.compile_function(spec, true)?;
        Ok(compiled.vcode.expect("a disassembly was asked for"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omex_kernels::WeightFormat;

    /// Cranelift's own verifier accepts every function; it is off in `compile`.
    #[test]
    fn functions_verify() {
        let features = |names: &[Feature]| names.to_vec();
        let isas = [
            Isa::new(Arch::X86_64, features(&[Feature::Ssse3, Feature::Sse41])),
            Isa::new(Arch::X86_64, Feature::ALL.to_vec()),
            Isa::new(Arch::Aarch64, features(&[])),
            Isa::new(Arch::Aarch64, features(&[Feature::Dotprod])),
        ];
        for isa in isas {
            let target = Target::new(&isa).unwrap();
            for format in WeightFormat::ALL {
                let spec = KernelSpec::Matmul {
                    format,
                    rows: 40,
                    k: 768,
                    bias: true,
                    residual: true,
                };
                let function = target.function(&spec).unwrap();
                cranelift_codegen::verify_function(&function, &*target.cranelift)
                    .unwrap_or_else(|e| panic!("{}: {e}", format.name()));
            }
        }
    }
}
