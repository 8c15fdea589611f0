//! `anysplit score`: how probable a model finds a text.

use std::io::Write;

use clap::Args;
use engine::{EngineOptions, Reduction};
use model::check_tokens;
use serde_json::json;

use crate::args::{ModelArgs, RunArgs, engine_options, parse_ids, yes_or_no};
use crate::error::CliError;
use crate::expert_counts;
use crate::membership::Membership;
use crate::model::{OpenModel, perplexity};
use crate::split::SplitArgs;
use crate::startup;
use crate::trace::Trace;

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
    let options = engine_options(&args.model, &args.split, &args.run, membership)?;
    let trace = Trace::new(&args.run, membership)?;
    let model = OpenModel::open(&args.model, &args.split, &options, membership)?;
    let ids = match (&args.text, &args.prompt_ids) {
        (_, Some(ids)) => parse_ids(ids)?,
        (Some(text), None) if text.is_empty() => return Err(CliError::Usage("--text is empty".into())),
        (Some(text), None) => {
            trace.host("tokenize", || model.tokenizer()?.encode(text, true).map_err(CliError::from))?
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    check_tokens(&model.config, &ids)?;
    let tokens =
        model.tokenizer().ok().map(|t| ids.iter().map(|&id| t.decode(&[id], false)).collect::<Vec<_>>());
    let loaded = trace.host("load", || model.load(&options, membership, &args.run, args.json))?;
    let Some(mut engine) = loaded else { return Ok(()) };
    let logprobs = trace.record(&mut engine, |engine| Ok(engine.score(&ids)?))?;
    expert_counts::record(args.split.expert_counts.as_deref(), &mut engine)?;
    // The ranks are done: the demo model has the cores to itself.
    let kept = EngineOptions { quantization: engine.kept_as().quantization, ..options };
    let reduction = engine.reduction();
    drop(engine);
    let of_demo = startup::demo_perplexities(&kept)?;
    let perplexity = perplexity(&logprobs);
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut value = json!({ "token_ids": ids, "logprobs": logprobs, "perplexity": perplexity });
        if reduction != Reduction::Canonical {
            value["reduction"] = reduction.to_string().into();
        }
        if let (Some(quantization), Some((before, after))) = (kept.quantization, of_demo) {
            value["quantization"] = quantization.name().into();
            value["demo_perplexity"] = json!({ "before": before, "after": after });
        }
        writeln!(out, "{value}")?;
        return trace.end();
    }
    for (i, (id, logprob)) in ids.iter().zip(&logprobs).enumerate() {
        let text =
            tokens.as_ref().and_then(|t| t[i].as_ref().ok()).map_or(String::new(), |t| format!("{t:?}"));
        let shown = logprob.map_or("-".into(), |l| format!("{l:.4}"));
        writeln!(out, "{id:>8} {shown:>10}  {text}")?;
    }
    if let Some(perplexity) = perplexity {
        writeln!(out, "perplexity {perplexity:.4} over {} tokens", logprobs.iter().flatten().count())?;
    }
    if let (Some(quantization), Some((before, after))) = (kept.quantization, of_demo) {
        let change = 100.0 * (after / before - 1.0);
        writeln!(
            out,
            "{quantization} changes the demo model's perplexity by {change:+.2} %: {before:.4} before, {after:.4} after (a passage that it wrote)"
        )?;
    }
    trace.end()
}
