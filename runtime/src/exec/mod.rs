//! Executes passes: the plan's steps over a few columns (tokens) at a position.

mod engine;
mod machine;
mod step;
mod tile;
#[cfg(target_arch = "x86_64")]
mod vector;

pub use engine::Engine;
pub use machine::{KeptCode, Machine, PageTable};
pub use tile::tiles_bytes_max;
