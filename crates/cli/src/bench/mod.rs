//! `anysplit bench`: speed, always beside the limit that was measured in the same run.

mod comm;
mod decode;
mod limits;

use clap::Subcommand;

use crate::error::CliError;

/// What is measured.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// Memory bandwidth, arithmetic and core-to-core latency of this machine
    Limits(limits::LimitsArgs),
    /// Prefill and decode of one sequence, as fractions of those limits
    Decode(Box<decode::DecodeArgs>),
    /// Collectives alone, over a range of sizes, in nccl-tests' columns
    Comm(comm::CommArgs),
}

pub fn run(command: &BenchCommand) -> Result<(), CliError> {
    match command {
        BenchCommand::Limits(args) => limits::run(args),
        BenchCommand::Decode(args) => decode::run(args),
        BenchCommand::Comm(args) => comm::run(args),
    }
}
