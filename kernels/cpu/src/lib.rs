//! Which CPU features this machine has, by the names that plans use.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;

/// The architecture of this build, as plans name it.
pub const ARCH: &str = std::env::consts::ARCH;

macro_rules! detect {
    ($detect:ident, $name:expr, $($feature:tt)*) => {
        match $name {
            $($feature => std::arch::$detect!($feature),)*
            _ => false,
        }
    };
}

/// Whether this CPU and kernel support the feature with this Rust name; names
/// that this build does not know are unsupported. AMX is allowed to the process by the
/// question.
#[cfg(target_arch = "x86_64")]
pub fn has_feature(name: &str) -> bool {
    #[cfg(target_os = "linux")]
    if name == "amx-int8" {
        return amx::permitted();
    }
    detect!(
        is_x86_feature_detected, name,
        "sse" "sse2" "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "f16c" "fma" "bmi1"
        "bmi2" "lzcnt" "movbe" "avxvnni" "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl"
        "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni" "avx512bitalg" "avx512vpopcntdq"
        "avx512bf16" "avx512fp16" "gfni" "vaes" "vpclmulqdq"
    )
}

/// Whether this CPU and kernel support the feature with this Rust name; names
/// that this build does not know are unsupported.
#[cfg(target_arch = "aarch64")]
pub fn has_feature(name: &str) -> bool {
    detect!(
        is_aarch64_feature_detected, name,
        "neon" "fp16" "fhm" "dotprod" "i8mm" "bf16" "lse" "lse2" "rdm" "fcma" "jsconv" "crc" "aes"
        "sha2" "sha3" "sve" "sve2" "rcpc" "rcpc2" "dit" "flagm" "ssbs" "sb" "paca" "pacg"
    )
}

/// No feature of another architecture has a name here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn has_feature(_: &str) -> bool {
    false
}

/// Whether Intel made this CPU.
pub fn is_of_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        name.as_flattened() == b"GenuineIntel"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use super::has_feature;

    #[test]
    fn unknown_features_are_absent_and_baseline_ones_present() {
        assert!(!has_feature("avx1024"));
        let baseline = if cfg!(target_arch = "x86_64") {
            "sse2"
        } else {
            "neon"
        };
        assert!(has_feature(baseline));
    }

    /// What the kernel lists is what a process gets, each time that it asks.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn amx_is_allowed_where_the_kernel_has_it() {
        let listed = std::fs::read_to_string("/proc/cpuinfo").expect("the kernel's list");
        let listed = listed.split_whitespace().any(|flag| flag == "amx_int8");
        assert_eq!(has_feature("amx-int8"), listed);
        assert_eq!(has_feature("amx-int8"), listed);
    }
}
