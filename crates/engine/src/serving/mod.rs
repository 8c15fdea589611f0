//! An engine that serves: requests come and go while it runs, and what becomes of them goes out as events.
//!
//! ```text
//!  front (HTTP, text)                                worker (ranks, schedulers)
//!  ToEngine::Submit, Abort, Pulse   ──────────────▶  run(): drain the inbox, one step, events out
//!  per-request streams              ◀──────────────  FromEngine::Events, Load, Pulses
//! ```
//! Both ends are a pair of channels. `frames` carries them between pipes to a worker in a process of its own.

pub mod frames;
mod protocol;
mod worker;

pub use protocol::{EngineInfo, Event, FromEngine, LoadReport, ToEngine};
pub use scheduler::{Places, QueueFull, QueueLimits, Queued};
pub use worker::run;
