//! The only module with system calls.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("OMEX runs on x86-64 and aarch64");

#[cfg(not(target_os = "linux"))]
compile_error!("OMEX runs on Linux; macOS and Windows are not supported yet");

pub mod file;
pub mod float;
pub mod futex;
pub mod heap;
pub mod memory;
pub mod process;
pub mod signal;
pub mod uring;
