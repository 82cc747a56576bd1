//! Where OMEX keeps what belongs to a user.

use std::ffi::OsString;
use std::path::PathBuf;

/// Folders of a user's OMEX files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Trusted code digests and keys.
    pub trust: PathBuf,
    /// Packed models and built plans.
    pub cache: PathBuf,
}

impl Places {
    /// `$OMEX_HOME`, else `~/.omex` if it exists, else the XDG folders.
    /// `None` when the environment names no home at all.
    pub fn from_environment() -> Option<Places> {
        Places::find(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn find(variable: impl Fn(&str) -> Option<OsString>) -> Option<Places> {
        let within = |home: PathBuf| Places {
            trust: home.join("trust"),
            cache: home.join("cache"),
        };
        if let Some(home) = variable("OMEX_HOME") {
            return Some(within(home.into()));
        }
        let home = PathBuf::from(variable("HOME")?);
        let dotted = home.join(".omex");
        if dotted.is_dir() {
            return Some(within(dotted));
        }
        let folder = |name: &str, default: &str| {
            // The XDG base directory specification ignores relative paths.
            variable(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .unwrap_or_else(|| home.join(default))
                .join("omex")
        };
        Some(Places {
            trust: folder("XDG_DATA_HOME", ".local/share").join("trust"),
            cache: folder("XDG_CACHE_HOME", ".cache"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn omex_home_wins_over_xdg_folders() {
        let env = |pairs: &'static [(&str, &str)]| {
            Places::find(move |name| {
                let value = pairs.iter().find(|(n, _)| *n == name);
                value.map(|(_, v)| OsString::from(v))
            })
        };
        let trust = |places: Option<Places>| places.unwrap().trust;
        assert_eq!(
            trust(env(&[("OMEX_HOME", "/o"), ("HOME", "/nowhere")])),
            PathBuf::from("/o/trust")
        );
        let xdg = env(&[("HOME", "/nowhere"), ("XDG_DATA_HOME", "/data")]);
        assert_eq!(trust(xdg), PathBuf::from("/data/omex/trust"));
        let relative = env(&[("HOME", "/nowhere"), ("XDG_DATA_HOME", "data")]);
        assert_eq!(
            trust(relative),
            PathBuf::from("/nowhere/.local/share/omex/trust")
        );
        assert_eq!(env(&[]), None);
    }
}
