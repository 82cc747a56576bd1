//! Leave to use AMX, which Linux gives on request because the state of its tiles is
//! large.
//!
//! The request is a system call of its own, which has no safe form.
#![allow(unsafe_code)]

use std::arch::x86_64::{__cpuid, __cpuid_count};

/// Whether the CPU multiplies tiles of bytes and the kernel lets this process do so: all of
/// its threads, from now on. It refuses where a thread's signal stack is too small for the
/// state of tiles.
///
/// Source: Linux, Documentation/arch/x86/xstate.rst; Intel SDM volume 2, CPUID leaf 7.
pub(crate) fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILE_DATA: libc::c_ulong = 18;
    const AMX_INT8: u32 = 1 << 25;
    let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & AMX_INT8 != 0;
    // SAFETY: the request takes two numbers, and touches no memory of the process.
    has && unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILE_DATA,
        )
    } == 0
}
