//! Paths in containers, which may come from anyone: they stay below the working directory.

use super::fields::Context;
use super::task::InputPath;
use crate::diagnostic::{Code, Diagnostic, Spanned, quoted};

const PATH_BYTES_MAX: usize = 4096;

/// Why a path is not one below the working directory, if it is not.
fn fault(path: &str, any_path: bool) -> Option<&'static str> {
    if path.is_empty() {
        return Some("is empty");
    }
    if path.len() > PATH_BYTES_MAX {
        return Some("is longer than any path");
    }
    if path.contains('\0') {
        return Some("holds a NUL");
    }
    if any_path {
        return None;
    }
    if path.starts_with('/') {
        return Some("is absolute");
    }
    path.split('/')
        .any(|part| part == "..")
        .then_some("leaves the task's folder")
}

/// Reports a path that leaves the working directory. It starts at `offset` of the text; `flag` is
/// what to use instead.
pub(super) fn check(
    context: &mut Context<'_>,
    text: &Spanned<String>,
    offset: usize,
    flag: &str,
) -> Result<(), ()> {
    let path = &text.value[offset..];
    let Some(fault) = fault(path, context.any_path) else {
        return Ok(());
    };
    let span = context.part(text, offset..text.value.len());
    context.sink.push(
        Diagnostic::error(
            Code::UnsafePath,
            format!("the path {} {fault}", quoted(path)),
        )
        .at(context.source, span, "")
        .help(format!(
            "a container names files below the working directory; others with {flag}"
        )),
    );
    Err(())
}

/// What an input names.
pub(super) fn input_path(text: &str) -> InputPath {
    if text == "-" {
        InputPath::Stdin
    } else if text.contains(['*', '?', '[']) {
        InputPath::Glob(text.to_owned())
    } else {
        InputPath::Path(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_working_directory() {
        for path in [
            "a", "./src", "a/b.c", "..a", "a..", "a/...", "-", "*.rs", "~", "a b",
        ] {
            assert_eq!(fault(path, false), None, "{path}");
        }
        for path in [
            "",
            "..",
            "../a",
            "a/../b",
            "a/..",
            "/etc/passwd",
            "/",
            "a\0b",
            &"a".repeat(5000),
        ] {
            assert!(fault(path, false).is_some(), "{path}");
        }
        assert_eq!(fault("/abs/../x", true), None);
        assert!(fault("a\0", true).is_some());
    }
}
