//! The file of `--expert-counts`: how many tokens each expert got in the runs so far, by layer.

use std::io::Write;
use std::path::Path;

use engine::{Engine, ExpertReport};
use model::ModelConfig;
use model::parallel::ExpertPlacement;
use serde_json::json;

use crate::error::CliError;
use crate::whole_file::{self, directory};

/// What has been recorded; `None`: there is no such file yet.
///
/// # Errors
/// It holds something else.
pub fn read(file: &Path) -> Result<Option<ExpertPlacement>, CliError> {
    if let Ok(false) = file.try_exists() {
        return Ok(None);
    }
    let wrong = |e| CliError::Usage(format!("--expert-counts {}: {e}", file.display()));
    Ok(Some(ExpertPlacement::balanced(&checkpoint::json_value_file(file)?).map_err(wrong)?))
}

/// Whether a run's counts could be added to it: known before the run, not after.
///
/// # Errors
/// Its directory is not there, or it holds something else.
pub fn check(file: &Path, config: &ModelConfig) -> Result<(), CliError> {
    let directory = directory(file);
    if !directory.is_dir() {
        let (file, directory) = (file.display(), directory.display());
        return Err(CliError::Usage(format!("--expert-counts {file}: there is no directory {directory}")));
    }
    let experts = config.moe.map_or(0, |moe| moe.num_experts);
    let sparse = config.layers.iter().filter(|layer| layer.moe).count();
    match read(file)? {
        Some(ExpertPlacement::Balanced(before)) => fits(file, &before, &vec![vec![0; experts]; sparse]),
        _ => Ok(()),
    }
}

fn fits(file: &Path, before: &[Vec<u64>], counts: &[Vec<u64>]) -> Result<(), CliError> {
    let lengths = |all: &[Vec<u64>]| all.iter().map(Vec::len).collect::<Vec<_>>();
    match lengths(before) == lengths(counts) {
        true => Ok(()),
        false => Err(CliError::Usage(format!(
            "--expert-counts {}: it holds counts of another model; give a file of this model's own",
            file.display()
        ))),
    }
}

/// Adds a run's counts to what has been recorded.
///
/// # Errors
/// The file holds something else, or can't be written; it is then as it was.
pub fn add(file: &Path, report: &ExpertReport) -> Result<(), CliError> {
    let mut counts: Vec<Vec<u64>> = report.layers.iter().map(|l| l.tokens_per_expert.clone()).collect();
    if let Some(ExpertPlacement::Balanced(before)) = read(file)? {
        fits(file, &before, &counts)?;
        for (sum, more) in counts.iter_mut().flatten().zip(before.into_iter().flatten()) {
            *sum = sum.saturating_add(more).min(ExpertPlacement::MOST_TOKENS);
        }
    }
    let text = json!({ "tokens_per_expert": counts }).to_string() + "\n";
    let written = whole_file::write(file, |whole| whole.write_all(text.as_bytes()));
    written.map_err(|e| CliError::Usage(format!("--expert-counts {}: {e}", file.display())))
}

/// [`add`], for a command that has no other use for the counts.
///
/// # Errors
/// Those, or a rank is missing.
pub fn record(file: Option<&Path>, engine: &mut Engine) -> Result<(), CliError> {
    let Some(file) = file else { return Ok(()) };
    let reports = engine.reports()?;
    ExpertReport::new(engine.plan(), &reports).map_or(Ok(()), |report| add(file, &report))
}
