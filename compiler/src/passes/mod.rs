//! The passes, in the order in which [`crate::pipeline`] runs them. Each file
//! opens with what it requires, ensures and breaks.

pub mod build;
pub mod fuse;
pub mod lifetimes;
pub mod normalize;
pub mod schedule;
pub mod select;
