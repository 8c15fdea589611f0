//! The `anysplit` command. Results go to stdout, everything else to stderr.
//!
//! Exit status: 0 done, 2 wrong use or unusable input, 1 failure at run time.

#![warn(clippy::print_stderr)] // it panics where nothing can be written: `job::say!` does not

mod amount;
mod args;
mod bench;
mod environment;
mod error;
mod expert_counts;
mod generate;
mod interrupt;
mod launch;
mod lists;
mod membership;
mod model;
mod new_folder;
mod open_files;
mod progress;
mod quantize;
mod report;
mod score;
mod secret;
mod serve;
mod split;
mod startup;
mod tp_plan;
mod trace;
mod whole_file;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Runs language models split over several devices, with the same bits on any split.
#[derive(Parser)]
#[command(name = "anysplit", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Examples:\n  anysplit generate \"In the beginning\" --tp 2 --stats\n  \
    anysplit score --text \"Call me Ishmael.\" --model ./Llama-3.2-1B --tp 3\n  \
    anysplit serve --tp 2 --port 8000\n  \
    anysplit tp-plan --model ./Llama-3.2-1B --tp 4\n  \
    anysplit launch --nproc-per-node 2 -- anysplit score --text \"Call me Ishmael.\" --tp 2")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Completes a prompt, or a file of prompts as one batch
    Generate(Box<generate::GenerateArgs>),
    /// Prints the log-probability of each token of a text, and its perplexity
    Score(Box<score::ScoreArgs>),
    /// Serves a model by OpenAI's API, to many at once
    Serve(Box<serve::ServeArgs>),
    /// Prints how each weight of a model is split, from its config.json alone
    TpPlan(Box<tp_plan::TpPlanArgs>),
    /// Writes a checkpoint packed and quantised, so that loading it is mapping a file
    Quantize(Box<quantize::QuantizeArgs>),
    /// Starts a command as several processes of one job, on one host or on several
    Launch(Box<launch::LaunchArgs>),
    /// Measures speed, as fractions of what this machine can do
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// So that `--tp -1` is told to be a wrong value, not an unknown flag.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let allow = |arg: clap::Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(allow).mut_subcommands(with_negative_numbers)
}

fn main() -> ExitCode {
    // Before there is another thread.
    cuda::set_variables();
    // What panics is told in one line, by the engine with its rank or by `panicked`; RUST_BACKTRACE shows where.
    if std::env::var_os("RUST_BACKTRACE").is_none_or(|value| value == "0") {
        std::panic::set_hook(Box::new(|_| {}));
    }
    std::panic::catch_unwind(command).unwrap_or_else(|panic| error::panicked(&*panic))
}

fn command() -> ExitCode {
    launch::signals::fail_at_file_limits();
    let matches = environment::parse(with_negative_numbers(Cli::command()));
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return error::usage(&error),
    };
    match cli.command {
        Command::Generate(args) => {
            membership::run(&args.run.job, |membership| generate::run(&args, membership))
        }
        Command::Score(args) => membership::run(&args.run.job, |membership| score::run(&args, membership)),
        Command::Serve(args) => membership::run(&args.run.job, |membership| serve::run(&args, membership)),
        Command::TpPlan(args) => error::ended(tp_plan::run(&args)),
        Command::Quantize(args) => error::ended(quantize::run(&args)),
        Command::Launch(args) => error::ended(launch::run(&args)),
        Command::Bench(command) => bench::run(&command),
    }
}
