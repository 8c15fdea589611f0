use std::io;
use std::path::PathBuf;

use crate::checkpoint::E4M3;
use crate::spelling::{list, quote};

/// What can be wrong with a model's files, or with fetching them. Every message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    // ---- files
    /// A file or directory could not be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
    /// The path is no directory.
    #[error("no directory {}: {hint}", .path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
        /// What is there instead, or what would work.
        hint: String,
    },
    /// A directory holds no safetensors weights.
    #[error("no safetensors weights in {}: {found}", .dir.display())]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// What it holds instead, and what to do.
        found: String,
    },

    // ---- one safetensors file
    /// The file ends before its header does.
    #[error(
        "{file}: the file has {found} bytes, its header alone needs {needed}; the download is incomplete, or this is not a safetensors file"
    )]
    HeaderCut {
        /// The file.
        file: String,
        /// Bytes of header, its 8-byte length included.
        needed: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The header says it is longer than any header may be.
    #[error(
        "{file}: a header of {bytes} bytes is announced, the limit is {limit}; the file is damaged, or not a safetensors file"
    )]
    HeaderTooLong {
        /// The file.
        file: String,
        /// The announced length.
        bytes: u64,
        /// The longest that is accepted.
        limit: u64,
    },
    /// The header is not what safetensors says it is.
    #[error("{file}: bad header: {reason}")]
    BadHeader {
        /// The file.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// The file is shorter or longer than its header says.
    #[error("{file}: the header describes a file of {expected} bytes, found {found}; {}", if .found < .expected { "the download is incomplete" } else { "the file is damaged" })]
    FileLength {
        /// The file.
        file: String,
        /// Bytes that header and tensors take.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// A tensor's place in the file does not fit its type, its shape or its neighbours.
    #[error("tensor {}: {reason} in {file}", quote(.tensor))]
    BadOffsets {
        /// The tensor.
        tensor: String,
        /// What is wrong, with the numbers.
        reason: String,
        /// The file.
        file: String,
    },
    /// A tensor is of a type that is not read.
    #[error("tensor {}: unsupported type {} in {file}; {}", quote(.tensor), quote(.dtype), instead_of(.dtype))]
    UnsupportedDtype {
        /// The tensor.
        tensor: String,
        /// Its type as the file spells it.
        dtype: String,
        /// The file.
        file: String,
    },
    /// The same tensor is there more than once.
    #[error("tensor {}: found twice, in {first} and in {second}", quote(.tensor))]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// Where it is.
        first: String,
        /// Where it is too.
        second: String,
    },

    // ---- the index of a sharded checkpoint
    /// The index names a file outside its own directory.
    #[error("{index}: shard name {} is not a plain *.safetensors file name", quote(.shard))]
    ShardName {
        /// The index.
        index: String,
        /// The name.
        shard: String,
    },
    /// The index names a file that is not there.
    #[error("{index}: shard {} is missing (one of {missing} missing of {shards}); is the download complete?", quote(.shard))]
    MissingShard {
        /// The index.
        index: String,
        /// The first missing shard.
        shard: String,
        /// How many are missing.
        missing: usize,
        /// How many the index names.
        shards: usize,
    },
    /// The index says that a shard holds a tensor, and it doesn't.
    #[error("{index}: tensor {} should be in {shard}, which does not hold it", quote(.tensor))]
    NotInShard {
        /// The index.
        index: String,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },

    // ---- packed checkpoints
    /// A packed checkpoint is damaged, or another program's.
    #[error("{file}: {reason}; copy it again, or pack the original again with `anysplit quantize`")]
    BadPacked {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A packed checkpoint is of another version.
    #[error(
        "{file}: it is of version {found}, this program reads version {read}; pack the original again with `anysplit quantize`"
    )]
    PackedVersion {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// The only one that is read.
        read: u32,
    },

    // ---- asking for tensors
    /// A tensor has another shape than the model's config says.
    #[error("tensor {}: expected {expected:?}, found {found:?} in {file}", quote(.tensor))]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape the model needs.
        expected: Vec<usize>,
        /// The shape the file states.
        found: Vec<usize>,
        /// The file.
        file: String,
    },
    /// A weight in e4m3 has no scales.
    #[error("tensor {}: F8_E4M3 in {file}, and its scales are missing; looked for {} and {}", quote(.tensor), quote(&.names[0]), quote(&.names[1]))]
    NoScales {
        /// The weight.
        tensor: String,
        /// Its file.
        file: String,
        /// The names that were looked for.
        names: [String; 2],
    },
    /// A scale of a weight is none.
    #[error("tensor {}: scale {at} is {value} in {file}; a scale must be from 0 to {:e}", quote(.tensor), f32::MAX / tensor::fp8::MAX)]
    BadScale {
        /// The tensor of scales.
        tensor: String,
        /// Its place among them, row by row.
        at: usize,
        /// What it is.
        value: f32,
        /// The file.
        file: String,
    },
    /// There is no tensor of that name.
    #[error("no tensor {} in {place}; {}", quote(.tensor), if .nearest.is_empty() { "there are none at all".to_owned() } else { format!("the nearest names are {}", list(.nearest)) })]
    MissingTensor {
        /// The name.
        tensor: String,
        /// The checkpoint.
        place: String,
        /// Names that are there, nearest first.
        nearest: Vec<String>,
    },

    // ---- JSON files
    /// A JSON file does not parse, or is not what it should be.
    #[error("{file}: {reason}")]
    BadJson {
        /// The file.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// A JSON file is larger than any such file is.
    #[error("{file}: {bytes} bytes, the limit is {limit}")]
    JsonTooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
        /// The largest that is read.
        limit: u64,
    },

    // ---- the hub
    /// A model's name is neither a path nor an id of the hub.
    #[error("model {}: {reason}; give a directory (./dir) or a hub id (org/name, org/name@revision)", quote(.model))]
    ModelName {
        /// What was given.
        model: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `HF_ENDPOINT` is no URL.
    #[error("HF_ENDPOINT {}: expected a URL such as https://huggingface.co", quote(.endpoint))]
    HubEndpoint {
        /// What it is.
        endpoint: String,
    },
    /// The hub's model is none that can be run.
    #[error("hub model {}: {reason}", quote(.model))]
    HubUnusable {
        /// The model's id.
        model: String,
        /// What it lacks.
        reason: String,
    },
    /// The hub's cache can't be written.
    #[error("cannot write to the hub's cache {} (HF_HOME or HF_HUB_CACHE moves it): {source}", .cache.display())]
    HubCache {
        /// The cache.
        cache: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The hub wants a token, or another one.
    #[error("{endpoint} refuses access to {} (HTTP {status}): {}", quote(.model), if *.with_token { "the token of HF_TOKEN has no access to it, or the model does not exist" } else { "it is private, gated, or does not exist; set HF_TOKEN to a token that may read it, or write ./dir for a directory on this machine" })]
    HubAccess {
        /// The hub.
        endpoint: String,
        /// The model's id.
        model: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The hub does not have it.
    #[error("{endpoint} has no model {} at revision {} (HTTP 404): it does not exist or is private; for a directory on this machine write ./{model}", quote(.model), quote(.revision))]
    HubNoModel {
        /// The hub.
        endpoint: String,
        /// The model's id.
        model: String,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The hub could not be reached, or broke off too often.
    #[error("cannot fetch {what} from {endpoint}: {reason}")]
    HubNetwork {
        /// The hub.
        endpoint: String,
        /// What was wanted.
        what: String,
        /// Why it did not come.
        reason: String,
    },
    /// The network may not be used and the cache does not have the model.
    #[error("model {} is not complete in the cache {} ({reason}), and HF_HUB_OFFLINE forbids fetching it", quote(.model), .cache.display())]
    HubOffline {
        /// The model's id.
        model: String,
        /// The cache.
        cache: PathBuf,
        /// What is missing.
        reason: String,
    },
}

impl CheckpointError {
    /// Whether the user gave unusable input (exit status 2), as against a failure at run time (exit status 1).
    pub fn is_usage(&self) -> bool {
        match self {
            CheckpointError::Read { source, .. } | CheckpointError::HubCache { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::InvalidFilename
            ),
            CheckpointError::HubNetwork { .. } => false,
            _ => true,
        }
    }

    pub(crate) fn read(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        move |source| CheckpointError::Read { path: path.to_owned(), source }
    }
}

/// What is read instead of a type that is not.
fn instead_of(dtype: &str) -> &'static str {
    match dtype {
        E4M3 => {
            "it is read for linear layers of which config.json's quantization_config says how they are scaled"
        }
        _ => "F32, F16 and BF16 are supported",
    }
}
