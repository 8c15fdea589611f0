//! The limit of open files. A connection is one, and a process may have 1,024 unless it asks for more.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are open besides connections.
const OTHERS: u64 = 64;

/// Asks for as many open files as these connections need: how many connections there is room for now, these at most.
pub fn for_connections(connections: usize) -> usize {
    let (limit, wanted) = (getrlimit(Resource::Nofile), connections as u64 + OTHERS);
    if limit.current.is_some_and(|current| current < wanted) {
        let most = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        // What it refuses is seen below.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit });
    }
    let room = getrlimit(Resource::Nofile).current.map_or(wanted, |current| current.min(wanted));
    room.saturating_sub(OTHERS) as usize
}
