//! `omex`: runs plans. With the feature `compiler`, builds and inspects too.

use std::process::ExitCode;

#[cfg(feature = "compiler")]
fn main() -> ExitCode {
    omex::commands::omex()
}

/// The small runtime.
#[cfg(not(feature = "compiler"))]
fn main() -> ExitCode {
    omex::small()
}
