//! Task containers: JSON in, a typed [`Task`] out, with a finding for everything that is wrong.

mod task;

pub use task::*;
