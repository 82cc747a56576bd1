//! Compiles OMEX task containers and models into plans.

pub mod arena;
pub mod choices;
pub mod container;
pub mod diagnostic;
pub mod emit;
pub mod import;
pub mod ir;
pub mod paging;
pub mod passes;
pub mod pipeline;
pub mod prompt;
pub mod registry;
pub mod report;
pub mod target;
pub mod tokenizer;
mod toml_fields;
pub mod work;
