//! The wide back end's code at all levels, those included that this CPU cannot
//! execute: every instruction decodes, needs no feature beyond the level's, and
//! the composition is a committed table.

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic};
use omex_codegen::{Arch, BackEnd, Feature, Isa, asm_text, compile};
use omex_kernels::{KernelSpec, WeightFormat};
use std::fmt::Write;

/// Levels by name, least first.
fn levels() -> [(&'static str, Isa); 6] {
    use Feature::*;
    let with = |more: &[Feature]| {
        let all = [Ssse3, Sse41, Sse42, Avx, Avx2, F16c].iter().chain(more);
        Isa::new(Arch::X86_64, all.copied())
    };
    [
        ("avx2", with(&[])),
        ("avx-vnni", with(&[AvxVnni])),
        ("avx512vl-vnni", with(&[Avx512F, Avx512Vl, Avx512Vnni])),
        ("avx512bw", with(&[Avx512F, Avx512Bw, Avx512Vl])),
        (
            "avx512bw-vnni",
            with(&[Avx512F, Avx512Bw, Avx512Vl, Avx512Vnni]),
        ),
        (
            "amx",
            with(&[Avx512F, Avx512Bw, Avx512Vl, Avx512Vnni, AmxInt8]),
        ),
    ]
}

fn spec(format: WeightFormat) -> KernelSpec {
    KernelSpec::Matmul {
        format,
        rows: 1536,
        k: 1792,
        bias: true,
        residual: true,
    }
}

/// The instructions up to the return.
fn instructions(code: &[u8]) -> Vec<Instruction> {
    let mut all = Vec::new();
    for instruction in &mut Decoder::new(64, code, DecoderOptions::NONE) {
        assert!(!instruction.is_invalid(), "at {:#x}", instruction.ip());
        all.push(instruction);
        if instruction.code() == Code::Retnq {
            return all;
        }
    }
    panic!("no return");
}

/// The feature behind a CPUID bit; `None` for what every x86-64 CPU has.
fn feature(cpuid: CpuidFeature) -> Option<Feature> {
    Some(match cpuid {
        CpuidFeature::INTEL8086
        | CpuidFeature::INTEL386
        | CpuidFeature::INTEL186
        | CpuidFeature::CMOV
        | CpuidFeature::SSE
        | CpuidFeature::X64 => return None,
        CpuidFeature::AVX => Feature::Avx,
        CpuidFeature::AVX2 => Feature::Avx2,
        CpuidFeature::F16C => Feature::F16c,
        CpuidFeature::AVX_VNNI => Feature::AvxVnni,
        CpuidFeature::AVX512F => Feature::Avx512F,
        CpuidFeature::AVX512BW => Feature::Avx512Bw,
        CpuidFeature::AVX512VL => Feature::Avx512Vl,
        CpuidFeature::AVX512_VNNI => Feature::Avx512Vnni,
        CpuidFeature::AMX_TILE | CpuidFeature::AMX_INT8 => Feature::AmxInt8,
        other => panic!("instructions of {other:?}"),
    })
}

#[test]
fn instructions_need_no_more_than_the_level() {
    for (name, isa) in levels() {
        assert_eq!(BackEnd::for_isa(&isa), BackEnd::Wide, "{name}");
        for format in WeightFormat::ALL {
            let blob = compile(&spec(format), &isa).unwrap();
            let missing = blob.required_features.without(isa.features);
            assert!(missing.is_empty(), "{name} lacks what it requires");
            for instruction in instructions(&blob.code) {
                for feature in instruction.cpuid_features() {
                    let known = feature.to_owned();
                    assert!(
                        self::feature(known).is_none_or(|f| blob.required_features.has(f)),
                        "{} at {name}: {instruction} needs {known:?}",
                        format.name(),
                    );
                }
            }
        }
    }
}

#[test]
fn levels_without_avx2_or_f16c_belong_to_cranelift() {
    use Feature::*;
    for features in [vec![Ssse3, Sse41], vec![Ssse3, Sse41, Avx, Avx2]] {
        let isa = Isa::new(Arch::X86_64, features);
        assert_eq!(BackEnd::for_isa(&isa), BackEnd::Cranelift);
    }
    let arm = Isa::new(Arch::Aarch64, [Dotprod]);
    assert_eq!(BackEnd::for_isa(&arm), BackEnd::Cranelift);
}

#[test]
fn composition() {
    let mut table = format!(
        "{:8} {:14} {:>6} {:>12} {:>6} {:>6} {:>6}\n",
        "format", "level", "bytes", "instructions", "dots", "loads", "stores"
    );
    for format in WeightFormat::ALL {
        for (name, isa) in levels() {
            let blob = compile(&spec(format), &isa).unwrap();
            let all = instructions(&blob.code);
            let count = |of: &[Mnemonic]| all.iter().filter(|i| of.contains(&i.mnemonic())).count();
            let dots = count(&[Mnemonic::Vpdpbusd, Mnemonic::Vpmaddubsw]);
            let loads = count(&[Mnemonic::Vpbroadcastd, Mnemonic::Vpbroadcastq]);
            let stores = all
                .iter()
                .filter(|i| {
                    i.mnemonic() == Mnemonic::Vmovups && i.op0_kind() == iced_x86::OpKind::Memory
                })
                .count();
            writeln!(
                table,
                "{:8} {name:14} {:6} {:12} {dots:6} {loads:6} {stores:6}",
                format.name(),
                blob.code.len(),
                all.len(),
            )
            .unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

/// The text of a whole kernel, and that the same spec gives the same bytes.
#[test]
fn text() {
    let (_, isa) = levels()[4];
    let spec = KernelSpec::Matmul {
        format: WeightFormat::F16,
        rows: 16,
        k: 8,
        bias: true,
        residual: false,
    };
    assert_eq!(compile(&spec, &isa), compile(&spec, &isa));
    insta::assert_snapshot!(asm_text(&spec, &isa).unwrap());
}
