//! The cost model that shapes kernels at build time: what every shape would
//! compute, in the way that is fastest on a target. Its facts are those of [`Isa`];
//! no result depends on it.

use crate::{Arch, Isa};
use std::fmt;
use std::ops::RangeInclusive;

/// Bytes of a cache line, or of a part of one.
const LINE_BYTES: u64 = 64;
/// Columns of a tile beyond which more gain nothing: its operands are loaded once
/// for all of them, which is less than a tenth of its instructions then.
const TILE_COLUMNS_MAX: usize = 12;
/// Far enough to cover the start of what hardware fetches by itself.
const PREFETCH_BYTES_MAX: u64 = 1024;

/// What was chosen for a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelShape {
    /// Columns and rows whose sums a body holds in registers.
    pub tile_columns: usize,
    pub tile_rows: u32,
    /// Columns for which a panel is unpacked once, where they are more than a tile's.
    pub columns_in_work: Option<u32>,
    /// How few columns fetch weights; `None` where that is left to hardware.
    pub prefetch: Option<Prefetch>,
}

/// What code that reads weights from memory asks for before it needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// Every line, so many bytes ahead.
    Lines { bytes: u32 },
    /// The first quarter of each 4 KiB, so many of them ahead; hardware, which stops at
    /// their ends, then fetches the rest by itself.
    Pages { pages: u32 },
}

impl fmt::Display for KernelShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tiles of {}x{}", self.tile_rows, self.tile_columns)?;
        if let Some(columns) = self.columns_in_work {
            write!(f, ", {columns} columns in work")?;
        }
        match self.prefetch {
            None => Ok(()),
            Some(Prefetch::Lines { bytes }) => write!(f, ", fetched {bytes} bytes ahead"),
            Some(Prefetch::Pages { pages }) => write!(f, ", begun {pages} pages ahead"),
        }
    }
}

/// Whether the 128-bit back end keeps so many values in registers. Where a whole panel's
/// do not fit, halves load activations twice, which costs less than spilling sums.
pub(crate) fn fits_registers(arch: Arch, values: usize) -> bool {
    let registers = match arch {
        Arch::X86_64 => 16,
        Arch::Aarch64 => 32,
    };
    values <= registers
}

/// Columns of a register tile: as many as `registers` hold, of which `others` are
/// taken by what columns share and `per_column` by the sums of each.
///
/// The multiply-adds of a column cost the same in any tile; operands cost one load
/// for all of its columns.
pub(crate) fn tile_columns(registers: usize, others: usize, per_column: usize) -> usize {
    (registers.saturating_sub(others) / per_column).clamp(1, TILE_COLUMNS_MAX)
}

/// Columns for which a panel is unpacked once: those whose activations, of
/// `column_bytes` bytes each, stay in half the second-level cache while panels pass
/// through the other. A multiple of `tile`, from about the least to the most of
/// `range`.
pub(crate) fn columns_in_work(
    isa: &Isa,
    column_bytes: u32,
    tile: usize,
    range: RangeInclusive<u32>,
) -> u32 {
    let columns = (isa.l2_bytes / 2 / column_bytes).clamp(*range.start(), *range.end());
    let tile = tile as u32;
    (columns / tile).max(1) * tile
}

/// How few columns fetch weights.
///
/// On two cores of an Emerald Rapids, beginning pages 4 ahead reads panels 1.5 to 1.8 times as
/// fast as fetching lines 1,024 bytes ahead (Q4_1, Q8_0, Q4_K with K of 2,048, one thread and
/// two); 1, 2 and 8 ahead 1.3 to 1.6 times. An eighth or half of a page instead of a
/// quarter gives 1.2 to 1.5.
pub(crate) fn prefetch(isa: &Isa) -> Prefetch {
    match isa.prefetch_pages {
        0 => Prefetch::Lines {
            bytes: prefetch_bytes(isa),
        },
        pages => Prefetch::Pages { pages },
    }
}

/// How far ahead of its use a single column fetches weights, in bytes: what memory
/// delivers while a read of it is under way (Little's law), a power of two, at most a
/// 64th of the second-level cache.
///
/// A read takes several times its latency while memory is busy, and one core alone can
/// use nearly all of its bandwidth. But panels are read in order from the first byte to
/// the last, so that hardware keeps enough of them in flight itself; a far prefetch
/// competes with it.
///
/// On two Zen 4 cores, as shares of what plain loops read, by the mean of Q4_1 and Q8_0
/// with K of 576, Q5_0 with 640, Q4_K and Q6_K with 1536, in calls of about 300 KB, one
/// thread and two: 0.96, 0.98 for 128 to 512; 0.98, 0.99 for 1024; 0.91, 0.98 for 2048;
/// 0.74, 0.90 for 3072. On two Zen 3 cores 512 gained 8 to 19 % on 4096 (Q8_0 with 640).
fn prefetch_bytes(isa: &Isa) -> u32 {
    let ns = u128::from(isa.memory_latency_ns) * 4;
    let in_flight = u128::from(isa.memory_bytes_per_s) * ns / 1_000_000_000;
    let in_flight = u64::try_from(in_flight).unwrap_or(u64::MAX);
    let most = u64::from(isa.l2_bytes / 64).clamp(LINE_BYTES, PREFETCH_BYTES_MAX);
    let power = in_flight.clamp(LINE_BYTES, most).next_power_of_two();
    u32::try_from(power.min(1 << most.ilog2())).expect("a part of the cache")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape;
    use omex_kernels::{KernelSpec, WeightFormat};

    /// Profiles by second-level cache, GB/s and latency.
    fn isa(l2_kib: u32, gb_per_s: u64, latency_ns: u32) -> Isa {
        Isa {
            l2_bytes: l2_kib << 10,
            memory_bytes_per_s: gb_per_s * 1_000_000_000,
            memory_latency_ns: latency_ns,
            ..Isa::new(Arch::X86_64, [])
        }
    }

    #[test]
    fn distance_is_what_memory_has_in_flight() {
        for (isa, bytes) in [
            (Isa::new(Arch::X86_64, []), 1024),
            // Two Zen 3 cores.
            (isa(512, 33, 110), 1024),
            // A server, all of whose bandwidth no core can use.
            (isa(2048, 400, 120), 1024),
            // A Pi 4, and memory that is slower still.
            (isa(1024, 3, 150), 1024),
            (isa(1024, 1, 100), 512),
            // Next to no cache, memory without a latency, and the extremes.
            (isa(48, 20, 100), 512),
            (isa(1, 20, 100), 64),
            (isa(512, 20, 0), 64),
            (isa(0, 0, 0), 64),
        ] {
            assert_eq!(prefetch_bytes(&isa), bytes, "{isa:?}");
        }
        let most = Isa {
            l2_bytes: u32::MAX,
            memory_bytes_per_s: u64::MAX,
            memory_latency_ns: u32::MAX,
            ..isa(0, 0, 0)
        };
        assert_eq!(prefetch_bytes(&most), 1024);
    }

    #[test]
    fn shapes_follow_the_target() {
        let spec = |format, rows, k| KernelSpec::Matmul {
            format,
            rows,
            k,
            bias: false,
            residual: false,
        };
        let avx2 = [
            crate::Feature::Avx,
            crate::Feature::Avx2,
            crate::Feature::F16c,
        ];
        let avx2 = |l2_kib: u32| Isa {
            l2_bytes: l2_kib << 10,
            ..Isa::new(Arch::X86_64, avx2)
        };
        let arm = |features: &[crate::Feature]| Isa::new(Arch::Aarch64, features.iter().copied());
        let mut lines = String::new();
        for (name, isa) in [
            ("avx2, 512 KiB", avx2(512)),
            ("avx2, 128 KiB", avx2(128)),
            (
                "avx2, pages",
                Isa {
                    prefetch_pages: 4,
                    ..avx2(512)
                },
            ),
            ("neon", arm(&[])),
            ("dotprod", arm(&[crate::Feature::Dotprod])),
        ] {
            for (format, rows, k) in [
                (WeightFormat::Q4_1, 49152, 576),
                (WeightFormat::Q4_1, 64, 576),
                (WeightFormat::Q6K, 1536, 2048),
                (WeightFormat::F16, 1536, 2048),
            ] {
                let shape = shape(&spec(format, rows, k), &isa).expect("a supported kernel");
                lines += &format!("{name}: {} {rows}x{k}: {shape}\n", format.name());
            }
        }
        insta::assert_snapshot!(lines);
    }

    #[test]
    fn tiles_fill_the_registers() {
        // 16 registers at 256 bits, two for the sums of a column; 32 at 512.
        assert_eq!(tile_columns(16, 4, 2), 6);
        assert_eq!(tile_columns(32, 3, 1), 12);
        assert_eq!(tile_columns(16, 20, 2), 1);
        assert!(fits_registers(Arch::Aarch64, 32));
        assert!(!fits_registers(Arch::X86_64, 17));
    }

    #[test]
    fn columns_in_work_fit_half_the_cache() {
        let columns = |l2_kib, column_bytes| {
            columns_in_work(&isa(l2_kib, 20, 100), column_bytes, 12, 24..=96)
        };
        assert_eq!(columns(512, 2560), 96);
        assert_eq!(columns(256, 2560), 48);
        assert_eq!(columns(256, 12000), 24);
        assert_eq!(columns(0, 12000), 24);
    }
}
