//! `omexc`: compiles task containers into plans.

use std::process::ExitCode;

use omex_runtime::os::heap::Heap;

#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> ExitCode {
    omex::start(omex::commands::omexc)
}
