//! The floating-point environment that the numeric contract needs: round to
//! nearest even, denormals kept, no traps.
// Control registers have no safe interface.
#![allow(unsafe_code)]

/// Sets this thread's floating-point environment. Every thread that computes
/// calls it first: a library may have changed what a thread inherits.
#[cfg(target_arch = "x86_64")]
pub fn set_environment() {
    /// All exceptions masked, round to nearest, no flush to zero, denormals
    /// are numbers: the value at power-on.
    const MXCSR: u32 = 0x1f80;
    // SAFETY: ldmxcsr reads four bytes of a live constant; the value sets no
    // reserved bit. The environment it selects is the one Rust assumes.
    unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &MXCSR, options(nostack, readonly, preserves_flags));
    }
}

/// Sets this thread's floating-point environment. Every thread that computes
/// calls it first: a library may have changed what a thread inherits.
#[cfg(target_arch = "aarch64")]
pub fn set_environment() {
    // SAFETY: zero is FPCR's architectural default (round to nearest, no flush
    // to zero, no traps), the environment that Rust assumes.
    unsafe {
        std::arch::asm!("msr fpcr, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    #[test]
    fn denormals_are_kept() {
        super::set_environment();
        let tiny = black_box(f32::MIN_POSITIVE) * black_box(0.5);
        assert!(tiny > 0.0 && tiny * 2.0 == f32::MIN_POSITIVE);
    }
}
