//! `anysplit quantize`: a checkpoint packed for this machine's device.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use checkpoint::WeightSource;
use checkpoint::packed::PACKED_FILE;
use clap::Args;
use engine::{EngineError, EngineOptions};
use model::{KeptAs, Quantization};
use serde_json::json;

use crate::args::{ModelArgs, yes_or_no};
use crate::error::CliError;
use crate::model::WholeModel;
use crate::new_folder::NewFolder;
use crate::progress::bytes_bar;
use crate::report::bytes;

/// Writes a checkpoint packed and quantised, so that loading it is mapping a file.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  anysplit quantize ./Llama-3.2-1B --quantization int4 --out ./Llama-3.2-1B-int4\n  \
    anysplit generate --model ./Llama-3.2-1B-int4 --tp 2 \"Once upon a time\"\n\n\
    It runs with the same bits as --quantization does on the original, split over any number of ranks. With --quantization \
    none weights stay as they are, and loading is still only mapping a file. \
    Packed checkpoints are for processors: GPUs take the original, with --quantization."
)]
pub struct QuantizeArgs {
    /// The checkpoint, in place of --model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    checkpoint: Option<String>,
    /// The folder to write; it must not be there yet
    #[arg(long, short, env = "ANYSPLIT_OUT", value_name = "DIR")]
    out: PathBuf,
    /// Threads that pack; default: one per core
    #[arg(long, env = "ANYSPLIT_THREADS_PER_RANK", value_name = "N")]
    threads_per_rank: Option<usize>,
    /// Prints one JSON value
    #[arg(long, env = "ANYSPLIT_JSON", value_parser = yes_or_no())]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &QuantizeArgs) -> Result<(), CliError> {
    if args.threads_per_rank == Some(0) {
        return Err(CliError::Usage("--threads-per-rank must be at least 1".into()));
    }
    // Before the model, which may have to be downloaded.
    NewFolder::check(&args.out)?;
    let model = WholeModel::open(&args.model, args.checkpoint.as_deref())?;
    if matches!(model.source, WeightSource::Packed(_)) {
        return Err(CliError::Usage("the checkpoint is packed already; give the original".into()));
    }
    let folder = NewFolder::create(&args.out)?;
    let bar = bytes_bar("packing", 0);
    let shown_bar = bar.clone();
    folder.remove_if_ended(move || shown_bar.finish_and_clear())?;
    let KeptAs { dtype, quantization } = args.model.kept_as();
    let options = EngineOptions {
        dtype,
        quantization,
        threads_per_rank: args.threads_per_rank,
        ..EngineOptions::default()
    };
    for (name, content) in model.small_files()? {
        let path = folder.path().join(name);
        fs::write(&path, content).map_err(|e| cannot_write(&path, e))?;
    }
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let packed = engine::pack(
        model.config.clone(),
        &model.source,
        &options,
        &folder.path().join(PACKED_FILE),
        &progress,
    );
    bar.finish_and_clear();
    let packed = packed?;
    folder.keep()?;
    let shown = args.out.display();
    let quantization = quantization.map(Quantization::name);
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(
            out,
            "{}",
            json!({ "out": shown.to_string(), "quantization": quantization, "bytes": packed.bytes, "stored_bytes": packed.stored_bytes })
        )?,
        false => {
            let (now, before) = (bytes(packed.bytes), bytes(packed.stored_bytes));
            writeln!(out, "{shown}: {now} as {}, {before} before", quantization.unwrap_or("stored"))?;
        }
    }
    Ok(())
}

fn cannot_write(path: &Path, source: io::Error) -> CliError {
    EngineError::Write { path: path.to_owned(), source }.into()
}
