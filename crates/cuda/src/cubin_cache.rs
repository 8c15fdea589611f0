//! What kernels were compiled to, kept on disk for the next start.

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};

use xxhash_rust::xxh3::xxh3_128;

/// A folder of compiled kernels. Any number of processes may read and write it at a time: files appear whole, by a rename, and one
/// that is not what was written is as good as none.
#[derive(Clone, Debug)]
pub struct CubinCache {
    /// Without one, nothing is kept.
    folder: Option<PathBuf>,
}

/// Of what code was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u128);

/// A file is this hash of the code, and then the code.
const HASH_BYTES: usize = 16;

impl Key {
    /// Whatever the code depends on.
    pub fn of(parts: &[&str]) -> Self {
        // With lengths, so that no text can go on in the next.
        let parts = parts.iter().flat_map(|part| [&part.len().to_le_bytes()[..], part.as_bytes()].concat());
        Key(xxh3_128(&parts.collect::<Vec<u8>>()))
    }
}

impl CubinCache {
    /// In a folder, which need not be there yet.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        CubinCache { folder: Some(folder.into()) }
    }

    /// In the user's folder of caches: `XDG_CACHE_HOME`, or `.cache` at home.
    pub fn of_user() -> Self {
        // XDG's rule: a relative path counts for nothing.
        let set = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = set.or_else(|| env::home_dir().map(|home| home.join(".cache")));
        CubinCache { folder: caches.map(|caches| caches.join("anysplit").join("cubins")) }
    }

    /// Keeps nothing.
    pub fn none() -> Self {
        CubinCache { folder: None }
    }

    fn path(&self, Key(key): Key) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{key:032x}")))
    }

    /// What was kept, if it is whole.
    pub(crate) fn get(&self, key: Key) -> Option<Vec<u8>> {
        let file = fs::read(self.path(key)?).ok()?;
        let (hash, code) = file.split_at_checked(HASH_BYTES)?;
        (hash == xxh3_128(code).to_le_bytes()).then(|| code.to_vec())
    }

    /// Keeps code. That it can't be written costs a moment at the next start and is no error: home may be read-only.
    pub(crate) fn put(&self, key: Key, code: &[u8]) {
        self.write(key, code).ok();
    }

    fn write(&self, key: Key, code: &[u8]) -> io::Result<()> {
        /// Of this process, so that its threads don't write to the same file.
        static WRITTEN: AtomicUsize = AtomicUsize::new(0);
        let (Some(folder), Some(path)) = (&self.folder, self.path(key)) else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let count = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let new = folder.join(format!(".{}-{count}", process::id()));
        let file = [&xxh3_128(code).to_le_bytes()[..], code].concat();
        let written = fs::write(&new, file).and_then(|()| fs::rename(&new, path));
        // A disk that is full must not fill up with halves.
        written.inspect_err(|_| fs::remove_file(&new).unwrap_or(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &std::path::Path) -> Vec<PathBuf> {
        fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect()
    }

    #[test]
    fn what_was_put_is_there_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = CubinCache::at(folder.path().join("a/b"));
        let key = Key::of(&["source", "flags"]);
        assert_eq!(cache.get(key), None);
        cache.put(key, b"code");
        assert_eq!(cache.get(key).as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.get(Key::of(&["sourcef", "lags"])), None);
        cache.put(key, b"");
        assert_eq!(cache.get(key).as_deref(), Some(&b""[..]));
        assert_eq!(files(&folder.path().join("a/b")).len(), 1);
        CubinCache::none().put(key, b"code");
        assert_eq!(CubinCache::none().get(key), None);
    }

    #[test]
    fn a_file_that_is_not_whole_counts_for_nothing_and_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = CubinCache::at(folder.path());
        let key = Key::of(&["source"]);
        cache.put(key, b"some code");
        let path = files(folder.path()).remove(0);
        let whole = fs::read(&path).expect("the file");
        let mut changed = whole.clone();
        *changed.last_mut().expect("bytes") ^= 1;
        for bad in [&whole[..whole.len() - 1], &whole[..3], &[], &changed] {
            fs::write(&path, bad).expect("a bad file");
            assert_eq!(cache.get(key), None);
        }
        cache.put(key, b"some code");
        assert_eq!(cache.get(key).as_deref(), Some(&b"some code"[..]));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("a file");
        let cache = CubinCache::at(file.join("below"));
        cache.put(Key::of(&["source"]), b"code");
        assert_eq!(cache.get(Key::of(&["source"])), None);
        // A folder where the file would be: the rename fails, and nothing is left behind.
        let cache = CubinCache::at(folder.path());
        let key = Key::of(&["other"]);
        fs::create_dir_all(cache.path(key).expect("a path").join("full")).expect("a folder");
        cache.put(key, b"code");
        assert_eq!(files(folder.path()).len(), 2);
    }

    #[test]
    fn many_may_write_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = CubinCache::at(folder.path());
        let key = Key::of(&["source"]);
        let code = vec![7; 100_000];
        cache.put(key, &code);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        cache.put(key, &code);
                        assert_eq!(cache.get(key).as_ref(), Some(&code));
                    }
                });
            }
        });
        assert_eq!(files(folder.path()).len(), 1);
    }
}
