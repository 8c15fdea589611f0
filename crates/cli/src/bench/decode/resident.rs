//! Resident memory of one of several candidates in this process.
//!
//! A process has one peak, of all that it did. Here the peak is set back before each action of a candidate, so that its
//! own share can be told: what it kept before, and what the action added at most.

use std::fs;

/// What a candidate keeps, and the most that it took.
#[derive(Debug, Default)]
pub struct Resident {
    /// Of the process, before the candidate.
    base: u64,
    kept: i64,
}

impl Resident {
    /// Nothing yet. `base` is what the process had before the first candidate: its code, and such.
    pub fn new(base: u64) -> Self {
        Resident { base, kept: 0 }
    }

    /// Does something with the candidate. Its result, and the candidate's peak in bytes.
    pub fn during<T>(&mut self, action: impl FnOnce() -> T) -> (T, u64) {
        let before = now();
        let was_reset = fs::write("/proc/self/clear_refs", "5").is_ok();
        let result = action();
        let (after, peak) = (now(), engine::peak_rss_bytes());
        let base = self.base.saturating_add_signed(self.kept);
        self.kept += after as i64 - before as i64;
        match was_reset {
            true => (result, base + peak.saturating_sub(before)),
            // Where the system cannot set it back, the process's peak is a bound.
            false => (result, peak),
        }
    }
}

/// Resident bytes of this process; 0 where the system doesn't say.
pub fn now() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_charged_what_it_took_and_not_what_others_keep() {
        const MIB: u64 = 1 << 20;
        if fs::write("/proc/self/clear_refs", "5").is_err() {
            eprintln!("skipped: this system cannot set a process's peak back");
            return;
        }
        let page = |mib: u64| vec![1u8; (mib * MIB) as usize];
        let (mut first, mut second) = (Resident::new(MIB), Resident::new(MIB));
        let (kept, _) = first.during(|| page(64));
        let (_, peak) = second.during(|| drop(std::hint::black_box(page(32))));
        assert!(peak < 60 * MIB, "{peak}");
        drop(kept);
    }
}
