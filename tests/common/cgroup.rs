//! Memory cgroups that tests make for the processes that they start.

#![allow(dead_code, reason = "every test binary uses a part")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Scratch, ok, report, u64_of};

/// A memory cgroup below this process's own, removed when dropped.
pub(crate) struct Cgroup {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Tells people past the capture of output that something was not tested.
fn note(what: &str) {
    writeln!(std::io::stderr(), "\n*** {what} ***").expect("standard error is open");
}

impl Cgroup {
    /// `None`, and a loud note, where this process may make no memory cgroup.
    pub(crate) fn new(name: &str) -> Option<Cgroup> {
        let made = Cgroup::make(&format!("{name}-{}", std::process::id()));
        if let Err(why) = &made {
            note(&format!(
                "NO MEMORY CGROUP CAN BE MADE HERE ({why}): what depends on one is not tested"
            ));
        }
        made.ok()
    }

    fn make(name: &str) -> Result<Cgroup, String> {
        let groups = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        let v1 = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, group) = rest.split_once(':')?;
            (controllers.split(',').any(|c| c == "memory")).then_some(group)
        });
        let (root, group, version) = match v1 {
            Some(group) => ("/sys/fs/cgroup/memory", group, Version::V1),
            None => {
                let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
                ("/sys/fs/cgroup", group.ok_or("no group")?, Version::V2)
            }
        };
        let folder = PathBuf::from(format!("{root}{group}")).join(name);
        fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let group = Cgroup { folder, version };
        // Without the controller the group has no limit to set.
        group.limit(u64::MAX >> 12)?;
        Ok(group)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), String> {
        let path = self.folder.join(file);
        fs::write(&path, value).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Limits memory, and takes swap away.
    pub(crate) fn limit(&self, bytes: u64) -> Result<(), String> {
        let bytes = bytes.to_string();
        match self.version {
            Version::V1 => {
                self.write("memory.swappiness", "0")?;
                self.write("memory.limit_in_bytes", &bytes)
            }
            Version::V2 => {
                let _ = self.write("memory.swap.max", "0");
                self.write("memory.max", &bytes)
            }
        }
    }

    /// Bytes that the group was charged at most; `None` where the system does
    /// not count.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        let file = match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        let text = fs::read_to_string(self.folder.join(file)).ok()?;
        text.trim().parse().ok()
    }

    /// Page cache that the group is charged for.
    pub(crate) fn cache_bytes(&self) -> u64 {
        let field = match self.version {
            Version::V1 => "cache ",
            Version::V2 => "file ",
        };
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let line = stat.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }

    /// The command, run within the group.
    pub(crate) fn run(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        let procs = self.folder.join("cgroup.procs");
        inside
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(procs)
            .arg(command.get_program())
            .args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside.stdin(std::process::Stdio::null());
        inside
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A group that still has processes stays; the system removes none.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The most that several runs of a plan were charged, each of which read the
/// plan's files first, all or all but their starts, on a system that maps no file
/// in huge pages; `None`, and a loud note, where that cannot be known.
///
/// A core charges up to 64 pages ahead, so that one run alone may have needed
/// less than the next.
pub(crate) fn cold_charge_peak(name: &str, scratch: &Scratch, run: &Command) -> Option<u64> {
    // Where the program's file is not cached, the system reads ahead of its pages: more
    // than a run uses, that gives way where a group is full.
    ok(&mut Cgroup::new(name)?.run(run));
    let mut highest = 0;
    for partly in [false, true, false] {
        let group = Cgroup::new(name)?;
        // The group that first reads a file is charged for it.
        forget(&scratch.path("."));
        if partly {
            read_starts(&scratch.path("."));
        }
        let report = report(&mut group.run(run));
        let Some(peak) = group.peak_bytes() else {
            note("THIS SYSTEM DOES NOT COUNT A CGROUP'S PEAK");
            return None;
        };
        // Whoever ran the program first is charged for its own pages.
        let elsewhere = u64_of(&report, "rss_file_bytes").saturating_sub(group.cache_bytes());
        // Huge pages, which not every system has, take no page table and no
        // node of the page cache's index: 4 KiB per 2 MiB, 584 bytes per 256 KiB.
        let huge = u64_of(&report, "rss_file_huge_bytes");
        let saved = huge / 512 + huge / (256 << 10) * 584;
        highest = highest.max(peak + elsewhere + saved);
    }
    Some(highest)
}

/// Takes the files of a folder out of the page cache, so that whoever reads
/// them next is charged for them.
pub(crate) fn forget(folder: &Path) {
    for_each_file(folder, &|file| {
        file.sync_all().unwrap();
        omex_runtime::os::file::forget(file).unwrap();
    });
}

/// Brings the starts of a folder's files to the page cache.
fn read_starts(folder: &Path) {
    for_each_file(folder, &|file| {
        file.read_at(&mut [0], 0).unwrap();
    });
}

fn for_each_file(folder: &Path, act: &dyn Fn(&fs::File)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            for_each_file(&path, act);
        } else if let Ok(file) = fs::File::open(&path) {
            act(&file);
        }
    }
}
