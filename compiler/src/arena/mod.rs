//! The arena planner: static offsets for buffers with lifetimes, in as few
//! bytes as possible (dynamic storage allocation).
//!
//! [`solve`] tries first fit in several orders; where none meets the load,
//! which no layout undercuts, it searches.

mod first_fit;
pub mod forcing;
mod order;
pub mod problem;
mod search;
mod sections;
pub mod solver;
mod tree;
pub mod validator;

pub use forcing::forcing;
pub use problem::{Item, Layout, Problem};
pub use solver::{Effort, solve};
pub use validator::validate;
