//! `omexc build --sign`: signs plans with an ed25519 key, for devices that
//! trust the key (`omex trust add`).
//!
//! A key file holds the secret key, 64 hexadecimal digits, and is readable by
//! its owner alone. What is signed is the plan's header, which holds the
//! digests of all sections.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer as _, SigningKey};
use omex_compiler::diagnostic::{Code, Diagnostic};
use omex_plan::file::HEADER_BYTES;
use omex_runtime::hex;
use omex_runtime::os::file::{read_small, write_atomic};

use super::output::Failure;

/// A signer with its secret key.
#[derive(Debug)]
pub(crate) struct Signer(SigningKey);

impl Signer {
    /// The key in the file at `path`; a new one is made where none is.
    pub(crate) fn open(path: &Path) -> Result<Signer, Failure> {
        match read_small(path, 1024) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let secret = hex::decode(text.trim()).ok_or_else(|| {
                    let message = "not a signing key: 64 hexadecimal digits are expected";
                    Diagnostic::error(Code::InvalidValue, message)
                        .in_file(path.to_string_lossy(), None)
                })?;
                Ok(Signer(SigningKey::from_bytes(&secret)))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Signer::create(path).map_err(|e| cannot(path, "made", e))
            }
            Err(e) => Err(cannot(path, "read", e)),
        }
    }

    fn create(path: &Path) -> std::io::Result<Signer> {
        let mut secret = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut secret)?;
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        // Never over a key that somebody else has just made.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(format!("{}\n", hex::encode(&secret)).as_bytes())?;
        file.sync_all()?;
        Ok(Signer(SigningKey::from_bytes(&secret)))
    }

    /// The public key in hexadecimal, as `omex trust add` takes it.
    pub(crate) fn public_key(&self) -> String {
        hex::encode(self.0.verifying_key().as_bytes())
    }

    /// Where a plan's signature lies.
    pub(crate) fn path(plan: &Path) -> PathBuf {
        let mut path = plan.as_os_str().to_owned();
        path.push(".sig");
        PathBuf::from(path)
    }

    /// Writes `PLAN.sig` and returns its path.
    pub(crate) fn sign(&self, plan: &Path) -> Result<PathBuf, Failure> {
        let mut header = [0; HEADER_BYTES];
        File::open(plan)
            .and_then(|mut file| file.read_exact(&mut header))
            .map_err(|e| cannot(plan, "read back", e))?;
        let signature = self.0.sign(&header).to_bytes();
        let path = Signer::path(plan);
        write_atomic(&path, format!("{}\n", hex::encode(&signature)).as_bytes())
            .map_err(|e| cannot(&path, "written", e))?;
        Ok(path)
    }
}

fn cannot(path: &Path, what: &str, e: std::io::Error) -> Failure {
    let code = match what {
        "read" | "read back" => Code::FileRead,
        _ => Code::FileWrite,
    };
    Diagnostic::error(code, format!("the file cannot be {what}: {e}"))
        .in_file(path.to_string_lossy(), None)
        .into()
}
