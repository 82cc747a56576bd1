//! The arena planner: static offsets for buffers with lifetimes, in as few
//! bytes as possible (dynamic storage allocation).

pub mod problem;
mod search;
pub mod solver;
pub mod validator;

pub use problem::{Item, ItemId, Layout, Problem};
pub use solver::{Effort, solve};
pub use validator::validate;
