//! `anysplit score`: how probable a model finds a text.

use std::io::Write;

use clap::Args;
use serde_json::json;
use tensor::math;

use crate::args::{ModelArgs, RunArgs, SplitArgs, engine_options, parse_ids, yes_or_no};
use crate::error::CliError;
use crate::membership::Membership;
use crate::model::OpenModel;

/// Prints the log-probability of each token of a text, and its perplexity.
#[derive(Args)]
#[command(after_help = "Examples:\n  anysplit score --text \"In the beginning God created the heaven\"\n  \
    anysplit score --model ./Llama-3.2-1B --tp 3 --prompt-ids 128000,791,4996 --json")]
pub struct ScoreArgs {
    /// The text
    #[arg(
        long,
        env = "ANYSPLIT_TEXT",
        value_name = "TEXT",
        conflicts_with = "prompt_ids",
        required_unless_present = "prompt_ids"
    )]
    text: Option<String>,
    /// Token ids instead of a text
    #[arg(long, env = "ANYSPLIT_PROMPT_IDS", value_name = "1,2,3")]
    prompt_ids: Option<String>,
    /// Prints one JSON value
    #[arg(long, env = "ANYSPLIT_JSON", value_parser = yes_or_no())]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    split: SplitArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

pub fn run(args: &ScoreArgs, membership: &Membership) -> Result<(), CliError> {
    let options = engine_options(&args.model, &args.split, &args.run, membership.ranks())?;
    let model = OpenModel::open(&args.model)?;
    let ids = match (&args.text, &args.prompt_ids) {
        (_, Some(ids)) => parse_ids(ids)?,
        (Some(text), None) if text.is_empty() => return Err(CliError::Usage("--text is empty".into())),
        (Some(text), None) => model.tokenizer()?.encode(text, true)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let tokens =
        model.tokenizer().ok().map(|t| ids.iter().map(|&id| t.decode(&[id], false)).collect::<Vec<_>>());
    let Some(mut engine) = model.load(&options, membership, &args.run, args.json)? else { return Ok(()) };
    let logprobs = engine.score(&ids)?;
    // Of the tokens that have a probability; summed in order, in f64.
    let known: Vec<f64> = logprobs.iter().flatten().map(|&l| f64::from(l)).collect();
    let mean = |all: &[f64]| -all.iter().sum::<f64>() / all.len() as f64;
    // The project's own function: the same digits on every system. JSON has no infinity.
    let perplexity = (!known.is_empty()).then(|| math::exp_f64(mean(&known).min(700.0)));
    let mut out = std::io::stdout().lock();
    if args.json {
        let value = json!({ "token_ids": ids, "logprobs": logprobs, "perplexity": perplexity });
        writeln!(out, "{value}")?;
        return Ok(());
    }
    for (i, (id, logprob)) in ids.iter().zip(&logprobs).enumerate() {
        let text =
            tokens.as_ref().and_then(|t| t[i].as_ref().ok()).map_or(String::new(), |t| format!("{t:?}"));
        let shown = logprob.map_or("-".into(), |l| format!("{l:.4}"));
        writeln!(out, "{id:>8} {shown:>10}  {text}")?;
    }
    if let Some(perplexity) = perplexity {
        writeln!(out, "perplexity {perplexity:.4} over {} tokens", known.len())?;
    }
    Ok(())
}
