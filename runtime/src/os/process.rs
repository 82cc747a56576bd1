//! What the system says of this process.

use std::io;

/// A field of `/proc/self/status` in bytes.
fn status_bytes(field: &str) -> Option<u64> {
    proc_number("/proc/self/status", field).map(|kib| kib * 1024)
}

/// The number after `field:` in a file of `/proc`, read with a fixed buffer.
fn proc_number(path: &str, field: &str) -> Option<u64> {
    let mut buffer = [0; 4096];
    let len = read_start(path, &mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..len]).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
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

/// Bytes that this process has caused to be read from storage.
pub fn bytes_read() -> u64 {
    proc_number("/proc/self/io", "read_bytes").unwrap_or(0)
}

/// Memory that this process can still get, in bytes: what the system has
/// available, within the limit of its memory cgroup (v2). `None` where the
/// system does not tell.
pub fn memory_available_bytes() -> Option<u64> {
    let system = proc_number("/proc/meminfo", "MemAvailable")? * 1024;
    Some(system.min(cgroup_available_bytes().unwrap_or(u64::MAX)))
}

/// What the innermost cgroup of this process may still be charged.
fn cgroup_available_bytes() -> Option<u64> {
    let mut buffer = [0; 4096];
    let len = read_start("/proc/self/cgroup", &mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..len]).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let number = |name: &str| {
        let mut buffer = [0; 32];
        let len = read_start(&format!("/sys/fs/cgroup{path}/{name}"), &mut buffer).ok()?;
        let text = std::str::from_utf8(&buffer[..len]).ok()?;
        text.trim().parse::<u64>().ok()
    };
    // "max" is no number: no limit.
    let limit = number("memory.max")?;
    Some(limit.saturating_sub(number("memory.current")?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_resident_set_is_known() {
        assert!(super::rss_bytes() > 0);
        assert!(super::rss_peak_bytes() >= super::rss_bytes() / 2);
    }
}
