//! The memory of a group whose ranks are processes of one host.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::layout::Layout;
use super::region::Region;
use super::{SharedConfig, SharedRank};

/// The memory of a group whose ranks are processes of one host, or threads of several.
///
/// One process creates it; the others get its file descriptor, by inheritance, over a socket, or by opening
/// `/proc/PID/fd/N` for reading and writing. It is in no file system: it goes when the last process that has it ends,
/// however that ends.
pub struct SharedSegment {
    region: Arc<Region>,
}

impl SharedSegment {
    /// Fresh memory for a group.
    ///
    /// # Errors
    /// The system has no memory or no descriptor for it.
    ///
    /// # Panics
    /// If there are no ranks.
    pub fn create(ranks: usize, config: &SharedConfig) -> io::Result<Self> {
        let region = Region::for_processes(Layout::new(ranks, config.slot_bytes))?;
        Ok(SharedSegment { region: Arc::new(region) })
    }

    /// The memory that another process created.
    ///
    /// # Errors
    /// The descriptor is not that of a segment, or of one for another number of ranks, another size of slots, or
    /// another version.
    ///
    /// # Panics
    /// If there are no ranks.
    pub fn open(fd: OwnedFd, ranks: usize, config: &SharedConfig) -> io::Result<Self> {
        let region = Region::open(fd, Layout::new(ranks, config.slot_bytes))?;
        Ok(SharedSegment { region: Arc::new(region) })
    }

    /// The descriptor to hand to other processes.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.region.fd().expect("a region for processes has a descriptor")
    }

    /// Takes a rank. Of `config`, `spin` is as given unless ranks outnumber the cores that are on line: processes that
    /// share few cores set it to zero.
    ///
    /// # Errors
    /// Somebody else, in this process or another, is that rank, or has been.
    ///
    /// # Panics
    /// If the group has no such rank.
    pub fn rank(&self, rank: usize, config: &SharedConfig) -> io::Result<SharedRank> {
        use super::sync::Rendezvous;
        if !self.region.claim(rank) {
            let message =
                format!("rank {rank} of the shared segment is taken: two processes have the same rank");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        let spin = if self.region.ranks() > cores_on_line() { Duration::ZERO } else { config.spin };
        Ok(SharedRank::new(self.region.clone(), rank, spin, config.deadline))
    }

    /// Ends every call of every rank, now and from now on: for a process that started the ranks and lost one. The
    /// first failure counts.
    pub fn abort(&self, rank: usize, message: &str) {
        self.region.fail_with(rank, message);
    }
}

impl std::fmt::Debug for SharedSegment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedSegment({:?})", self.as_fd())
    }
}

/// The cores of the machine, not of this process: each rank's process may be bound to one of them.
fn cores_on_line() -> usize {
    let listed = std::fs::read_to_string("/sys/devices/system/cpu/online").ok();
    let own = std::thread::available_parallelism().map_or(1, |n| n.get());
    listed.and_then(|list| count_listed(&list)).unwrap_or(own)
}

/// How many numbers a list like `0-3,8` has.
fn count_listed(list: &str) -> Option<usize> {
    let count = |range: &str| match range.split_once('-') {
        Some((first, last)) => Some((last.parse::<usize>().ok()? + 1).saturating_sub(first.parse().ok()?)),
        None => range.parse::<usize>().ok().map(|_| 1),
    };
    list.trim().split(',').map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_counted() {
        assert_eq!(count_listed("0-3,8\n"), Some(5));
        assert_eq!(count_listed("0\n"), Some(1));
        assert_eq!(count_listed(""), None);
        assert!(cores_on_line() > 0);
    }
}
