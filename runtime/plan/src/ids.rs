//! Index newtypes: an id says which table it indexes.

use crate::wire::{Decode, Encode};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub u32);

        impl $name {
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl From<usize> for $name {
            /// Panics above u32::MAX, which no table reaches.
            fn from(index: usize) -> Self {
                $name(u32::try_from(index).expect("table index exceeds u32"))
            }
        }
    )*};
}

ids! {
    /// Indexes [`crate::plan::Weights::pages`].
    PageId;
    /// Indexes [`crate::plan::Weights::tensors`].
    TensorId;
    /// Indexes [`crate::Plan::kernels`].
    KernelId;
    /// Indexes [`crate::Plan::buffers`].
    BufferId;
    /// Indexes [`crate::task::Program::nodes`].
    NodeId;
    /// Indexes [`crate::task::Program::inputs`].
    InputId;
}
