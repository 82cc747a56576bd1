//! Executes passes: the plan's steps over a few columns (tokens) of sequences.

mod ahead;
mod engine;
mod machine;
mod operand;
mod pass;
mod session;
mod step;
mod tile;
#[cfg(target_arch = "x86_64")]
mod vector;

pub use engine::Engine;
pub use machine::{KeptCode, Machine, PageTable};
pub use operand::operands_bytes;
pub use pass::Span;
pub use session::SessionMemory;
pub use tile::tiles_bytes_max;
