//! The vector instruction sets that code differs for.

use crate::{Arch, Feature, Features, Isa};
use iced_x86::Code;
use omex_kernels::PANEL_ROWS;

/// A vector width and a way to multiply bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// 256 bits, `vpmaddubsw`.
    Avx2,
    /// 256 bits, VEX `vpdpbusd`.
    AvxVnni,
    /// 256 bits, EVEX `vpdpbusd`: AVX-512 CPUs without `avx512bw` in their profile.
    Avx512Vl,
    /// 512 bits, `vpmaddubsw`.
    Avx512Bw,
    /// 512 bits, `vpdpbusd`.
    Avx512Vnni,
    /// The same, and products of tiles of bytes for many columns.
    Amx,
}

impl Level {
    pub(super) const ALL: [Level; 6] = [
        Level::Avx2,
        Level::AvxVnni,
        Level::Avx512Vl,
        Level::Avx512Bw,
        Level::Avx512Vnni,
        Level::Amx,
    ];

    /// What a CPU must have.
    pub(super) fn features(self) -> Features {
        use Feature::*;
        let more: &[Feature] = match self {
            Level::Avx2 => &[],
            Level::AvxVnni => &[AvxVnni],
            Level::Avx512Vl => &[Avx512F, Avx512Vl, Avx512Vnni],
            Level::Avx512Bw => &[Avx512F, Avx512Bw],
            Level::Avx512Vnni => &[Avx512F, Avx512Bw, Avx512Vnni],
            Level::Amx => &[Avx512F, Avx512Bw, Avx512Vnni, AmxInt8],
        };
        let all = [Avx, Avx2, F16c].iter().chain(more);
        all.copied().collect()
    }

    /// The best level of an instruction set, if it has any.
    pub(super) fn of(isa: &Isa) -> Option<Level> {
        let has = |level: &Level| level.features().without(isa.features).is_empty();
        let levels = Level::ALL.into_iter().rev();
        levels.filter(|_| isa.arch == Arch::X86_64).find(has)
    }

    fn is_512(self) -> bool {
        match self {
            Level::Avx2 | Level::AvxVnni | Level::Avx512Vl => false,
            Level::Avx512Bw | Level::Avx512Vnni | Level::Amx => true,
        }
    }

    pub(super) fn pick<T>(self, at_256: T, at_512: T) -> T {
        if self.is_512() { at_512 } else { at_256 }
    }

    /// f32 lanes of a vector.
    pub(super) fn lanes(self) -> u32 {
        self.pick(8, 16)
    }

    /// Bytes of a vector.
    pub(super) fn bytes(self) -> u32 {
        4 * self.lanes()
    }

    /// Vectors that 16 rows take.
    pub(super) fn parts(self) -> usize {
        (PANEL_ROWS / self.lanes()) as usize
    }

    pub(super) fn registers(self) -> u32 {
        self.pick(16, 32)
    }

    pub(super) fn has_vnni(self) -> bool {
        match self {
            Level::Avx2 | Level::Avx512Bw => false,
            Level::AvxVnni | Level::Avx512Vl | Level::Avx512Vnni | Level::Amx => true,
        }
    }

    /// Whether the level has AMX.
    pub(super) fn has_amx(self) -> bool {
        self == Level::Amx
    }

    pub(super) fn dot_bytes(self) -> Code {
        match self {
            Level::AvxVnni => Code::VEX_Vpdpbusd_ymm_ymm_ymmm256,
            Level::Avx512Vl => Code::EVEX_Vpdpbusd_ymm_k1z_ymm_ymmm256b32,
            Level::Avx512Vnni | Level::Amx => Code::EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32,
            Level::Avx2 | Level::Avx512Bw => panic!("{self:?} has no vpdpbusd"),
        }
    }

    pub(super) fn dot_words(self) -> Option<Code> {
        match self {
            Level::Avx2 | Level::Avx512Bw => None,
            Level::AvxVnni => Some(Code::VEX_Vpdpwssd_ymm_ymm_ymmm256),
            Level::Avx512Vl => Some(Code::EVEX_Vpdpwssd_ymm_k1z_ymm_ymmm256b32),
            Level::Avx512Vnni | Level::Amx => Some(Code::EVEX_Vpdpwssd_zmm_k1z_zmm_zmmm512b32),
        }
    }

    /// `vpternlogd`, which all of AVX-512 has.
    pub(super) fn ternary_logic(self) -> Option<Code> {
        match self {
            Level::Avx2 | Level::AvxVnni => None,
            Level::Avx512Vl => Some(Code::EVEX_Vpternlogd_ymm_k1z_ymm_ymmm256b32_imm8),
            Level::Avx512Bw | Level::Avx512Vnni | Level::Amx => {
                Some(Code::EVEX_Vpternlogd_zmm_k1z_zmm_zmmm512b32_imm8)
            }
        }
    }

    pub(super) fn f32_from_f16(self) -> Code {
        self.pick(
            Code::VEX_Vcvtph2ps_ymm_xmmm128,
            Code::EVEX_Vcvtph2ps_zmm_k1z_ymmm256_sae,
        )
    }
}
