//! `omex`: runs plans. With the feature `compiler`, builds and inspects too.

use std::process::ExitCode;

use omex_runtime::os::heap::Heap;

#[global_allocator]
static HEAP: Heap = Heap;

#[cfg(feature = "compiler")]
fn main() -> ExitCode {
    omex::start(omex::commands::omex)
}

/// The small runtime.
#[cfg(not(feature = "compiler"))]
fn main() -> ExitCode {
    omex::start(omex::small)
}
