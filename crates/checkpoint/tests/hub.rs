//! Models come from the hub whole, once, and only with the token that is meant for it.

mod common;
#[path = "common/hub_server.rs"]
mod hub_server;

use std::path::Path;
use std::time::Duration;

use checkpoint::hub::{HubConfig, Progress, Silent, resolve, resolve_without_weights};
use checkpoint::{Checkpoint, CheckpointError};
use common::f32_file;
use hub_server::{COMMIT, Hub, Server};
use tempfile::TempDir;

const ID: &str = "org/tiny";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

fn hub(files: &[(&str, Vec<u8>)]) -> Hub {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
    Hub { id: ID, files, ..Hub::default() }
}

/// A model of one file of a few hundred kilobytes, and files that are not wanted.
fn small() -> Hub {
    let values: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    hub(&[
        ("config.json", b"{\"model_type\":\"llama\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("README.md", b"# tiny".to_vec()),
        ("pytorch_model.bin", vec![0; 100]),
        (SINGLE, f32_file(&[("w", &[100, 1000], &values)])),
    ])
}

fn sharded() -> Hub {
    let index = format!(r#"{{"weight_map":{{"a":{:?},"b":{:?}}}}}"#, SHARDS[0], SHARDS[1]);
    hub(&[
        ("config.json", b"{}".to_vec()),
        (INDEX, index.into_bytes()),
        (SHARDS[0], f32_file(&[("a", &[1], &[1.0])])),
        (SHARDS[1], f32_file(&[("b", &[1], &[2.0])])),
    ])
}

/// A server, an empty cache, and the settings that join them.
struct Setting {
    server: Server,
    config: HubConfig,
    cache: TempDir,
}

impl Setting {
    fn new(hub: Hub) -> Self {
        let (server, cache) = (Server::start(hub), tempfile::tempdir().unwrap());
        let config = HubConfig {
            endpoint: server.endpoint(),
            cache: cache.path().to_owned(),
            token: None,
            offline: false,
            retries: 3,
            retry_pause: Duration::ZERO,
            stall: Duration::from_secs(30),
        };
        Setting { server, config, cache }
    }

    fn resolve(&self) -> Result<std::path::PathBuf, CheckpointError> {
        resolve(ID, &self.config, &mut Silent)
    }

    fn fails(&self, parts: &[&str]) -> CheckpointError {
        let error = self.resolve().unwrap_err();
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line:?}");
        for part in parts {
            assert!(line.contains(part), "{line}\nshould say {part}");
        }
        error
    }

    /// A partial download, as a process that was killed leaves it.
    fn leave_part(&self, file: &str, bytes: &[u8]) {
        let blobs = self.cache.path().join("models--org--tiny/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        common::write(&blobs, &part_of(file), bytes);
    }
}

/// hf-hub replaces what follows the last dot of the ETag.
fn part_of(file: &str) -> String {
    let blob = format!("etag-{file}");
    Path::new(&blob).with_extension("part").to_str().unwrap().to_owned()
}

/// Checks that a download is told as one story.
#[derive(Default)]
struct Story {
    files: Vec<(String, u64, u64)>,
    finished: usize,
}

impl Progress for Story {
    fn start(&mut self, file: &str, bytes: u64) {
        self.files.push((file.to_owned(), bytes, 0));
    }
    fn advance(&mut self, bytes: u64) {
        self.files.last_mut().unwrap().2 += bytes;
    }
    fn finish(&mut self) {
        let (file, total, done) = self.files.last().unwrap();
        assert_eq!(total, done, "{file}");
        self.finished += 1;
    }
}

fn assert_whole(dir: &Path, setting: &Setting) {
    let hub = setting.server.hub.lock().unwrap();
    assert_eq!(std::fs::read(dir.join(SINGLE)).unwrap(), hub.files[SINGLE]);
    assert_eq!(Checkpoint::open(dir).unwrap().matrix("w", [100, 1000]).unwrap().stored_bytes(), 400_000);
}

#[test]
fn a_model_is_fetched_once_and_then_found_without_a_network() {
    let setting = Setting::new(small());
    let mut story = Story::default();
    let dir = resolve(ID, &setting.config, &mut story).unwrap();
    assert_whole(&dir, &setting);
    assert_eq!(dir, setting.cache.path().join("models--org--tiny/snapshots").join(COMMIT));
    let names: Vec<&str> = story.files.iter().map(|(file, ..)| file.as_str()).collect();
    assert_eq!(names, ["config.json", "tokenizer.json", SINGLE]);
    assert_eq!(story.finished, 3);

    let before = setting.server.requests.lock().unwrap().len();
    assert_eq!(setting.resolve().unwrap(), dir);
    assert_eq!(setting.server.requests.lock().unwrap().len(), before + 1, "only the list is asked for again");

    let mut away = setting.config.clone();
    away.endpoint = unreachable_endpoint();
    assert_eq!(resolve(ID, &away, &mut Silent).unwrap(), dir, "the cache will do");
    away.offline = true;
    assert_eq!(resolve(ID, &away, &mut Silent).unwrap(), dir);
    assert_eq!(resolve(&format!("{ID}@{COMMIT}"), &away, &mut Silent).unwrap(), dir);
    assert!(resolve(&format!("{ID}@v2"), &away, &mut Silent).is_err());
}

/// A port of this machine on which nobody listens.
fn unreachable_endpoint() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_sharded_model_comes_with_all_its_shards() {
    let setting = Setting::new(sharded());
    let checkpoint = Checkpoint::open(&setting.resolve().unwrap()).unwrap();
    assert_eq!(checkpoint.vector("b", 1).unwrap(), [2.0]);
}

#[test]
fn a_config_can_be_had_without_the_weights() {
    let setting = Setting::new(sharded());
    let dir = resolve_without_weights(ID, &setting.config, &mut Silent).unwrap();
    assert!(dir.join("config.json").exists() && !dir.join(INDEX).exists());
    let mut offline = setting.config.clone();
    offline.offline = true;
    assert!(resolve_without_weights(ID, &offline, &mut Silent).is_ok());
    let error = resolve(ID, &offline, &mut Silent).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE") && error.is_usage(), "{error}");
    setting.resolve().unwrap();
    assert!(resolve(ID, &offline, &mut Silent).is_ok());
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let mut hub = small();
    hub.breaks.insert(SINGLE.to_owned(), 150_000);
    let setting = Setting::new(hub);
    let mut story = Story::default();
    let dir = resolve(ID, &setting.config, &mut story).unwrap();
    assert_whole(&dir, &setting);
    assert_eq!(story.finished, 3);
    let ranges: Vec<_> = setting.server.requests_of(SINGLE).into_iter().filter_map(|r| r.range).collect();
    assert_eq!(ranges, ["bytes=0-0", "bytes=0-", "bytes=0-0", "bytes=150000-"]);
}

#[test]
fn a_download_that_was_killed_is_taken_up_by_the_next_process() {
    let setting = Setting::new(small());
    let whole = setting.server.hub.lock().unwrap().files[SINGLE].clone();
    setting.leave_part(SINGLE, &whole[..300_000]);
    assert_whole(&setting.resolve().unwrap(), &setting);
    let ranges: Vec<_> = setting.server.requests_of(SINGLE).into_iter().filter_map(|r| r.range).collect();
    assert_eq!(ranges, ["bytes=0-0", "bytes=300000-"]);
}

#[test]
fn a_part_that_cannot_be_continued_is_fetched_anew() {
    for length in [0, 1] {
        let setting = Setting::new(small());
        let mut part = setting.server.hub.lock().unwrap().files[SINGLE].clone();
        part.resize(part.len() + length, 0);
        setting.leave_part(SINGLE, &part);
        assert_whole(&setting.resolve().unwrap(), &setting);
    }
}

#[test]
fn a_server_that_sends_the_whole_for_the_rest_does_no_harm() {
    let mut hub = small();
    hub.ignores_range.push(SINGLE.to_owned());
    let setting = Setting::new(hub);
    setting.leave_part(SINGLE, &[9; 300]);
    assert_whole(&setting.resolve().unwrap(), &setting);
}

#[test]
fn a_hub_that_falls_silent_is_an_error_after_a_while() {
    let mut hub = small();
    hub.stalls.insert(SINGLE.to_owned(), 1000);
    let mut setting = Setting::new(hub);
    setting.config.stall = Duration::from_millis(300);
    // On a busy machine what comes before may take that long too. It is in the cache when it is asked for again.
    let silences = std::iter::repeat_with(|| {
        let error = setting.fails(&["nothing came for", &setting.config.endpoint]);
        assert!(!error.is_usage());
        error.to_string()
    });
    let found = silences.take(50).find(|line| line.contains(SINGLE));
    assert!(found.is_some(), "it never comes to the file that falls silent");
}

#[test]
fn a_file_that_never_comes_ends_in_an_error() {
    let setting = Setting::new(small());
    setting.server.hub.lock().unwrap().files.get_mut(SINGLE).unwrap().clear();
    let error = setting.fails(&["model.safetensors", &setting.config.endpoint, "HTTP 416"]);
    assert!(!error.is_usage());
}

#[test]
fn a_token_is_sent_where_there_is_one_and_not_otherwise() {
    let setting = Setting::new(small());
    setting.resolve().unwrap();
    assert!(setting.server.requests.lock().unwrap().iter().all(|r| r.authorization.is_none()));

    let mut hub = small();
    hub.token = Some("secret");
    let mut setting = Setting::new(hub);
    let error = setting.fails(&["HTTP 401", "HF_TOKEN", ID]);
    assert!(error.is_usage());
    setting.config.token = Some("wrong".to_owned());
    setting.fails(&["HTTP 401", "the token of HF_TOKEN has no access"]);
    setting.server.requests.lock().unwrap().clear();
    setting.config.token = Some("secret".to_owned());
    assert_whole(&setting.resolve().unwrap(), &setting);
    let requests = setting.server.requests.lock().unwrap();
    assert!(requests.iter().all(|r| r.authorization.as_deref() == Some("Bearer secret")));
}

#[test]
fn weights_on_another_host_are_followed() {
    let storage = Server::start(small());
    let mut hub = small();
    hub.redirects.insert(SINGLE.to_owned(), storage.address);
    let setting = Setting::new(hub);
    assert_whole(&setting.resolve().unwrap(), &setting);
    assert_eq!(storage.requests_of(SINGLE).len(), 2);
}

#[test]
fn a_name_that_the_hub_does_not_know_says_how_to_name_a_directory() {
    let setting = Setting::new(small());
    let error = resolve("org/tinny", &setting.config, &mut Silent).unwrap_err();
    let line = error.to_string();
    assert!(
        line.contains(r#"no model "org/tinny" at revision "main""#) && line.contains("./org/tinny"),
        "{line}"
    );
    assert!(error.is_usage());
}

#[test]
fn no_network_names_the_endpoint() {
    let mut setting = Setting::new(small());
    setting.config.endpoint = unreachable_endpoint();
    let error = setting.fails(&[&setting.config.endpoint, ID]);
    assert!(!error.is_usage());
    setting.config.endpoint = "huggingface.co".to_owned();
    assert!(setting.fails(&["HF_ENDPOINT", "https://"]).is_usage());
}

#[test]
fn offline_nothing_is_asked_for() {
    let mut setting = Setting::new(small());
    setting.config.offline = true;
    assert!(setting.fails(&["HF_HUB_OFFLINE", ID, "nothing of revision main"]).is_usage());
    assert!(setting.server.requests.lock().unwrap().is_empty());
}

#[test]
fn a_model_without_safetensors_is_refused_before_anything_is_fetched() {
    let config = ("config.json", b"{}".to_vec());
    for (name, words) in [("pytorch_model.bin", "PyTorch"), ("tiny.Q4.gguf", "GGUF")] {
        let setting = Setting::new(hub(&[config.clone(), (name, vec![0; 10])]));
        assert!(setting.fails(&[name, words, "safetensors"]).is_usage());
        assert_eq!(setting.server.requests.lock().unwrap().len(), 1);
    }
    Setting::new(hub(&[("README.md", vec![0; 10])])).fails(&["no config.json"]);
}

#[test]
fn an_index_from_the_hub_may_not_lead_out_of_the_snapshot() {
    let index = br#"{"weight_map":{"a":"../../../../x.safetensors"}}"#.to_vec();
    let setting = Setting::new(hub(&[("config.json", b"{}".to_vec()), (INDEX, index)]));
    assert!(setting.fails(&["../../../../x.safetensors", "not a plain"]).is_usage());
    assert!(!setting.server.requests.lock().unwrap().iter().any(|r| r.path.contains("..")));
}

#[test]
fn an_existing_directory_is_never_looked_up() {
    let mut setting = Setting::new(small());
    setting.config.endpoint = unreachable_endpoint();
    let dir = setting.cache.path().to_str().unwrap();
    assert_eq!(resolve(dir, &setting.config, &mut Silent).unwrap(), setting.cache.path());
}
