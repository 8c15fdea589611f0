//! What ends a command early, and how it is told: one line.

use std::any::Any;
use std::process::ExitCode;

use checkpoint::CheckpointError;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use collective::CollectiveError;
use engine::EngineError;
use engine::text::TextError;
use model::ModelError;

/// Why a command didn't finish.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Wrong use.
    #[error("{0}")]
    Usage(String),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model or its plan.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Ranks that were measured.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// Tokenizer or template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Writing results.
    #[error("cannot write results: {0}")]
    Output(#[from] std::io::Error),
    /// A job of several processes; the line names the one that was the cause.
    #[error("{line}")]
    Job {
        /// What happened.
        line: String,
        /// The exit status.
        status: u8,
    },
}

impl CliError {
    /// A failure of what has no error of its own.
    pub fn failed(line: String) -> Self {
        CliError::Job { line, status: 1 }
    }

    fn is_usage(&self) -> bool {
        match self {
            CliError::Usage(_) | CliError::Text(_) => true,
            CliError::Checkpoint(e) => e.is_usage(),
            CliError::Model(e) => e.is_usage(),
            CliError::Engine(e) => e.is_usage(),
            CliError::Collective(_) | CliError::Output(_) | CliError::Job { .. } => false,
        }
    }

    /// Prints the one line and gives the exit status.
    pub fn report(&self) -> ExitCode {
        job::say!("error: {}", one_line(&self.to_string()));
        ExitCode::from(self.status())
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            CliError::Job { status, .. } => *status,
            _ if self.is_usage() => 2,
            _ => 1,
        }
    }
}

/// The exit status of a command that ran in this process alone, after its one line if it failed.
pub fn ended(result: Result<(), CliError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough.
        Err(CliError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

/// What clap says of a command line, on one line; help and version as they are.
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        job::say!("{text}");
        return ExitCode::from(2);
    }
    let (told, usage) = text.split_once("\n\nUsage:").unwrap_or((&text, ""));
    let told = told.split("\n\nFor more information").next().unwrap_or(told);
    // Nobody means a flag as a value.
    let told = told.split("\n\n  tip: to pass").next().unwrap_or(told);
    let hint = match error.kind() {
        ErrorKind::UnknownArgument if is_unquoted(error, usage) => {
            "; a text of several words needs \"quotes\" around it"
        }
        ErrorKind::UnknownArgument if !told.contains("tip:") => "; --help shows what there is",
        _ => "",
    };
    let told = &in_words(told);
    job::say!("{}{hint}", one_line(told).replace(" tip: ", "; "));
    ExitCode::from(2)
}

/// What clap says with a range of Rust, in words. What a user gave may say the same of anything.
fn in_words(told: &str) -> String {
    let is_number = |text: &str| text.parse::<i128>().is_ok();
    match told.rsplit_once(" is not in ").map(|(before, range)| (before, range.split_once(".."))) {
        Some((before, Some((min, "")))) if is_number(min) => format!("{before} is not {min} or more"),
        Some((before, Some((min, end)))) => match end.strip_prefix('=') {
            Some(max) if is_number(min) && is_number(max) => format!("{before} is not from {min} to {max}"),
            _ => told.to_owned(),
        },
        _ => told.to_owned(),
    }
}

/// Whether a word is one too many for a command that takes a text.
fn is_unquoted(error: &clap::Error, usage: &str) -> bool {
    let takes_text =
        ["anysplit generate", "anysplit score"].iter().any(|name| usage.trim().starts_with(name));
    let word = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) => word,
        _ => return false,
    };
    takes_text && !word.starts_with('-')
}

/// Tells what nobody expected, and gives the exit status.
pub fn panicked(panic: &(dyn Any + Send)) -> ExitCode {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    job::say!(
        "error: this is a defect of anysplit: {} (RUST_BACKTRACE=1 shows where)",
        one_line(text.unwrap_or("it panicked"))
    );
    ExitCode::from(1)
}

/// A text without line breaks.
pub fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn only_ranges_are_put_into_words() {
        for (told, words) in [
            ("invalid value '9': 9 is not in 1..=8", "invalid value '9': 9 is not from 1 to 8"),
            ("'x is not in y': 0 is not in 1..", "'x is not in y': 0 is not 1 or more"),
            ("invalid value 'a is not in b' for '--dtype'", "invalid value 'a is not in b' for '--dtype'"),
            ("invalid value '1 is not in 2..=3' for 'x'", "invalid value '1 is not in 2..=3' for 'x'"),
        ] {
            assert_eq!(in_words(told), words);
        }
    }
}
