//! Reading a container from a file or from standard input.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use omex_compiler::container::CONTAINER_BYTES_MAX;
use omex_compiler::diagnostic::{Code, Diagnostic, quoted};

use super::output::Failure;

/// A container's text and its folder, which standard input has none of.
#[derive(Debug)]
pub(crate) struct ContainerText {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) folder: Option<PathBuf>,
}

/// Reads the container at `path`; `-` is standard input, unless that is a
/// terminal, on which nothing would ever come.
pub(crate) fn read(path: &Path) -> Result<ContainerText, Failure> {
    if path.as_os_str() == "-" {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            let message = "standard input is a terminal, not a container";
            return Err(Diagnostic::error(Code::Usage, message)
                .help("name a file, or pipe the container in")
                .into());
        }
        return Ok(ContainerText {
            name: "<stdin>".to_owned(),
            bytes: read_bounded(stdin.lock(), path)?,
            folder: None,
        });
    }
    let cannot = |e: std::io::Error| {
        let message = format!("the container cannot be read: {e}");
        Diagnostic::error(Code::FileRead, message).in_file(path.to_string_lossy(), None)
    };
    let file = File::open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.is_dir() {
        let message = format!("{} is a folder", quoted(&path.to_string_lossy()));
        return Err(Diagnostic::error(Code::FileRead, message).into());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    Ok(ContainerText {
        name: path.to_string_lossy().into_owned(),
        bytes: read_bounded(file, path)?,
        folder: Some(folder.unwrap_or(Path::new(".")).to_owned()),
    })
}

/// One byte more than a container may have is enough to refuse it.
fn read_bounded(reader: impl Read, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let limit = CONTAINER_BYTES_MAX as u64 + 1;
    reader.take(limit).read_to_end(&mut bytes).map_err(|e| {
        let message = format!("the container cannot be read: {e}");
        Diagnostic::error(Code::FileRead, message).in_file(path.to_string_lossy(), None)
    })?;
    Ok(bytes)
}
