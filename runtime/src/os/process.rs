//! What the system says of this process.

use std::io;

/// A field of `/proc/self/status` in bytes.
fn status_bytes(field: &str) -> Option<u64> {
    proc_number("/proc/self/status", field).map(|kib| kib * 1024)
}

/// The number after `field:` in a file of `/proc`.
fn proc_number(path: &str, field: &str) -> Option<u64> {
    field_number(path, |line| line.strip_prefix(field)?.strip_prefix(':'))
}

/// The first number behind what `find` strips off a line, in a file that is
/// read with a fixed buffer.
fn field_number(path: &str, find: impl Fn(&str) -> Option<&str>) -> Option<u64> {
    let mut buffer = [0; 4096];
    let len = read_start(path, &mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..len]).ok()?;
    let rest = text.lines().find_map(find)?;
    rest.split_whitespace().next()?.parse().ok()
}

fn read_start(path: &str, buffer: &mut [u8]) -> io::Result<usize> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// Peak resident set (VmHWM) in bytes, or 0 where the system does not tell.
pub fn rss_peak_bytes() -> u64 {
    status_bytes("VmHWM").unwrap_or(0)
}

/// Resident set (VmRSS) in bytes, or 0 where the system does not tell.
pub fn rss_bytes() -> u64 {
    status_bytes("VmRSS").unwrap_or(0)
}

/// The part of the resident set that files back (RssFile), in bytes.
pub fn rss_file_bytes() -> u64 {
    status_bytes("RssFile").unwrap_or(0)
}

/// What of the resident set's files is mapped in huge pages, in bytes.
pub fn rss_file_huge_bytes() -> u64 {
    let kib = proc_number("/proc/self/smaps_rollup", "FilePmdMapped");
    kib.unwrap_or(0) * 1024
}

/// Bytes that this process has caused to be read from storage.
pub fn bytes_read() -> u64 {
    proc_number("/proc/self/io", "read_bytes").unwrap_or(0)
}

/// The texts that a process was started with.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartText {
    pub arguments: u64,
    /// With the zero behind each.
    pub arguments_bytes: u64,
    pub environment_bytes: u64,
}

/// The arguments and the environment of this process; nothing where the system does not
/// tell. Read with a fixed buffer.
pub fn start_text() -> StartText {
    let (arguments, arguments_bytes) = zeros_of("/proc/self/cmdline").unwrap_or_default();
    let (_, environment_bytes) = zeros_of("/proc/self/environ").unwrap_or_default();
    StartText {
        arguments,
        arguments_bytes,
        environment_bytes,
    }
}

/// How many bytes of a file are zero, and all of them.
fn zeros_of(path: &str) -> io::Result<(u64, u64)> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut buffer = [0; 4096];
    let (mut zeros, mut bytes) = (0, 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((zeros, bytes)),
            Ok(n) => {
                zeros += buffer[..n].iter().filter(|&&byte| byte == 0).count() as u64;
                bytes += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// What the stack of the process's first thread may grow to; `None` without a limit.
pub fn stack_limit_bytes() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Stack).current
}

/// Memory that this process can still get, in bytes: what the system has
/// available, within the limits of its memory cgroups. `None` where the system
/// does not tell.
pub fn memory_available_bytes() -> Option<u64> {
    let system = proc_number("/proc/meminfo", "MemAvailable")? * 1024;
    Some(system.min(cgroup_available_bytes().unwrap_or(u64::MAX)))
}

/// Names of a memory controller's files: limit, use, and in the statistics the
/// page cache, which gives way however often it was read.
struct Controller {
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    cache: [&'static str; 2],
}

const V1: Controller = Controller {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file", "total_active_file"],
};
const V2: Controller = Controller {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    cache: ["inactive_file", "active_file"],
};

/// The lowest limit of the memory cgroups of this process, in bytes.
pub fn memory_limit_bytes() -> Option<u64> {
    least_of_groups(|controller, group| controller.number(group, controller.limit))
}

/// What the memory cgroups of this process may still be charged.
fn cgroup_available_bytes() -> Option<u64> {
    least_of_groups(|controller, group| {
        // "max" is no number: no limit.
        let limit = controller.number(group, controller.limit)?;
        let usage = controller.number(group, controller.usage)?;
        let stat = format!("{}{group}/memory.stat", controller.root);
        let cache = controller.cache.iter();
        let cache = cache.filter_map(|name| field_number(&stat, |line| line.strip_prefix(name)));
        Some(limit.saturating_sub(usage.saturating_sub(cache.sum())))
    })
}

/// The least of a figure over the innermost memory cgroup of this process and
/// those around it.
fn least_of_groups(figure: impl Fn(&Controller, &str) -> Option<u64>) -> Option<u64> {
    let mut buffer = [0; 4096];
    let len = read_start("/proc/self/cgroup", &mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..len]).ok()?;
    let (controller, mut group) = memory_group(text)?;
    let mut least: Option<u64> = None;
    loop {
        if let Some(bytes) = figure(&controller, group) {
            least = Some(least.map_or(bytes, |l| l.min(bytes)));
        }
        match group.rsplit_once('/') {
            Some((parent, _)) => group = parent,
            None => return least,
        }
    }
}

/// The memory controller of a process and its group there, from the lines of
/// `/proc/PID/cgroup`: version 1 where it manages memory, else version 2.
fn memory_group(text: &str) -> Option<(Controller, &str)> {
    let groups = || text.lines().filter_map(|line| line.split_once(':'));
    let v1 = groups().find_map(|(_, rest)| {
        let (controllers, group) = rest.split_once(':')?;
        let is_memory = controllers.split(',').any(|c| c == "memory");
        is_memory.then_some((V1, group))
    });
    let v2 = || text.lines().find_map(|line| line.strip_prefix("0::"));
    let (controller, group) = v1.or_else(|| Some((V2, v2()?)))?;
    Some((controller, group.trim_end_matches('/')))
}

impl Controller {
    fn number(&self, group: &str, name: &str) -> Option<u64> {
        let mut buffer = [0; 32];
        let len = read_start(&format!("{}{group}/{name}", self.root), &mut buffer).ok()?;
        let text = std::str::from_utf8(&buffer[..len]).ok()?;
        text.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_groups_of_both_versions_are_found() {
        let of = |text| super::memory_group(text).map(|(c, group)| (c.limit, group));
        let (v1, v2) = (super::V1.limit, super::V2.limit);
        let mixed = "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/c\n";
        assert_eq!(of(mixed), Some((v1, "/a/b")));
        assert_eq!(of("4:memory:/\n0::/\n"), Some((v1, "")));
        assert_eq!(of("1:cpu:/x\n0::/user.slice\n"), Some((v2, "/user.slice")));
        assert_eq!(of("0::/\n"), Some((v2, "")));
        assert_eq!(of(""), None);
    }

    #[test]
    fn the_texts_of_the_start_are_known() {
        let text = super::start_text();
        let arguments: Vec<_> = std::env::args_os().collect();
        let bytes = arguments.iter().map(|argument| argument.len() as u64 + 1);
        let counted = (text.arguments, text.arguments_bytes);
        assert_eq!(counted, (arguments.len() as u64, bytes.sum::<u64>()));
        assert!(text.environment_bytes > 0);
    }

    #[test]
    fn the_resident_set_is_known() {
        assert!(super::rss_bytes() > 0);
        assert!(super::rss_peak_bytes() >= super::rss_bytes() / 2);
    }
}
