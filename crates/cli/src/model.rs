//! The model that a command works on: where it is, its configuration, its weights, its tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::{
    Checkpoint, CheckpointError, PackedCheckpoint, WeightSource, config_file, generation_config_file, hub,
    json_bytes,
};
use engine::text::{TextError, Tokenizer};
use engine::{Engine, EngineOptions, Grammars, Plan};
use job::Fingerprint;
use model::{KeptAs, ModelConfig};
use serde_json::Value;
use tensor::{DType, math};

use crate::args::{LoadFormat, ModelArgs, QuantizationArg, RunArgs};
use crate::error::CliError;
use crate::interrupt;
use crate::membership::{JobArgs, Membership};
use crate::progress::{DownloadBar, bytes_bar};
use crate::split::SplitArgs;
use crate::startup;

/// The demo model, in the binary.
mod demo {
    pub const NAME: &str = "anysplit-demo";
    pub const CONFIG: &[u8] = include_bytes!("../demo/config.json");
    pub const GENERATION_CONFIG: &[u8] = include_bytes!("../demo/generation_config.json");
    pub const WEIGHTS: &[u8] = include_bytes!("../demo/model.safetensors");
    pub const TOKENIZER: &[u8] = include_bytes!("../demo/tokenizer.json");
    pub const TOKENIZER_CONFIG: &[u8] = include_bytes!("../demo/tokenizer_config.json");
}

/// Where a model is.
enum Place {
    Demo,
    Dir(PathBuf),
}

/// A model that isn't loaded yet.
pub struct OpenModel {
    /// What it is called in results.
    pub name: String,
    /// Its configuration.
    pub config: ModelConfig,
    /// Its generation_config.json, if it has one.
    pub generation: Option<Value>,
    source: WeightSource,
    tokenizer: Result<Arc<Tokenizer>, TextError>,
}

/// A model's name and configuration, without its weights. Takes a config.json itself, too.
pub fn read_config(args: &ModelArgs) -> Result<(String, ModelConfig), CliError> {
    let (name, place) = locate(args, false)?;
    let config = parse_config(&place)?;
    Ok((name, config))
}

/// A checkpoint with all that lies beside its weights, to be written anew.
pub struct WholeModel {
    /// Its configuration.
    pub config: ModelConfig,
    /// Its weights.
    pub source: WeightSource,
    place: Place,
}

impl WholeModel {
    /// Finds `checkpoint`, or what the flags name.
    pub fn open(args: &ModelArgs, checkpoint: Option<&str>) -> Result<Self, CliError> {
        let model = checkpoint.map(str::to_owned).or_else(|| args.model.clone());
        let place = place(model.as_deref(), args.load_format != LoadFormat::Random)?;
        let config = parse_config(&place)?;
        let source = source(args, &place, &config)?;
        Ok(WholeModel { config, source, place })
    }

    /// Names and contents of what belongs to it besides weights: configurations, tokenizer, templates, licences.
    pub fn small_files(&self) -> Result<Vec<(String, Vec<u8>)>, CliError> {
        let dir = match &self.place {
            Place::Demo => {
                let files = [
                    ("config.json", demo::CONFIG),
                    ("generation_config.json", demo::GENERATION_CONFIG),
                    ("tokenizer.json", demo::TOKENIZER),
                    ("tokenizer_config.json", demo::TOKENIZER_CONFIG),
                ];
                return Ok(files.map(|(name, content)| (name.to_owned(), content.to_owned())).into());
            }
            // A config.json itself, with random weights.
            Place::Dir(path) if path.is_file() => return Ok(vec![("config.json".into(), read(path)?)]),
            Place::Dir(dir) => dir,
        };
        let listing = std::fs::read_dir(dir).map_err(|e| unreadable(dir, e))?;
        let mut files = Vec::new();
        for entry in listing {
            let path = entry.map_err(|e| unreadable(dir, e))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let belongs = [".json", ".jinja", ".txt", ".model", ".md"].iter().any(|end| name.ends_with(end));
            if path.is_file() && !name.ends_with(".index.json") && (belongs || name.starts_with("LICENSE")) {
                files.push((name.to_owned(), read(&path)?));
            }
        }
        Ok(files)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|e| unreadable(path, e))
}

fn unreadable(path: &Path, source: std::io::Error) -> CliError {
    CheckpointError::Read { path: path.to_owned(), source }.into()
}

/// Where the weights come from.
fn source(args: &ModelArgs, place: &Place, config: &ModelConfig) -> Result<WeightSource, CliError> {
    if let Place::Dir(dir) = place
        && let Some(packed) = packed(args, dir)?
    {
        return Ok(WeightSource::Packed(packed));
    }
    Ok(match (args.load_format, place) {
        (LoadFormat::Random, _) => {
            let dtype = args.dtype.get().or(config.dtype).unwrap_or(DType::BF16);
            WeightSource::Random { seed: args.seed.unwrap_or(0), dtype }
        }
        (_, Place::Demo) => WeightSource::Files(Checkpoint::from_bytes(demo::NAME, demo::WEIGHTS)?),
        (_, Place::Dir(dir)) => WeightSource::Files(Checkpoint::open(dir)?),
    })
}

/// The packed checkpoint of a directory, if that holds one. Flags that contradict it are refused; what the engine is told of them
/// the engine checks.
fn packed(args: &ModelArgs, dir: &Path) -> Result<Option<PackedCheckpoint>, CliError> {
    if !PackedCheckpoint::is_in(dir) {
        return Ok(None);
    }
    let refused = |why: String| CliError::Usage(format!("{} holds a packed checkpoint{why}", dir.display()));
    match args.load_format {
        LoadFormat::Auto => {}
        LoadFormat::Safetensors => {
            let why = ", which --load-format safetensors doesn't read; leave it out, or give the original";
            return Err(refused(why.into()));
        }
        LoadFormat::Random => {
            let config = dir.join("config.json");
            let why = format!(
                ", in whose place --load-format random takes seeded weights; leave it out, or give {} alone",
                config.display()
            );
            return Err(refused(why));
        }
    }
    let packed = PackedCheckpoint::open(dir)?;
    let is = engine::packed_as(&packed, KeptAs::default())?;
    if args.quantization == Some(QuantizationArg::None) && is.quantization.is_some() {
        return Err(refused(format!(
            " of {is}, which --quantization none can't undo; leave it out, or give the original"
        )));
    }
    Ok(Some(packed))
}

/// What the weights of a packed checkpoint are kept in, if the flags name one that is on disk.
pub fn packed_as(args: &ModelArgs) -> Result<Option<KeptAs>, CliError> {
    let Some(dir) = &args.model else { return Ok(None) };
    let packed = packed(args, Path::new(dir))?;
    Ok(packed.map(|packed| engine::packed_as(&packed, args.kept_as())).transpose()?)
}

impl OpenModel {
    /// Finds a model, and reads all but its weights. What can't be is refused before anything large is downloaded.
    pub fn open(
        args: &ModelArgs,
        split: &SplitArgs,
        options: &EngineOptions,
        membership: &Membership,
    ) -> Result<Self, CliError> {
        let (name, config) = read_config(args)?;
        split.check(&config, membership.leads())?;
        Plan::new(config.clone(), options, membership.ranks())?;
        let (_, place) = locate(args, args.load_format != LoadFormat::Random)?;
        let source = source(args, &place, &config)?;
        let tokenizer = match &place {
            Place::Demo => Tokenizer::from_bytes(demo::TOKENIZER, Some(demo::TOKENIZER_CONFIG), None),
            Place::Dir(dir) => Tokenizer::from_dir(dir),
        };
        let (_, generation) = json_files(&place)?;
        Ok(OpenModel { name, config, generation, source, tokenizer: tokenizer.map(Arc::new) })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none, or it can't be used.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>, CliError> {
        Ok(self.tokenizer.as_ref().map_err(TextError::clone)?)
    }

    /// What requests with grammars need, if there is a tokenizer.
    pub fn grammars(&self) -> Option<Arc<Grammars>> {
        let tokenizer = self.tokenizer.as_ref().ok()?.clone();
        let (vocab_size, eos) = (self.config.vocab_size, self.config.eos_token_ids.clone());
        Some(Arc::new(Grammars::new(tokenizer, vocab_size, eos)))
    }

    /// What all ranks of a job must agree on: this program, the model, how it is split and what it is kept in.
    fn fingerprint(&self, options: &EngineOptions, job: &JobArgs) -> Fingerprint {
        let entry = |what: &str, value: String| (what.to_owned(), value);
        let plan = format!(
            "tp {:?} pp {} {:?} dp {} sp {} dcp {} all-reduce-dtype {} {:?} {:?}",
            options.rank_weights,
            options.pipeline_parallel_size,
            options.pp_layers,
            options.data_parallel_size,
            options.sequence_parallel,
            options.decode_context_parallel_size,
            options.all_reduce_dtype.name(),
            options.experts,
            options.tp_plan
        );
        let kept =
            format!("{:?} {:?}, KV cache {:?}", options.dtype, options.quantization, options.kv_cache_dtype);
        vec![
            entry("version", env!("CARGO_PKG_VERSION").into()),
            entry("model", format!("{:?}", self.config)),
            entry("checkpoint", self.source.fingerprint()),
            entry("plan", plan),
            entry("dtype", kept),
            // Those for whom it is open settle it together.
            entry("device", format!("{:?}", options.device).to_lowercase()),
            entry("reduction", options.reduction.to_string()),
            entry("comm-timeout", format!("{:?}", options.comm_timeout)),
            entry("comm-backend", job.comm_backend.name().into()),
        ]
    }

    /// Loads the weights over the ranks, with a progress bar, and tells which rank is what unless it should be quiet.
    /// Ranks of a job other than rank 0 do their work here, and have no engine afterwards.
    pub fn load(
        self,
        options: &EngineOptions,
        membership: &Membership,
        run: &RunArgs,
        quiet: bool,
    ) -> Result<Option<Engine>, CliError> {
        let bar = bytes_bar("loading", 0);
        let progress = |done: u64, total: u64| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let engine = self.load_with(options, membership, run, quiet, &progress);
        bar.finish_and_clear();
        engine
    }

    /// The same; `progress` gets the bytes that are loaded, and all.
    pub fn load_with(
        self,
        options: &EngineOptions,
        membership: &Membership,
        run: &RunArgs,
        quiet: bool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Option<Engine>, CliError> {
        let job = membership.join(|| self.fingerprint(options, &run.job), &run.job)?;
        if run.trace.is_some() && !membership.leads() {
            interrupt::leave_trace_to_rank_0()
                .map_err(|e| CliError::failed(format!("--trace: cannot listen for signals: {e}")))?;
        }
        let engine = match job {
            Some(job) => Engine::join(self.config, self.source, options, job, progress),
            None => Engine::load(self.config, self.source, options, progress).map(Some),
        };
        let mut engine = engine?;
        if let Some(engine) = &mut engine {
            if let Some(why) = engine.not_on_gpus() {
                job::say!("warning: the processor is used: {why}");
            }
            startup::warn_of_crowding(engine, job, membership.is_launched());
            startup::tell(engine, job.is_some(), quiet)?;
            startup::warn_of_compression(options)?;
            startup::warn_of_fast(engine);
        }
        Ok(engine)
    }
}

/// The perplexity of a text by the demo model.
pub fn demo_perplexity(text: &str, options: &EngineOptions) -> Result<f64, CliError> {
    let (mut engine, tokenizer) = demo_engine(options)?;
    let logprobs = engine.score(&tokenizer.encode(text, true)?)?;
    Ok(perplexity(&logprobs).unwrap_or(f64::NAN))
}

/// The demo model over threads of this process.
pub fn demo_engine(options: &EngineOptions) -> Result<(Engine, Tokenizer), CliError> {
    let source = WeightSource::Files(Checkpoint::from_bytes(demo::NAME, demo::WEIGHTS)?);
    let tokenizer = Tokenizer::from_bytes(demo::TOKENIZER, Some(demo::TOKENIZER_CONFIG), None)?;
    Ok((Engine::load(parse_config(&Place::Demo)?, source, options, &|_, _| {})?, tokenizer))
}

/// The most ranks that the demo model's layers can be split over.
pub fn demo_ranks() -> Result<usize, CliError> {
    Ok(parse_config(&Place::Demo)?.num_heads)
}

/// The exponential of the mean surprise of the tokens that have a probability; `None` if none has.
pub fn perplexity(logprobs: &[Option<f32>]) -> Option<f64> {
    // Summed in order, in f64.
    let known: Vec<f64> = logprobs.iter().flatten().map(|&l| f64::from(l)).collect();
    let mean = -known.iter().sum::<f64>() / known.len() as f64;
    // The project's own function: the same digits on every system. JSON has no infinity.
    (!known.is_empty()).then(|| math::exp_f64(mean.min(700.0)))
}

fn locate(args: &ModelArgs, weights: bool) -> Result<(String, Place), CliError> {
    let name = args.model.clone().unwrap_or_else(|| demo::NAME.into());
    Ok((name, place(args.model.as_deref(), weights)?))
}

fn place(model: Option<&str>, weights: bool) -> Result<Place, CliError> {
    let Some(model) = model else { return Ok(Place::Demo) };
    let (hub_config, mut bar) = (hub::HubConfig::from_env(), DownloadBar::default());
    let dir = match weights {
        true => hub::resolve(model, &hub_config, &mut bar)?,
        false => hub::resolve_without_weights(model, &hub_config, &mut bar)?,
    };
    Ok(Place::Dir(dir))
}

fn parse_config(place: &Place) -> Result<ModelConfig, CliError> {
    let (config, generation) = json_files(place)?;
    Ok(ModelConfig::parse(&config, generation.as_ref())?)
}

/// config.json, and generation_config.json if there is one.
fn json_files(place: &Place) -> Result<(Value, Option<Value>), CliError> {
    Ok(match place {
        Place::Demo => (
            json_bytes("config.json", demo::CONFIG)?,
            Some(json_bytes("generation_config.json", demo::GENERATION_CONFIG)?),
        ),
        Place::Dir(path) if path.is_file() => (checkpoint::json_file(path)?, None),
        Place::Dir(dir) => (config_file(dir)?, generation_config_file(dir)?),
    })
}
