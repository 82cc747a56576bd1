//! Compiles a model's vocabulary into the tables that `omex_runtime::tokenizer` reads.
//!
//! [`Vocabulary`] is what a model file says, [`compile`] checks it and writes the tables.
//! The rules behind a pre-tokenizer's name are in [`pre`]; [`automaton`] turns them into
//! transition tables.

mod automaton;
pub mod pre;
mod tables;
mod vocabulary;

pub use tables::compile;
pub use vocabulary::{Model, Vocabulary};
