//! Ports that tests tell several processes of.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// A port of loopback that nobody listens on, nor on the few behind it. No other call in this process gets it, and it is below
/// those that systems give to outgoing connections: so it stays free until a job's rank 0 takes it.
pub fn free_port() -> u16 {
    const FIRST: u32 = 20_000;
    const STEP: u32 = 16;
    const STEPS: u32 = (32_768 - FIRST) / STEP;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let mut ports = std::iter::repeat_with(|| {
        let step = std::process::id().wrapping_mul(31).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        (FIRST + step % STEPS * STEP) as u16
    });
    let is_free =
        |port: &u16| (*port..port + STEP as u16).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    ports.by_ref().take(STEPS as usize).find(is_free).expect("loopback has free ports")
}
