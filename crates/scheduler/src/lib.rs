//! Which sequences run in the next step, and in which KV blocks: a pure function of what it was told.
//!
//! No clock, no I/O, no threads, no randomness, and nothing of the other crates: the engine, a simulator and
//! the tests drive the same code, and the same calls give the same answers.
//!
//! ```text
//!            add                    schedule                        complete
//!  Request ───────▶ waiting ───────────────────────▶ running ─────────────────────▶ (ended)
//!            │         ▲    first come, first served,  │  ▲  │   stopped, or max_tokens
//!            │         │    once there are blocks for  │  │  │   reached: its blocks are
//!            ▼         │    all of its tokens          │  └──┘   free, or cached
//!      SchedulerError  └───────────────────────────────┘  one step: a decode row, or a chunk of its prompt
//!                         preempted: the latest arrival,
//!                         when blocks run out
//!
//!  a block:   free ───▶ held by sequences ───▶ cached ───▶ free
//!                            ▲  full, or its    │   least recently used first,
//!                            │  holder ended    │   the end of a text before its beginning
//!                            └──────────────────┘
//!                              the same tokens again
//! ```
//!
//! A step is three lines of the engine:
//!
//! ```
//! # use scheduler::{CacheUse, ContextParallel, Request, Scheduler, SchedulerConfig};
//! # let config = SchedulerConfig {
//! #     num_blocks: 8,
//! #     block_size: 16,
//! #     max_num_seqs: 4,
//! #     max_num_batched_tokens: 64,
//! #     context: ContextParallel::OFF,
//! #     prefix_caching: true,
//! # };
//! # let run = |batch: &scheduler::Batch| {
//! #     let sampled = batch.items.iter().filter(|i| i.samples);
//! #     sampled.map(|i| (i.id, 0u32, false)).collect::<Vec<_>>()
//! # };
//! let mut scheduler = Scheduler::new(config);
//! scheduler.add(Request { id: 0, prompt: vec![1, 2, 3], max_tokens: 5, cache: CacheUse::default() })?;
//! while let Some(batch) = scheduler.schedule(64) {
//!     let outputs = run(&batch);
//!     scheduler.complete(&batch, &outputs);
//! }
//! assert!(scheduler.is_idle());
//! # Ok::<(), scheduler::SchedulerError>(())
//! ```
//!
//! **Preemption.** Nothing is promised: a sequence takes a block when it needs one. If there is none, the latest arrival of
//! those that run gives up its blocks and waits again, before all that came later. What it generated it keeps, and computes
//! again like a prompt, unless the prefix cache still has it; so it samples at the same positions as if nothing had been.
//! The oldest request never gives way, and every request is the oldest one day: whoever was added ends.
//!
//! **Prefix cache.** Full blocks are found by their tokens and those before them (`PrefixTree`); sequences that begin alike
//! share them. Of a block that differs later, or is not full, a sequence gets a copy and goes on from where they differ
//! ([`Batch::copies`]), for nobody writes to a block that others read. Blocks are in the tree from the step on that fills
//! them: in each layer a step writes keys and values of all its rows before it reads any, so a later item of the same step
//! may read them too. Copies come before a step, so they are made of what earlier steps wrote.
//!
//! **Budgets.** [`StepBudget`] says from measured times how many rows a step should have, [`QueueLimits`] how much may wait.
//!
//! What holds after every call (asserted in debug builds, block by block in pools of up to 4,096):
//! - Free, cached and used blocks are all blocks; a block has as many references as tables it is in.
//! - Only what is in the tree is shared, and who holds a block of the tree holds what comes before it; so whatever is evicted
//!   has nobody below it.
//! - All blocks of a segment have one owner, and a running sequence would come to its last token if it were alone.
//! - Everyone who runs came before everyone who waits.
//! - At most one running sequence, the last, is still in its prompt, so a step has room for a token of everyone and every
//!   running sequence gets further in every step.

mod batch;
mod block_manager;
mod block_pool;
mod context;
mod error;
mod invariants;
mod placement;
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
pub use queue_limits::{Places, QueueFull, QueueLimits, Queued};
pub use request::{CacheUse, Request};
pub use scheduler::{Scheduler, SchedulerConfig};
pub use step_budget::StepBudget;
pub use usage::{Counters, Usage};
