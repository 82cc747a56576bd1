//! The wide back end: x86-64 at 256 bits (AVX2 and later) and 512 bits (AVX-512),
//! encoded with iced-x86. The tests compute all levels in emulation, and those that
//! the CPU at hand has on it.
//!
//! - `level`: the instruction sets that code differs for,
//! - `asm`: instructions, registers and constants,
//! - `frame`: the function, the loops over panels and columns, the epilogue,
//! - `codes`: quantized codes from their bit planes,
//! - `scales`: block headers,
//! - `products`: integer products by AMX,
//! - `quantized`, `float`: the two kinds of matmul,
//! - `block`: one 32-block of a quantized one.

mod asm;
mod block;
mod codes;
mod float;
mod frame;
mod level;
mod products;
mod quantized;
mod scales;

use crate::{CodeBlob, Feature, Isa, KernelShape, Unsupported};
use asm::Asm;
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction};
use level::Level;
use omex_kernels::KernelSpec;
use omex_kernels::format::Descriptor;
use std::fmt::Write;

/// A level that kernels are generated for.
pub(crate) struct Target {
    level: Level,
    isa: Isa,
}

impl Target {
    pub(crate) fn new(isa: &Isa) -> Result<Target, Unsupported> {
        let level = Level::of(isa).ok_or(Unsupported::NeedsFeature(Feature::Avx2))?;
        Ok(Target { level, isa: *isa })
    }

    fn frame(&self, spec: &KernelSpec) -> Result<frame::Frame<'_>, Unsupported> {
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
        Ok(frame::Frame::new(
            format, rows, k, bias, residual, &self.isa,
        ))
    }

    fn code(&self, spec: &KernelSpec) -> Result<Vec<u8>, Unsupported> {
        let frame = self.frame(spec)?;
        let mut a = Asm::new(self.level);
        match frame.format.descriptor() {
            Descriptor::Float { .. } => float::build(&mut a, &frame),
            Descriptor::Quantized(q) => quantized::build(&mut a, &frame, &q),
        }
        Ok(a.finish())
    }
}

impl crate::Target for Target {
    fn compile(&self, spec: &KernelSpec) -> Result<CodeBlob, Unsupported> {
        Ok(CodeBlob {
            code: self.code(spec)?,
            align: 64,
            required_features: self.level.features(),
        })
    }

    fn shape(&self, spec: &KernelSpec) -> Result<KernelShape, Unsupported> {
        let frame = self.frame(spec)?;
        Ok(match frame.format.descriptor() {
            Descriptor::Float { .. } => float::shape(&frame, self.level),
            Descriptor::Quantized(q) => quantized::shape(&frame, &q, self.level),
        })
    }

    /// One line per instruction with its offset, up to the return.
    fn asm_text(&self, spec: &KernelSpec) -> Result<String, Unsupported> {
        let code = self.code(spec)?;
        let mut decoder = Decoder::new(64, &code, DecoderOptions::NONE);
        let mut formatter = GasFormatter::new();
        let mut text = String::new();
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            // Writing to a string cannot fail.
            let _ = write!(text, "{:6x}  ", instruction.ip());
            formatter.format(&instruction, &mut text);
            text.push('\n');
            if instruction.is_invalid() || instruction.code() == iced_x86::Code::Retnq {
                break;
            }
        }
        Ok(text)
    }
}
