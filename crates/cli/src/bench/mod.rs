//! `anysplit bench`: speed, always beside the limit that was measured in the same run.

mod comm;
mod decode;
mod gpu_limits;
pub mod limits;
mod serve;

use std::process::ExitCode;

use clap::Subcommand;

use crate::{error, membership};

/// What is measured.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Memory bandwidth, arithmetic and latencies of this machine
    Limits(limits::LimitsArgs),
    /// Prefill and decode over lengths, batches and splits, as fractions of those limits
    Decode(Box<decode::DecodeArgs>),
    /// Collectives alone, over a range of sizes, in nccl-tests' columns
    Comm(comm::CommArgs),
    /// Throughput and latency of a server under load, with any URL of OpenAI's API
    Serve(Box<serve::ServeArgs>),
}

pub fn run(command: &BenchCommand) -> ExitCode {
    match command {
        BenchCommand::Limits(args) => error::ended(limits::run(args)),
        BenchCommand::Decode(args) => {
            membership::run(&args.run.job, |membership| decode::run(args, membership))
        }
        BenchCommand::Comm(args) => membership::run(&args.job, |membership| comm::run(args, membership)),
        BenchCommand::Serve(args) => error::ended(serve::run(args)),
    }
}
