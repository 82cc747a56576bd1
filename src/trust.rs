//! `omex trust`: whose code this machine maps.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use omex_runtime::{Places, RunError, TrustStore};

pub const HELP: &str = "\
List or extend what code this machine maps

Usage: omex trust list
       omex trust add KEY [NAME]

KEY is an ed25519 public key: 64 hexadecimal digits, or a file that holds them.
";

/// Runs `omex trust ARGUMENTS`.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    match trust(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            crate::tell!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn trust(arguments: &[OsString]) -> Result<(), RunError> {
    let words: Vec<&str> = arguments.iter().filter_map(|a| a.to_str()).collect();
    let places = Places::from_environment().ok_or_else(|| {
        RunError::Usage("neither OMEX_HOME nor HOME says where trust is kept".to_owned())
    })?;
    let store = TrustStore::new(places.trust);
    match words[..] {
        ["list"] => list(&store),
        ["add", key] => add(&store, key, ""),
        ["add", key, name] => add(&store, key, name),
        ["-h" | "--help"] => {
            print(HELP);
            Ok(())
        }
        _ => Err(RunError::Usage(
            "what to do is missing: `omex trust list` or `omex trust add KEY`".to_owned(),
        )),
    }
}

fn list(store: &TrustStore) -> Result<(), RunError> {
    let mut text = format!("trust is kept in {}\n", store.folder().display());
    for key in store.keys()? {
        text.push_str(&format!("key   {} {}\n", hex(&key.key), key.name));
    }
    for digest in store.plans()? {
        text.push_str(&format!("plan  {}\n", hex(&digest)));
    }
    print(&text);
    Ok(())
}

fn add(store: &TrustStore, key: &str, name: &str) -> Result<(), RunError> {
    let text = match parse(key) {
        Some(_) => key.to_owned(),
        None => std::fs::read_to_string(key).map_err(|error| RunError::Io {
            doing: "read the key",
            path: key.into(),
            error,
        })?,
    };
    let key = parse(text.trim()).ok_or_else(|| {
        RunError::Usage("a key is 64 hexadecimal digits or a file that holds them".to_owned())
    })?;
    store.add_key(&key, name)
}

fn hex(bytes: &[u8; 32]) -> String {
    blake3::Hash::from(*bytes).to_hex().to_string()
}

fn parse(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text).ok().map(Into::into)
}

pub(crate) fn print(text: &str) {
    // Whoever closed the pipe has seen enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
