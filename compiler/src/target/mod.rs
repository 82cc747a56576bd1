//! Targets: what the compiler knows about the device that a plan is for.
//!
//! A profile is a TOML file of facts, each with its source; those that nobody has measured are
//! marked as estimates. The built-in ones are in `profiles/`; users bring their own. Nothing here
//! probes the machine: the caller fills in `host`.

mod list;
mod profile;
mod read;
mod write;

use std::sync::Arc;

use crate::diagnostic::{Code, Diagnostic, Source, did_you_mean, quoted};

pub use list::{list_json, list_text};
pub use profile::{Arch, CpuFeature, Figure, Profile};
pub use read::{latency_guess, macs_guess, prefetch_guess, read_profiles, zstd_guess};
pub use write::profile_toml;

/// The profile that the caller makes.
pub const HOST: &str = "host";

const FILES: &[(&str, &str)] = &[
    ("laptop.toml", include_str!("profiles/laptop.toml")),
    (
        "mobile-high-tier.toml",
        include_str!("profiles/mobile-high-tier.toml"),
    ),
    (
        "mobile-mid-tier.toml",
        include_str!("profiles/mobile-mid-tier.toml"),
    ),
    ("pi-zero-2w.toml", include_str!("profiles/pi-zero-2w.toml")),
    ("pi4.toml", include_str!("profiles/pi4.toml")),
    ("pi5.toml", include_str!("profiles/pi5.toml")),
    ("wasm32.toml", include_str!("profiles/wasm32.toml")),
];

/// Every built-in profile, sorted by name, the variants of a device by RAM.
pub fn built_in() -> Vec<Profile> {
    let mut profiles = Vec::new();
    for (name, text) in FILES {
        let source = Arc::new(Source::new(*name, *text));
        match read_profiles(&source) {
            Ok(read) => profiles.extend(read),
            Err(errors) => panic!("built-in profile {name}: {errors:?}"),
        }
    }
    profiles
}

/// The built-in profile with this name or alias.
pub fn find(name: &str) -> Option<Profile> {
    built_in()
        .into_iter()
        .find(|profile| profile.answers_to(name))
}

/// As [`find`], or an error that names near ones. `host` is the caller's.
///
/// # Errors
///
/// There is no such profile.
pub fn find_or_explain(name: &str) -> Result<Profile, Diagnostic> {
    find(name).ok_or_else(|| {
        let message = format!("there is no target {}", quoted(name));
        Diagnostic::error(Code::TargetUnknown, message).help(near_or_list(name))
    })
}

/// What to do about a name that no profile has.
pub(crate) fn near_or_list(name: &str) -> String {
    let profiles = built_in();
    let names = profiles.iter().flat_map(|profile| {
        std::iter::once(profile.name.as_str()).chain(profile.aliases.iter().map(String::as_str))
    });
    match did_you_mean(name, names.chain([HOST])) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`omexc targets` lists them; a file of your own is --target device.toml".to_owned(),
    }
}

#[cfg(test)]
mod tests;
