//! The contract between OMEX's compiler and runtime: what a plan holds, how it
//! is written to bytes, and the checks that a plan must pass before anything
//! of it runs.
//!
//! Bytes become a [`Plan`] in [`file`], a [`Plan`] becomes a [`CheckedPlan`] in
//! [`check`]; the runtime accepts nothing else.
#![forbid(unsafe_code)]

pub mod check;
pub mod file;
pub mod frames;
pub mod ids;
pub mod memory;
pub mod packed;
pub mod paging;
pub mod plan;
pub mod prompt;
pub mod session;
pub mod task;
mod wire;

pub use wire::SpecWire;

pub use check::{CheckedPlan, check};
pub use ids::*;
pub use plan::*;

/// Version of the plan format: the header, the metadata types and the spec words.
pub const PLAN_VERSION: u32 = 6;
