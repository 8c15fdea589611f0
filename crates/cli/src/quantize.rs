//! `anysplit quantize`: a checkpoint packed for this machine's device.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use checkpoint::WeightSource;
use checkpoint::packed::PACKED_FILE;
use clap::Args;
use engine::{EngineError, EngineOptions};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::{ModelArgs, yes_or_no};
use crate::error::CliError;
use crate::model::WholeModel;
use crate::progress::bytes_bar;
use crate::report::bytes;

/// Writes a checkpoint packed and quantised, so that loading it is mapping a file.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  anysplit quantize ./Llama-3.2-1B --quantization int4 --out ./Llama-3.2-1B-int4\n  \
    anysplit generate --model ./Llama-3.2-1B-int4 --tp 2 \"Once upon a time\"\n\n\
    It runs with the same bits as --quantization does on the original, split over any number of ranks. With --quantization \
    none weights stay as they are, and loading is still only mapping a file."
)]
pub struct QuantizeArgs {
    /// The checkpoint, in place of --model
    #[arg(value_name = "MODEL")]
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
    let shown = args.out.display();
    if fs::symlink_metadata(&args.out).is_ok() {
        return Err(CliError::Usage(format!("--out {shown} is there already; name a folder that is not")));
    }
    let model = WholeModel::open(&args.model, args.checkpoint.as_deref())?;
    if matches!(model.source, WeightSource::Packed(_)) {
        return Err(CliError::Usage("the checkpoint is packed already; give the original".into()));
    }
    let folder = NewFolder::create(&args.out)?;
    folder.remove_if_ended()?;
    let options = EngineOptions {
        dtype: args.model.dtype.get(),
        quantization: args.model.quantization.get(),
        threads_per_rank: args.threads_per_rank,
        ..EngineOptions::default()
    };
    for (name, content) in model.small_files()? {
        let path = folder.partial.join(name);
        fs::write(&path, content).map_err(|e| cannot_write(&path, e))?;
    }
    let bar = bytes_bar("packing", 0);
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let packed = engine::pack(
        model.config.clone(),
        &model.source,
        &options,
        &folder.partial.join(PACKED_FILE),
        &progress,
    );
    bar.finish_and_clear();
    let packed = packed?;
    folder.keep()?;
    let quantization = args.model.quantization.get().map(model::Quantization::name);
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

/// A folder that appears under its name when it is complete, or not at all.
struct NewFolder<'a> {
    name: &'a Path,
    partial: PathBuf,
}

impl<'a> NewFolder<'a> {
    fn create(name: &'a Path) -> Result<Self, CliError> {
        let Some(last) = name.file_name() else {
            return Err(CliError::Usage(format!("--out {} is no name of a folder", name.display())));
        };
        let hidden = format!(".{}.partial-{}", last.to_string_lossy(), std::process::id());
        let partial = name.with_file_name(hidden);
        fs::create_dir(&partial).map_err(|e| {
            CliError::Usage(format!("--out {}: cannot make a folder there: {e}", name.display()))
        })?;
        Ok(NewFolder { name, partial })
    }

    /// Who is asked to end takes what is incomplete along.
    fn remove_if_ended(&self) -> io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let partial = self.partial.clone();
        let wait = move || {
            if let Some(signal) = signals.forever().next() {
                let _ = fs::remove_dir_all(&partial);
                std::process::exit(128 + signal);
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
    }

    fn keep(self) -> Result<(), CliError> {
        fs::rename(&self.partial, self.name).map_err(|e| cannot_write(self.name, e))
    }
}

impl Drop for NewFolder<'_> {
    fn drop(&mut self) {
        // Not there any more if it was kept.
        let _ = fs::remove_dir_all(&self.partial);
    }
}
