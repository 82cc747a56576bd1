//! What a CPU can execute, as far as generated code cares.

use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    pub const fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }
}

macro_rules! features {
    ($($(#[$doc:meta])* $variant:ident, $arch:ident, $name:literal, $cranelift:expr;)*) => {
        /// CPU features that change generated code; the baselines of the
        /// architectures (SSE2, NEON) are implied.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Feature {
            $($(#[$doc])* $variant,)*
        }

        impl Feature {
            pub const ALL: &[Feature] = &[$(Feature::$variant,)*];

            /// The name that target profiles and plans use, which is Rust's.
            pub const fn name(self) -> &'static str {
                match self { $(Feature::$variant => $name,)* }
            }

            pub const fn arch(self) -> Arch {
                match self { $(Feature::$variant => Arch::$arch,)* }
            }

            /// The cranelift setting that enables it, if cranelift uses it.
            const fn cranelift_setting(self) -> Option<&'static str> {
                match self { $(Feature::$variant => $cranelift,)* }
            }
        }
    };
}

features! {
    Ssse3, X86_64, "ssse3", Some("has_ssse3");
    Sse41, X86_64, "sse4.1", Some("has_sse41");
    Sse42, X86_64, "sse4.2", Some("has_sse42");
    Avx, X86_64, "avx", Some("has_avx");
    Avx2, X86_64, "avx2", Some("has_avx2");
    AvxVnni, X86_64, "avxvnni", Some("has_avx_vnni");
    Avx512F, X86_64, "avx512f", Some("has_avx512f");
    Avx512Bw, X86_64, "avx512bw", None;
    Avx512Vl, X86_64, "avx512vl", Some("has_avx512vl");
    Avx512Vnni, X86_64, "avx512vnni", Some("has_avx512vnni");
    Dotprod, Aarch64, "dotprod", Some("has_dotprod");
    I8mm, Aarch64, "i8mm", Some("has_i8mm");
    F16c, X86_64, "f16c", None;
    /// Tiles that this process may use, and products of their bytes.
    AmxInt8, X86_64, "amx-int8", None;
}

impl Feature {
    pub fn from_name(name: &str) -> Option<Feature> {
        Feature::ALL.iter().copied().find(|f| f.name() == name)
    }
}

/// A set of features. The bits are stable within one plan version: bit `i` is
/// the `i`-th entry of [`Feature::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Features(pub u32);

impl Features {
    pub const NONE: Features = Features(0);

    pub const fn with(self, feature: Feature) -> Features {
        Features(self.0 | 1 << feature as u8)
    }

    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> (feature as u8) & 1 != 0
    }

    /// The features of `self` that `other` lacks.
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |f| self.has(*f))
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<T: IntoIterator<Item = Feature>>(features: T) -> Features {
        features.into_iter().fold(Features::NONE, Features::with)
    }
}

/// A second-level cache that few cores have less of.
const L2_BYTES: u32 = 512 << 10;
/// Memory of two channels, of which a part is measured.
const MEMORY_BYTES_PER_S: u64 = 20_000_000_000;
/// As far ahead as is best on CPUs of Intel, whose prefetchers end with a page.
pub const PREFETCH_PAGES: u32 = 4;
/// Until memory answers one read, on most CPUs.
pub const MEMORY_LATENCY_NS: u32 = 100;

/// An architecture, the features that code may use, and the cache and memory that it
/// is shaped for, on which no result depends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Isa {
    pub arch: Arch,
    pub features: Features,
    /// Second-level cache as one core sees it.
    pub l2_bytes: u32,
    /// Memory reads of all cores together.
    pub memory_bytes_per_s: u64,
    /// From asking memory for a cache line to having it, with nothing else to do.
    pub memory_latency_ns: u32,
    /// How many 4 KiB ahead of its use the start of each is best asked for; 0 where hardware
    /// alone is as fast.
    pub prefetch_pages: u32,
}

impl Isa {
    /// Features of another architecture are dropped. Cache and memory are common ones.
    pub fn new(arch: Arch, features: impl IntoIterator<Item = Feature>) -> Isa {
        let features = features.into_iter().filter(|f| f.arch() == arch).collect();
        Isa {
            arch,
            features,
            l2_bytes: L2_BYTES,
            memory_bytes_per_s: MEMORY_BYTES_PER_S,
            memory_latency_ns: MEMORY_LATENCY_NS,
            prefetch_pages: 0,
        }
    }

    /// The CPU that executes this, with common cache and memory; `None` on other
    /// architectures.
    pub fn host() -> Option<Isa> {
        let arch = if cfg!(target_arch = "x86_64") {
            Arch::X86_64
        } else if cfg!(target_arch = "aarch64") {
            Arch::Aarch64
        } else {
            return None;
        };
        let found = Feature::ALL
            .iter()
            .copied()
            .filter(|f| omex_cpu::has_feature(f.name()));
        Some(Isa {
            prefetch_pages: if omex_cpu::is_of_intel() {
                PREFETCH_PAGES
            } else {
                0
            },
            ..Isa::new(arch, found)
        })
    }

    pub const fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// The cranelift target. The code keeps the order in which it is built, so
    /// that register pressure stays as designed (`opt_level` none). Kernels refer
    /// to nothing outside themselves, so position independence is no setting.
    pub(crate) fn cranelift(&self) -> OwnedTargetIsa {
        let mut shared = settings::builder();
        for (name, value) in [
            ("opt_level", "none"),
            ("enable_verifier", "false"),
            ("enable_probestack", "false"),
            ("unwind_info", "false"),
            ("is_pic", "false"),
        ] {
            shared.set(name, value).expect("a setting of cranelift");
        }
        let triple = match self.arch {
            Arch::X86_64 => "x86_64-unknown-linux-gnu",
            Arch::Aarch64 => "aarch64-unknown-linux-gnu",
        };
        let mut builder = isa::lookup_by_name(triple).expect("cranelift is built with this target");
        for feature in self.features.iter() {
            if let Some(name) = feature.cranelift_setting() {
                builder.enable(name).expect("a feature of cranelift");
            }
        }
        if self.arch == Arch::X86_64 && self.has(Feature::Ssse3) {
            builder.enable("has_sse3").expect("a feature of cranelift");
        }
        builder
            .finish(settings::Flags::new(shared))
            .expect("the settings fit each other")
    }
}
