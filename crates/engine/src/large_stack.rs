//! Work that calls itself as deep as what a stranger gave it nests.

use std::panic::resume_unwind;
use std::{io, thread};

/// Of address space; only what is used takes memory. Schemas, grammars and templates of the sizes that are allowed use less,
/// however they are made.
const BYTES: usize = 256 << 20;

/// Does something on a thread of its own that has a large stack, and waits for it. A panic goes on here.
///
/// # Errors
/// The system has no thread.
pub(crate) fn run<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(BYTES).spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
