//! OMEX's small languages: one pest file each, with typed syntax trees.

mod error;
pub mod quantity;
pub mod quantization;
pub mod reference;

pub use error::SyntaxError;
