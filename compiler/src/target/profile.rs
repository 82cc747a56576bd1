//! The facts of a device profile.

use std::fmt;

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    X86_64,
    Aarch64,
    Wasm32,
}

impl Arch {
    pub const ALL: &[Arch] = &[Arch::X86_64, Arch::Aarch64, Arch::Wasm32];

    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
            Arch::Wasm32 => "wasm32",
        }
    }

    pub fn from_name(name: &str) -> Option<Arch> {
        Arch::ALL.iter().copied().find(|arch| arch.name() == name)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! features {
    ($($variant:ident $arch:ident $name:literal,)*) => {
        /// An instruction set extension beyond the architecture's baseline. The names are those of
        /// the code generator where it uses the feature.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum CpuFeature {
            $($variant,)*
        }

        impl CpuFeature {
            pub const ALL: &[CpuFeature] = &[$(CpuFeature::$variant,)*];

            pub fn name(self) -> &'static str {
                match self { $(CpuFeature::$variant => $name,)* }
            }

            pub fn arch(self) -> Arch {
                match self { $(CpuFeature::$variant => Arch::$arch,)* }
            }
        }
    };
}

features! {
    Ssse3 X86_64 "ssse3",
    Sse41 X86_64 "sse4.1",
    Sse42 X86_64 "sse4.2",
    Avx X86_64 "avx",
    Avx2 X86_64 "avx2",
    F16c X86_64 "f16c",
    AvxVnni X86_64 "avxvnni",
    Avx512F X86_64 "avx512f",
    Avx512Bw X86_64 "avx512bw",
    Avx512Vl X86_64 "avx512vl",
    Avx512Vnni X86_64 "avx512vnni",
    AmxInt8 X86_64 "amx-int8",
    Lse Aarch64 "lse",
    Fp16 Aarch64 "fp16",
    Dotprod Aarch64 "dotprod",
    I8mm Aarch64 "i8mm",
    Bf16 Aarch64 "bf16",
    Sve2 Aarch64 "sve2",
    Simd128 Wasm32 "simd128",
}

impl CpuFeature {
    pub fn from_name(name: &str) -> Option<CpuFeature> {
        CpuFeature::ALL
            .iter()
            .copied()
            .find(|feature| feature.name() == name)
    }
}

/// A fact, and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure<T> {
    pub value: T,
    /// Nobody has measured it.
    pub estimate: bool,
    pub source: String,
}

impl<T> Figure<T> {
    /// A fact that the caller has measured or been told.
    pub fn known(value: T, source: impl Into<String>) -> Figure<T> {
        Figure {
            value,
            estimate: false,
            source: source.into(),
        }
    }
}

/// A device, as far as compiling for it needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    pub name: String,
    pub aliases: Vec<String>,
    pub description: String,
    pub arch: Arch,
    /// Sorted, of this architecture.
    pub features: Vec<CpuFeature>,
    /// Cores that can work at the same time.
    pub cores: Figure<u32>,
    /// Threads that decode fastest: fewer than the cores where memory is the limit.
    pub threads: Figure<u32>,
    /// Size of a page of the kernel's page tables: 4, 16 or 64 KiB.
    pub page_bytes: Figure<u32>,
    /// First-level data cache of one core.
    pub l1d_bytes: Figure<u64>,
    /// Second-level cache as one core sees it.
    pub l2_bytes: Figure<u64>,
    /// Last level shared by all cores, where there is a third.
    pub l3_bytes: Option<Figure<u64>>,
    /// What decoding reads from memory, in bytes per second.
    pub memory_bytes_per_s: Figure<u64>,
    /// 8-bit multiply-adds of all cores together, per second.
    pub macs_per_s: Figure<u64>,
    /// From asking memory for a cache line to having it, with nothing else to do.
    pub memory_latency_ns: Figure<u32>,
    /// How many 4 KiB ahead of its use the start of each is best asked for when memory is
    /// read in order; 0 where hardware alone is as fast.
    pub prefetch_pages: Figure<u32>,
    /// Large sequential reads from storage, in bytes per second.
    pub storage_bytes_per_s: Figure<u64>,
    /// Pages that one core decompresses, in bytes per second.
    pub zstd_bytes_per_s: Figure<u64>,
    /// What the kernel reports as total.
    pub ram_total_bytes: Figure<u64>,
    /// What one app can have, beside the system.
    pub ram_app_bytes: Figure<u64>,
}

impl Profile {
    pub fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }

    pub fn has(&self, feature: CpuFeature) -> bool {
        self.features.contains(&feature)
    }

    /// The instruction set for the code generator; None for wasm32, which has none yet.
    /// Features that it does not use are left out.
    pub fn isa(&self) -> Option<omex_codegen::Isa> {
        let arch = match self.arch {
            Arch::X86_64 => omex_codegen::Arch::X86_64,
            Arch::Aarch64 => omex_codegen::Arch::Aarch64,
            Arch::Wasm32 => return None,
        };
        let features = self
            .features
            .iter()
            .filter_map(|f| omex_codegen::Feature::from_name(f.name()));
        Some(omex_codegen::Isa {
            l2_bytes: u32::try_from(self.l2_bytes.value).unwrap_or(u32::MAX),
            memory_bytes_per_s: self.memory_bytes_per_s.value,
            memory_latency_ns: self.memory_latency_ns.value,
            prefetch_pages: self.prefetch_pages.value,
            ..omex_codegen::Isa::new(arch, features)
        })
    }

    /// What plans state of this target; None where there is no code generator for it.
    pub fn plan_target(&self) -> Option<omex_plan::Target> {
        let isa = self.isa()?;
        // Exactly what code may use: the runtime checks for nothing else.
        let mut features: Vec<String> = isa.features.iter().map(|f| f.name().to_owned()).collect();
        features.sort();
        Some(omex_plan::Target {
            name: self.name.clone(),
            arch: isa.arch.name().to_owned(),
            features,
            l2_bytes: isa.l2_bytes,
            memory_bytes_per_s: isa.memory_bytes_per_s,
            memory_latency_ns: isa.memory_latency_ns,
            prefetch_pages: isa.prefetch_pages,
        })
    }
}
