//! What memory there is, and what room on disks.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes that new allocations can get without swapping, within this process's container; `None` where the system
/// doesn't say.
pub fn available_bytes() -> Option<u64> {
    let info = read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    Some(container_bytes().map_or(machine, |container| container.min(machine)))
}

/// What the container's limit leaves, if there is one. Files that are only cached can be dropped.
fn container_bytes() -> Option<u64> {
    let text = |file: &str| read_to_string(format!("/sys/fs/cgroup/{file}")).ok();
    let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
    let stat = text("memory.stat")?;
    let cached = stat.lines().find_map(|line| line.strip_prefix("file ")?.trim().parse::<u64>().ok());
    Some((number("memory.max")? + cached.unwrap_or(0)).saturating_sub(number("memory.current")?))
}

/// The most memory that this process has had, in bytes; 0 where the system doesn't say.
pub fn peak_rss_bytes() -> u64 {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

/// Bytes that may still be written to the disk of a folder; `None` where the system doesn't say.
pub fn free_disk_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail * disk.f_frsize)
}
