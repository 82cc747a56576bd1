//! `omex cache`: packed models and the plans of `omex execute`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use omex_compiler::diagnostic::{Code, Diagnostic};
use omex_compiler::import::pack;

use super::output::{Failure, bytes};
use super::places;

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List what is cached
    List(CacheArgs),
    /// Remove what has not been used for a while
    Gc(GcArgs),
}

#[derive(Debug, Args)]
pub struct CacheArgs {
    /// The cache directory, instead of the user's
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct GcArgs {
    #[command(flatten)]
    cache: CacheArgs,
    /// Remove what has not been used for so many days
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    days: u32,
    /// Say what would be removed, and keep it
    #[arg(long)]
    dry_run: bool,
}

struct Entry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
    what: String,
}

pub fn cache(command: &CacheCommand) -> Result<(), Failure> {
    match command {
        CacheCommand::List(args) => {
            let entries = entries(&directory(args)?);
            print(&entries, args.json)
        }
        CacheCommand::Gc(args) => {
            let age = Duration::from_secs(u64::from(args.days) * 24 * 3600);
            let mut entries = entries(&directory(&args.cache)?);
            entries.retain(|e| e.used.elapsed().is_ok_and(|unused| unused >= age));
            if !args.dry_run {
                for entry in &entries {
                    std::fs::remove_file(&entry.path).map_err(|e| {
                        let message = format!("the file cannot be removed: {e}");
                        Diagnostic::error(Code::FileWrite, message)
                            .in_file(entry.path.to_string_lossy(), None)
                    })?;
                }
            }
            print(&entries, args.cache.json)
        }
    }
}

fn directory(args: &CacheArgs) -> Result<PathBuf, Failure> {
    match &args.cache_dir {
        Some(directory) => Ok(directory.clone()),
        None => Ok(places()?.cache),
    }
}

/// Whether this is a name that builds give to files of the cache: a digest.
fn is_ours(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.is_some_and(|stem| stem.len() == 64 && stem.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Cached files, sorted by path. What cannot be read is not listed, nor what
/// others keep in a folder that serves as the cache.
fn entries(directory: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    for folder in [directory.to_owned(), directory.join("plans")] {
        for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = file.path();
            let Ok(metadata) = file.metadata() else {
                continue;
            };
            if !is_ours(&path) {
                continue;
            }
            let what = match path.extension().and_then(|e| e.to_str()) {
                Some("omex") => match pack::open(&path) {
                    Ok(packed) if packed.index.model_name.is_empty() => "packed model".to_owned(),
                    Ok(packed) => format!("packed model of {}", packed.index.model_name),
                    Err(_) => "damaged packed model".to_owned(),
                },
                Some("zst") => "compressed pages of a packed model".to_owned(),
                Some("bin") => "plan".to_owned(),
                _ => continue,
            };
            let times = [metadata.accessed(), metadata.modified()];
            let used = times.into_iter().flatten().max();
            entries.push(Entry {
                path,
                bytes: metadata.len(),
                used: used.unwrap_or(SystemTime::UNIX_EPOCH),
                what,
            });
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    entries
}

fn print(entries: &[Entry], json: bool) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    if json {
        let list: Vec<_> = entries
            .iter()
            .map(|e| serde_json::json!({"path": e.path, "bytes": e.bytes, "what": e.what}))
            .collect();
        let object = serde_json::json!({"schema_version": 1, "entries": list});
        writeln!(stdout, "{object}")?;
        return Ok(());
    }
    for e in entries {
        let path = e.path.display();
        writeln!(stdout, "{:>10}  {path}  {}", bytes(e.bytes), e.what)?;
    }
    let total = entries.iter().map(|e| e.bytes).sum();
    writeln!(stdout, "{:>10}  in {} files", bytes(total), entries.len())?;
    Ok(())
}
