//! What the code of the cranelift back end is made of, as a committed table: a
//! rise of spills, a lost dot instruction or grown code shows in review.

use omex_codegen::{Arch, BackEnd, CodeBlob, Feature, Isa, Unsupported, clif_text};
use omex_kernels::{KernelSpec, WeightFormat};
use std::fmt::Write;

fn compile(spec: &KernelSpec, isa: &Isa) -> Result<CodeBlob, Unsupported> {
    BackEnd::Cranelift.compile(spec, isa)
}

fn asm_text(spec: &KernelSpec, isa: &Isa) -> Result<String, Unsupported> {
    BackEnd::Cranelift.asm_text(spec, isa)
}

fn levels() -> Vec<(&'static str, Isa)> {
    use Feature::*;
    let sse = [Ssse3, Sse41];
    let avx2 = [Ssse3, Sse41, Sse42, Avx, Avx2];
    let x86 = |features: &[Feature]| Isa::new(Arch::X86_64, features.iter().copied());
    let arm = |features: &[Feature]| Isa::new(Arch::Aarch64, features.iter().copied());
    vec![
        ("sse4.1", x86(&sse)),
        ("avx2", x86(&avx2)),
        ("avx-vnni", x86(&[&avx2[..], &[AvxVnni]].concat())),
        (
            "avx512-vnni",
            x86(&[&avx2[..], &[Avx512F, Avx512Bw, Avx512Vl, Avx512Vnni]].concat()),
        ),
        ("neon", arm(&[])),
        ("neon+dotprod", arm(&[Dotprod])),
    ]
}

fn spec(format: WeightFormat) -> KernelSpec {
    KernelSpec::Matmul {
        format,
        rows: 1536,
        k: 2048,
        bias: false,
        residual: false,
    }
}

/// Bytes of the frame that the kernel itself asked for; spills lie above.
fn frame_bytes(clif: &str) -> u64 {
    clif.lines()
        .filter_map(|line| line.split_once("explicit_slot "))
        .map(|(_, size)| {
            let size = size.split(',').next().unwrap().trim();
            size.parse::<u64>().unwrap().next_multiple_of(64)
        })
        .sum()
}

/// Vector registers moved to or from the spill area.
fn vector_spills(asm: &str, arch: Arch, frame: u64) -> usize {
    asm.lines()
        .filter(|line| match arch {
            Arch::X86_64 => line.contains("%xmm"),
            Arch::Aarch64 => {
                line.trim_start().starts_with("ldr q") || line.trim_start().starts_with("str q")
            }
        })
        .filter(|line| {
            let offset = match arch {
                Arch::X86_64 => number_after(line, "0x", 16),
                Arch::Aarch64 => number_after(line, "#", 10),
            };
            (line.contains("(%rsp)") || line.contains("[sp")) && offset >= frame
        })
        .count()
}

fn number_after(line: &str, prefix: &str, radix: u32) -> u64 {
    let digits = line.split_once(prefix).map_or("0", |(_, rest)| rest);
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    u64::from_str_radix(&digits[..end], radix).unwrap()
}

fn count(asm: &str, mnemonics: &[&str]) -> usize {
    asm.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| mnemonics.contains(word))
        .count()
}

#[test]
fn composition() {
    let mut table = format!(
        "{:8} {:13} {:>6} {:>6} {:>6}\n",
        "format", "isa", "bytes", "dots", "spills"
    );
    for format in WeightFormat::ALL {
        for (name, isa) in levels() {
            let spec = spec(format);
            let asm = asm_text(&spec, &isa).unwrap();
            let dots = count(
                &asm,
                &[
                    "vpdpbusd",
                    "sdot",
                    "pmaddubsw",
                    "vpmaddubsw",
                    "pmaddwd",
                    "vpmaddwd",
                    "smull",
                    "smull2",
                ],
            );
            let spills = vector_spills(
                &asm,
                isa.arch,
                frame_bytes(&clif_text(&spec, &isa).unwrap()),
            );
            let bytes = compile(&spec, &isa).unwrap().code.len();
            writeln!(
                table,
                "{:8} {name:13} {bytes:6} {dots:6} {spills:6}",
                format.name()
            )
            .unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

/// One instruction per four rows, four k and column where the CPU has it: 32
/// for the single column, and for the tile 8 groups x 4 columns x 2 quads, or 4
/// where there are 32 registers.
#[test]
fn dot_trees_fold() {
    for (name, mnemonic, quads) in [
        ("avx-vnni", "vpdpbusd", 2),
        ("avx512-vnni", "vpdpbusd", 2),
        ("neon+dotprod", "sdot", 4),
    ] {
        let (_, isa) = levels().into_iter().find(|(n, _)| *n == name).unwrap();
        for format in WeightFormat::ALL.into_iter().filter(|f| f.takes_q8()) {
            let asm = asm_text(&spec(format), &isa).unwrap();
            assert_eq!(
                count(&asm, &[mnemonic]),
                32 + 8 * 4 * quads,
                "{} for {name}",
                format.name()
            );
            assert_eq!(
                count(&asm, &["vphaddd", "addp"]),
                0,
                "{} for {name}",
                format.name()
            );
        }
    }
}

/// Without VNNI no instruction may saturate: `pmaddubsw` only multiplies codes
/// of at most 7 bits, 8-bit weights go through `pmaddwd`.
#[test]
fn eight_bit_weights_are_widened() {
    let (_, isa) = levels().into_iter().find(|(n, _)| *n == "avx2").unwrap();
    for format in [WeightFormat::Q8_0, WeightFormat::Iq4Nl, WeightFormat::Iq4Xs] {
        let asm = asm_text(&spec(format), &isa).unwrap();
        assert_eq!(count(&asm, &["vpmaddubsw"]), 0, "{}", format.name());
        assert!(count(&asm, &["vpmaddwd"]) >= 64, "{}", format.name());
    }
}

/// The same spec gives the same bytes.
#[test]
fn code_is_reproducible() {
    for (_, isa) in levels() {
        let spec = spec(WeightFormat::Q4K);
        assert_eq!(compile(&spec, &isa), compile(&spec, &isa));
    }
}
