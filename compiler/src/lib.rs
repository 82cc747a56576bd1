//! Compiles OMEX task containers and models into plans.

pub mod diagnostic;
pub mod import;
