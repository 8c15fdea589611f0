//! Which sequences run in the next step, and in which KV blocks: a pure function of what it was told.
//!
//! No clock, no I/O, no threads, no randomness, and nothing of the other crates: the engine, a simulator and
//! the tests drive the same code, and the same calls give the same answers.
//!
//! ```text
//!            add                    schedule                        complete
//!  Request ───────▶ waiting ───────────────────────▶ running ─────────────────────▶ (ended)
//!            │      first come, first served,        │     ▲     stopped, or max_tokens
//!            │      once all its blocks are free     │     │     reached: its blocks are free
//!            ▼                                       └─────┘
//!      SchedulerError                  one step: a decode row, or a chunk of its prompt
//! ```
//!
//! A step is three lines of the engine:
//!
//! ```
//! # use scheduler::{ContextParallel, Request, Scheduler, SchedulerConfig};
//! # let context = ContextParallel::OFF;
//! # let config = SchedulerConfig { num_blocks: 8, block_size: 16, max_num_seqs: 4, max_num_batched_tokens: 64, context };
//! # let run = |batch: &scheduler::Batch| {
//! #     let sampled = batch.items.iter().filter(|i| i.samples);
//! #     sampled.map(|i| (i.id, 0u32, false)).collect::<Vec<_>>()
//! # };
//! let mut scheduler = Scheduler::new(config);
//! scheduler.add(Request { id: 0, prompt: vec![1, 2, 3], max_tokens: 5 })?;
//! while let Some(batch) = scheduler.schedule() {
//!     let outputs = run(&batch);
//!     scheduler.complete(&batch, &outputs);
//! }
//! assert!(scheduler.is_idle());
//! # Ok::<(), scheduler::SchedulerError>(())
//! ```
//!
//! What holds after every call (asserted in debug builds):
//! - A block is free or has exactly one holder.
//! - The blocks that running sequences may still ask for are free, at the owners that will give them: who is admitted
//!   finishes.
//! - All blocks of a segment have one owner.
//! - At most one running sequence is still in its prompt, so a step has room for a token of everyone and every
//!   running sequence gets further in every step.

mod batch;
mod block_manager;
mod block_pool;
mod context;
mod error;
mod invariants;
mod prefix_tree;
mod queue_limits;
mod request;
mod scheduler;
mod sequence;
mod step;
mod step_budget;
mod usage;

pub use batch::{Batch, BatchItem};
pub use context::ContextParallel;
pub use error::SchedulerError;
pub use queue_limits::{QueueFull, QueueLimits};
pub use request::{CacheUse, Request};
pub use scheduler::{Scheduler, SchedulerConfig};
pub use step_budget::StepBudget;
pub use usage::{Counters, Usage};
