//! Whose code is run: plans that were built here, and keys whose signatures on
//! plans are accepted.
//!
//! A trust folder holds `plans.txt`, the BLAKE3 digest of a plan's header in
//! hexadecimal a line, and `keys.txt`, one ed25519 public key in hexadecimal a line, optionally
//! followed by a name. `plan.bin.sig` beside a plan holds, in hexadecimal, the
//! ed25519 signature of the plan's header, which contains the digests of all
//! sections: what a kernel's code may touch is said by the metadata, so neither is
//! trusted without the other.

use std::io;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, VerifyingKey};

use crate::error::RunError;
use crate::hex;
use crate::os::file::{LockFile, read_small, write_atomic};

/// Far above any list that people keep.
const LIST_BYTES_MAX: u64 = 16 << 20;

/// A folder with lists of what is trusted; it need not exist yet.
#[derive(Clone, Debug)]
pub struct TrustStore {
    folder: PathBuf,
}

/// An accepted signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    pub key: [u8; 32],
    pub name: String,
}

impl TrustStore {
    pub fn new(folder: impl Into<PathBuf>) -> TrustStore {
        TrustStore {
            folder: folder.into(),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Digests of the headers of plans that were built here, sorted.
    pub fn plans(&self) -> Result<Vec<[u8; 32]>, RunError> {
        self.list("plans.txt", hex::decode)
    }

    /// The accepted signers, sorted.
    pub fn keys(&self) -> Result<Vec<TrustedKey>, RunError> {
        self.list("keys.txt", |line| {
            let (key, name) = line.split_once(' ').unwrap_or((line, ""));
            Some(TrustedKey {
                key: hex::decode(key)?,
                name: name.to_owned(),
            })
        })
    }

    /// Trusts the plan with this header.
    pub fn add_plan(&self, header: &[u8]) -> Result<(), RunError> {
        self.add("plans.txt", &hex::encode(blake3::hash(header).as_bytes()))
    }

    /// Trusts the signer with this public key.
    ///
    /// Errors: bytes that are no ed25519 public key, or a name of several lines.
    pub fn add_key(&self, key: &[u8; 32], name: &str) -> Result<(), RunError> {
        if VerifyingKey::from_bytes(key).is_err() {
            let key = hex::encode(key);
            return Err(RunError::Usage(format!(
                "{key} is not an ed25519 public key"
            )));
        }
        if name.chars().any(char::is_control) {
            return Err(RunError::Usage("a key's name is one line".to_owned()));
        }
        let line = format!("{} {name}", hex::encode(key));
        self.add("keys.txt", line.trim_end())
    }

    /// Whether a plan's code may run: it was built here, or the file
    /// `signature_path` exists and signs the plan with a trusted key.
    pub(crate) fn accepts(
        &self,
        plan_header: &[u8],
        signature_path: &Path,
    ) -> Result<bool, RunError> {
        if self.plans()?.contains(blake3::hash(plan_header).as_bytes()) {
            return Ok(true);
        }
        let text = match read_small(signature_path, 1024) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(RunError::io("read the signature", signature_path)(e)),
        };
        let text = String::from_utf8_lossy(&text);
        let bytes = hex::decode::<64>(text.trim()).ok_or_else(|| {
            RunError::integrity(
                signature_path,
                None,
                "not a signature: 128 hexadecimal digits are expected",
            )
        })?;
        let signature = Signature::from_bytes(&bytes);
        Ok(self.keys()?.iter().any(|trusted| {
            VerifyingKey::from_bytes(&trusted.key)
                .is_ok_and(|key| key.verify_strict(plan_header, &signature).is_ok())
        }))
    }

    fn list<T>(&self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, RunError> {
        let path = self.folder.join(name);
        let text = self.read(&path)?;
        let mut byte = 0;
        let mut items = Vec::new();
        for line in text.split_inclusive('\n') {
            let item = parse(line.trim_end());
            items.push(item.ok_or_else(|| {
                RunError::integrity(&path, Some(byte), "not an entry of a trust list")
            })?);
            byte += line.len() as u64;
        }
        Ok(items)
    }

    fn read(&self, path: &Path) -> Result<String, RunError> {
        match read_small(path, LIST_BYTES_MAX) {
            Ok(bytes) => String::from_utf8(bytes)
                .map_err(|_| RunError::integrity(path, None, "not a text file")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(e) => Err(RunError::io("read the trust list", path)(e)),
        }
    }

    /// Inserts a line into a sorted list, unless it is there. Readers see the
    /// old or the new list; the lock keeps two writers from losing a line.
    fn add(&self, name: &str, line: &str) -> Result<(), RunError> {
        let path = self.folder.join(name);
        // Nothing has to be written to a list that has it, and perhaps nothing can be.
        if self.read(&path)?.lines().any(|known| known == line) {
            return Ok(());
        }
        std::fs::create_dir_all(&self.folder)
            .map_err(RunError::io("create the trust folder", &self.folder))?;
        let lock_path = self.folder.join("lock");
        let _lock = LockFile::acquire(&lock_path)
            .map_err(RunError::io("lock the trust folder", &lock_path))?;
        let text = self.read(&path)?;
        let mut lines: Vec<&str> = text.lines().collect();
        if let Err(at) = lines.binary_search(&line) {
            lines.insert(at, line);
            let mut text = lines.join("\n");
            text.push('\n');
            write_atomic(&path, text.as_bytes())
                .map_err(RunError::io("write the trust list", &path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    #[test]
    fn plans_are_accepted_when_listed_or_signed_by_a_listed_key() {
        let folder = std::env::temp_dir().join(format!("omex-trust-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let store = TrustStore::new(folder.join("trust"));
        let sig = folder.join("plan.bin.sig");
        let accepts = |header: &[u8]| store.accepts(header, &sig).unwrap();

        assert!(!accepts(b"one"));
        for header in [b"two", b"one", b"two"] {
            store.add_plan(header).unwrap();
        }
        assert_eq!(store.plans().unwrap().len(), 2);
        assert!(store.plans().unwrap().is_sorted());
        assert!(accepts(b"one") && accepts(b"two") && !accepts(b"three"));

        let signer = SigningKey::from_bytes(&[7; 32]);
        let signature = signer.sign(b"three").to_bytes();
        std::fs::write(&sig, format!("{}\n", hex::encode(&signature))).unwrap();
        assert!(!accepts(b"three"));
        store
            .add_key(signer.verifying_key().as_bytes(), "ada")
            .unwrap();
        assert!(accepts(b"three") && !accepts(b"four"));
        std::fs::write(&sig, hex::encode(&[1; 64])).unwrap();
        assert!(!accepts(b"three"));
        std::fs::write(&sig, "xyz").unwrap();
        assert!(store.accepts(b"three", &sig).is_err());

        // y = 2 is on no point of the curve.
        let mut no_point = [0; 32];
        no_point[0] = 2;
        assert!(store.add_key(&no_point, "").is_err());
        std::fs::write(folder.join("trust/plans.txt"), "nonsense\n").unwrap();
        assert!(store.plans().is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
