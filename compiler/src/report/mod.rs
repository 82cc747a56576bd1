//! What a plan needs of memory and why, for people and for programs.

pub mod budget;
