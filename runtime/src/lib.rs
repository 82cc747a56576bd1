//! The runtime: loads a plan and executes it deterministically in bounded RAM.

pub mod error;
pub mod exec;
pub mod hex;
pub mod load;
pub mod os;
pub mod pool;
pub mod tokenizer;

pub use error::RunError;
