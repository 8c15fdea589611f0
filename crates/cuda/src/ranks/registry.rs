//! How ranks of a process find each other's memory: by numbers, which travel through the group.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::driver::SharedMemory;

static MEMORY: Mutex<Option<HashMap<u64, Arc<dyn SharedMemory>>>> = Mutex::new(None);

/// A number that no other process has, on whatever host.
pub(super) fn process() -> u64 {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    *PROCESS.get_or_init(|| {
        let mut random = RandomState::new().build_hasher();
        random.write_u32(std::process::id());
        random.finish()
    })
}

/// Memory that others find under a number, until this is dropped.
pub(super) struct Listed(pub u64);

impl Listed {
    pub fn new(memory: Arc<dyn SharedMemory>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        with(|all| all.insert(number, memory));
        Listed(number)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        with(|all| all.remove(&self.0));
    }
}

/// The memory of a number.
pub(super) fn find(number: u64) -> Option<Arc<dyn SharedMemory>> {
    with(|all| all.get(&number).cloned())
}

fn with<T>(work: impl FnOnce(&mut HashMap<u64, Arc<dyn SharedMemory>>) -> T) -> T {
    let mut all = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    work(all.get_or_insert_default())
}
