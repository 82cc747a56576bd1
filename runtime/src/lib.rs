//! The runtime: loads a plan and executes it deterministically in bounded RAM.
//!
//! [`Session::load`] verifies a plan and brings it to memory, [`Session::run`]
//! executes its task.

pub mod error;
pub mod events;
pub mod exec;
pub mod hex;
pub mod json;
pub mod load;
pub mod memory;
pub mod os;
mod pager;
pub mod pool;
pub mod program;
pub mod sample;
mod session;
pub mod tokenizer;
pub mod transcript;

pub use error::RunError;
pub use load::{
    LoadOptions, Places, TrustStore, TrustedKey, frames_file_name, packed_file_name, unsuitable,
};
pub use pager::timeline::TIMELINE_BYTES;
pub use program::{Bindings, RunOptions, SamplingChanges, TO_THE_END};
pub use session::{Report, Session};
