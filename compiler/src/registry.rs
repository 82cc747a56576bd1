//! From model references to files.
//!
//! `zsei://models/NAME?q8` is looked up in registries, which are TOML files:
//!
//! ```toml
//! search = ["../target"]              # where local:// paths are looked up too
//!
//! [default]
//! model = "zsei://models/smollm2"     # for containers that name none
//!
//! [models.smollm2]
//! path = "models/smollm2.Q4_1.gguf"   # relative to this file
//! sha256 = "..."                      # optional, as is a `url` beside a path
//!
//! [models.smollm2.q8]                 # what `?q8` stands for
//! path = "models/smollm2.Q8_0.gguf"
//! ```
//!
//! This module touches no file: callers read registries and answer whether a path exists.

mod read;
mod resolve;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use omex_grammar::quantization::Quantization;
use omex_grammar::reference::ModelReference;
use sha2::{Digest as _, Sha256};

use crate::diagnostic::{Code, Diagnostic, Source, Span, Spanned};

pub use resolve::{Places, ResolvedModel, Resolver};

/// The name of a registry beside a container.
pub const REGISTRY_FILE: &str = "omex.registry.toml";
/// The name of the user's own, in `$OMEX_HOME` or `~/.omex`.
pub const USER_REGISTRY_FILE: &str = "registry.toml";

/// One registry file.
#[derive(Clone, Debug, PartialEq)]
pub struct Registry {
    pub source: Arc<Source>,
    /// Paths in it are relative to this.
    pub folder: PathBuf,
    /// Further folders for `local://` and plain paths.
    pub search: Vec<PathBuf>,
    pub default_model: Option<Spanned<ModelReference>>,
    pub models: BTreeMap<String, Entry>,
}

/// What a registry knows under a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    pub file: Option<ModelFile>,
    /// `[models.NAME.q8]`
    pub quantizations: BTreeMap<Quantization, ModelFile>,
}

/// A file that a registry names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    pub place: Place,
    pub digest: Option<FileDigest>,
    pub span: Span,
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Joined to the registry's folder.
    Path(PathBuf),
    /// Elsewhere, from where nothing is fetched yet.
    Url(String),
}

/// What a file has to hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileDigest {
    Sha256([u8; 32]),
    Blake3([u8; 32]),
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl FileDigest {
    /// Reads the content to its end.
    ///
    /// # Errors
    ///
    /// The content cannot be read.
    pub fn matches(&self, content: &mut dyn Read) -> io::Result<bool> {
        Ok(self.of(content)? == *self)
    }

    /// The digest of the same kind of this content.
    fn of(&self, content: &mut dyn Read) -> io::Result<FileDigest> {
        let mut buffer = vec![0; 1 << 20];
        let mut sha256 = Sha256::new();
        let mut blake3 = blake3::Hasher::new();
        loop {
            let length = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            match self {
                FileDigest::Sha256(_) => sha256.update(&buffer[..length]),
                FileDigest::Blake3(_) => {
                    blake3.update(&buffer[..length]);
                }
            }
        }
        Ok(match self {
            FileDigest::Sha256(_) => FileDigest::Sha256(sha256.finalize().into()),
            FileDigest::Blake3(_) => FileDigest::Blake3(*blake3.finalize().as_bytes()),
        })
    }

    /// The error for a file that has another digest.
    pub fn mismatch(&self, path: &Path) -> Diagnostic {
        let (kind, bytes) = match self {
            FileDigest::Sha256(bytes) => ("sha256", bytes),
            FileDigest::Blake3(bytes) => ("blake3", bytes),
        };
        Diagnostic::error(
            Code::ModelDigest,
            format!("the model does not have the {kind} that the registry states"),
        )
        .in_file(path.display().to_string(), None)
        .note(format!("expected {}", hex(bytes)))
        .help("fetch the file again, or correct the registry")
    }
}

impl Registry {
    /// Reads a registry that lies in `folder`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the file.
    pub fn parse(source: &Arc<Source>, folder: &Path) -> Result<Registry, Vec<Diagnostic>> {
        read::read(source, folder)
    }
}

#[cfg(test)]
mod tests;
