//! The command lines of OMEX: `omexc`, which compiles, and `omex`, which runs.
//!
//! Without the feature `compiler` only [`run`] and [`trust`] are left, and
//! their flags are read without clap: that is the small runtime.
#![forbid(unsafe_code)]

pub mod args;
pub mod run;
pub mod trust;

#[cfg(feature = "compiler")]
pub mod commands;
