//! Model import: from a model file to a checked description of the model and
//! to the packed weights.
//!
//! - [`gguf`] reads (and writes) the container format,
//! - [`family`] maps metadata and tensor names of each model family to a typed
//!   [`family::ModelConfig`],
//! - [`pack`] repacks the weights into the packed model of the cache.
//!
//! Everything here takes files as hostile: no count is believed before it has
//! been compared with the bytes that remain, and every fault is an
//! [`ImportError`] that names the file, the byte and what was expected.

mod error;
pub mod family;
pub mod ggml_type;
pub mod gguf;
mod map;
pub mod pack;
pub mod synth;

pub use error::ImportError;
pub use map::MappedFile;
