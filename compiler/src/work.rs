//! The parts of a build, for whoever clocks it: the compiler has no clock.

use std::fmt::Debug;

/// A part of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Reading the model's metadata.
    Model,
    /// Compiling vocabulary, pre-tokenizer and prompts.
    Tokenizer,
    /// Hashing and repacking weights, or finding them packed.
    Packing,
    /// From the model to scheduled kernels.
    Lowering,
    /// Machine code of the kernels.
    Code,
    /// Addresses of the arena's buffers.
    Arena,
    /// Which pages stay, when others are read, and where to.
    Paging,
    /// Encoding and writing the plan.
    Writing,
}

impl Work {
    pub const fn name(self) -> &'static str {
        match self {
            Work::Model => "model",
            Work::Tokenizer => "tokenizer",
            Work::Packing => "packing",
            Work::Lowering => "lowering",
            Work::Code => "code",
            Work::Arena => "arena",
            Work::Paging => "paging",
            Work::Writing => "writing",
        }
    }
}

/// Is told when a part of the work begins and ends. Parts lie within others:
/// code is made while a model is lowered.
pub trait Watch: Debug {
    fn begin(&self, work: Work);
    fn end(&self);
}

/// Nobody watches.
impl Watch for () {
    fn begin(&self, _work: Work) {}
    fn end(&self) {}
}

/// Does a part of the work.
pub fn watched<T>(watch: &dyn Watch, work: Work, f: impl FnOnce() -> T) -> T {
    watch.begin(work);
    let result = f();
    watch.end();
    result
}
