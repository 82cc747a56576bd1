//! Executes passes: the plan's steps over a few columns (tokens) at a position.

mod engine;
mod machine;
mod step;
mod tile;

pub use engine::Engine;
pub use machine::{KeptCode, Machine, PageTable};
pub use tile::panel_tiles_max;
