//! Compiles OMEX task containers and models into plans.

pub mod container;
pub mod diagnostic;
pub mod import;
pub mod tokenizer;
pub mod ir;
pub mod passes;
