//! OMEX's small languages: one pest file each, with typed syntax trees.

mod error;
pub mod ir;
pub mod quantity;
pub mod quantization;
pub mod reference;

pub use error::SyntaxError;
