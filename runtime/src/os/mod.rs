//! The only module with system calls.

pub mod cpu;
pub mod file;
pub mod float;
pub mod futex;
pub mod memory;
pub mod process;
pub mod signal;
pub mod uring;
