use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub, its cache and how patient to be. [`HubConfig::from_env`] reads the variables that Hugging Face's own
/// tools read.
#[derive(Clone)]
pub struct HubConfig {
    /// URL of the hub.
    pub endpoint: String,
    /// The directory of `models--org--name` directories.
    pub cache: PathBuf,
    /// Sent as `Authorization: Bearer` if there is one.
    pub token: Option<String>,
    /// Whether the network may not be used.
    pub offline: bool,
    /// How often in a row an attempt that brings nothing is repeated.
    pub retries: u32,
    /// The pause before the first repetition; it doubles with every further one.
    pub retry_pause: Duration,
    /// How long the hub may send nothing.
    pub stall: Duration,
}

impl HubConfig {
    /// The settings that the environment asks for: `HF_ENDPOINT`; `HF_HUB_CACHE` or `HF_HOME`; `HF_TOKEN`, or the
    /// file `HF_TOKEN_PATH` or `$HF_HOME/token`; `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// The settings that these variables ask for. An empty variable counts as unset.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| var(name).map(|x| x.trim().to_owned()).filter(|x| !x.is_empty());
        let home = var("HOME").map(PathBuf::from).or_else(std::env::home_dir).unwrap_or_default();
        let path = |name: &str| var(name).map(|path| expand(&path, &home));
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let old_cache = || path("HUGGINGFACE_HUB_CACHE");
        let old_token = || var("HUGGING_FACE_HUB_TOKEN");
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        HubConfig {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            cache: path("HF_HUB_CACHE").or_else(old_cache).unwrap_or_else(|| hf_home.join("hub")),
            token: var("HF_TOKEN").or_else(old_token).or_else(|| token_in(&token_file)),
            offline: var("HF_HUB_OFFLINE").is_some_and(|x| is_true(&x)),
            retries: 5,
            retry_pause: Duration::from_millis(500),
            stall: Duration::from_secs(60),
        }
    }
}

impl std::fmt::Debug for HubConfig {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        let HubConfig { endpoint, cache, offline, retries, stall, .. } = self;
        write!(
            f,
            "HubConfig({endpoint}, {cache:?}, token {token:?}, offline {offline}, {retries} retries, {stall:?})"
        )
    }
}

/// `~` and `~/…` are under the home directory.
pub(super) fn expand(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

fn token_in(file: &Path) -> Option<String> {
    let token = std::fs::read_to_string(file).ok()?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// As huggingface_hub reads its flags.
fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vars: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_vars(|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variables_of_hugging_face_are_read() {
        let plain = of(&[("HOME", "/somewhere")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/somewhere/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        let home = of(&[
            ("HOME", "/somewhere"),
            ("HF_HOME", "~/hf"),
            ("HF_HUB_OFFLINE", "true"),
            ("HF_TOKEN", " t "),
        ]);
        assert_eq!(home.cache, Path::new("/somewhere/hf/hub"));
        assert!(home.offline && home.token.as_deref() == Some("t"));
        assert_eq!(of(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
    }

    #[test]
    fn the_token_may_be_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "from-home\n").unwrap();
        std::fs::write(dir.path().join("other"), "from-path\n").unwrap();
        let other = dir.path().join("other");
        assert_eq!(of(&[("HF_HOME", home)]).token.as_deref(), Some("from-home"));
        let vars = [("HF_HOME", home), ("HF_TOKEN_PATH", other.to_str().unwrap())];
        assert_eq!(of(&vars).token.as_deref(), Some("from-path"));
        assert!(!format!("{:?}", of(&vars)).contains("from-path"), "a token is not printed");
    }
}
