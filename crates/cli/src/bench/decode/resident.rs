//! Resident memory of one of several candidates in this process.
//!
//! A process has one peak, of all that it did. Here the peak is set back before each action of a candidate, so that its
//! own share can be told: what it kept before, and what the action added at most. Pages of the program itself, the
//! built-in model's among them, become resident once, by the first candidate that reads them, but alone each would need
//! them: they count for every candidate.

use std::collections::BTreeSet;
use std::fs;
use std::rc::Rc;

/// What the process had before the first candidate.
#[derive(Debug, Default)]
pub struct Baseline {
    /// The files that it had mapped: the program and its libraries.
    program: BTreeSet<String>,
    /// Resident bytes of everything else.
    bytes: u64,
}

/// Resident bytes at some time.
#[derive(Clone, Copy)]
struct Memory {
    program: u64,
    rest: u64,
}

impl Baseline {
    /// What it has now.
    pub fn now() -> Self {
        let program = mappings(&fs::read_to_string("/proc/self/smaps").unwrap_or_default())
            .filter_map(|(file, _)| Some(file?.to_owned()))
            .collect();
        let nothing_else = Baseline { program, bytes: 0 };
        Baseline { bytes: nothing_else.memory().rest, ..nothing_else }
    }

    fn memory(&self) -> Memory {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let of_program =
            mappings(&smaps).filter(|(file, _)| file.is_some_and(|file| self.program.contains(file)));
        let program = of_program.map(|(_, bytes)| bytes).sum();
        Memory { program, rest: resident().saturating_sub(program) }
    }
}

/// What a candidate keeps, and the most that it took.
#[derive(Debug, Default)]
pub struct Resident {
    baseline: Rc<Baseline>,
    kept: i64,
}

impl Resident {
    /// Nothing yet.
    pub fn new(baseline: Rc<Baseline>) -> Self {
        Resident { baseline, kept: 0 }
    }

    /// Does something with the candidate. Its result, and the candidate's peak in bytes.
    pub fn during<T>(&mut self, action: impl FnOnce() -> T) -> (T, u64) {
        let before = self.baseline.memory();
        let was_reset = fs::write("/proc/self/clear_refs", "5").is_ok();
        let result = action();
        let (peak, after) = (engine::peak_rss_bytes(), self.baseline.memory());
        let own = self.baseline.bytes.saturating_add_signed(self.kept);
        self.kept += after.rest as i64 - before.rest as i64;
        match was_reset {
            // The program's pages only become more: at the peak they were at most what they are now.
            true => (result, own + after.program + peak.saturating_sub(before.rest + after.program)),
            // Where the system cannot set it back, the process's peak is a bound.
            false => (result, peak),
        }
    }
}

/// The mappings in the text of `smaps`: the file of each, if it has one, and its resident bytes.
fn mappings(smaps: &str) -> impl Iterator<Item = (Option<&str>, u64)> {
    let mut file = None;
    smaps.lines().filter_map(move |line| match line.strip_prefix("Rss:") {
        Some(kb) => Some((file, kilobytes(kb))),
        None => {
            // `55d0-55d4 r-xp 0000 08:01 131 /bin/program`; other lines have a key and a number.
            if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
                file = line.find('/').map(|at| &line[at..]);
            }
            None
        }
    })
}

/// Resident bytes of this process; 0 where the system doesn't say.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")).map_or(0, kilobytes)
}

fn kilobytes(text: &str) -> u64 {
    text.trim().trim_end_matches("kB").trim().parse::<u64>().map_or(0, |kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    const MIB: u64 = 1 << 20;
    /// What is measured is the whole process: one test at a time, as far as they are these.
    static ALONE: Mutex<()> = Mutex::new(());

    fn can_be_set_back() -> bool {
        let can = fs::write("/proc/self/clear_refs", "5").is_ok();
        if !can {
            job::say!("skipped: this system cannot set a process's peak back");
        }
        can
    }

    #[test]
    fn a_candidate_is_charged_what_it_took_and_not_what_others_keep() {
        if !can_be_set_back() {
            return;
        }
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let page = |mib: u64| vec![1u8; (mib * MIB) as usize];
        let baseline = Rc::new(Baseline::default());
        let (mut first, mut second) = (Resident::new(baseline.clone()), Resident::new(baseline));
        let (kept, _) = first.during(|| page(64));
        let (_, peak) = second.during(|| drop(std::hint::black_box(page(32))));
        assert!(peak < 60 * MIB, "{peak}");
        drop(kept);
    }

    #[test]
    fn pages_of_the_program_count_for_each_candidate_that_would_need_them() {
        static PAGES: [u8; 16 << 20] = [1; 16 << 20];
        if !can_be_set_back() {
            return;
        }
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let baseline = Rc::new(Baseline::now());
        let read = || {
            (0..PAGES.len()).step_by(4096).map(|at| u64::from(std::hint::black_box(&PAGES)[at])).sum::<u64>()
        };
        let peaks = [(); 2].map(|()| Resident::new(baseline.clone()).during(read).1);
        assert!(peaks.iter().all(|&peak| peak > 16 * MIB), "{peaks:?}");
        assert!(peaks[0].abs_diff(peaks[1]) < 8 * MIB, "{peaks:?}");
    }

    #[test]
    fn a_mapping_is_of_a_file_or_of_none() {
        let smaps = "55d0-55d4 r-xp 0000 08:01 131  /bin/a program\nSize: 4 kB\nRss:   8 kB\n\
                     7f00-7f10 rw-p 0000 00:00 0 \nRss: 4 kB\n7ffc-7ffd rw-p 0000 00:00 0   [stack]\nRss: 12 kB\n";
        let found: Vec<_> = mappings(smaps).collect();
        assert_eq!(found, [(Some("/bin/a program"), 8192), (None, 4096), (None, 12288)]);
    }
}
