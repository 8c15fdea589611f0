//! A folder that appears under its name when it is complete, or not at all.
//!
//! Until then it is `.NAME.partial-PID` beside that, locked by its process. The lock ends with the process however that ends:
//! so who finds one without a lock knows that it was left behind.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::iterator::Signals;

use crate::error::CliError;
use crate::launch::signals;

/// A folder that is being written.
pub struct NewFolder {
    name: PathBuf,
    partial: PathBuf,
    /// Held while it is kept or removed: only one of both happens, and only one end is told.
    end: Arc<Mutex<()>>,
    _lock: File,
}

impl NewFolder {
    /// Refuses a name that is taken, or is none.
    ///
    /// # Errors
    /// It is.
    pub fn check(name: &Path) -> Result<(), CliError> {
        if fs::symlink_metadata(name).is_ok() {
            return Err(refused(name, " is there already; name a folder that is not"));
        }
        match name.file_name() {
            Some(_) => Ok(()),
            None => Err(refused(name, " is no name of a folder")),
        }
    }

    /// Begins one, after removing those of the same name that were left behind.
    ///
    /// # Errors
    /// As [`NewFolder::check`], or it can't be made.
    pub fn create(name: &Path) -> Result<Self, CliError> {
        NewFolder::check(name)?;
        let mut prefix = OsString::from(".");
        prefix.push(name.file_name().unwrap_or_default());
        prefix.push(".partial-");
        remove_left_behind(name, &prefix);
        prefix.push(std::process::id().to_string());
        let partial = name.with_file_name(prefix);
        let cannot = |e: io::Error| refused(name, &format!(": cannot make a folder there: {e}"));
        fs::create_dir(&partial).map_err(cannot)?;
        let lock = File::open(&partial).map_err(cannot)?;
        // A file system that has no locks has none to find, either: then nothing is ever taken for left behind.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(refused(name, ": another `anysplit quantize` has just begun to write it; try again"));
        }
        Ok(NewFolder { name: name.to_owned(), partial, end: Arc::default(), _lock: lock })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Who is asked to end takes what is incomplete along, and tells why it ended. `quiet` ends what is shown until then.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn remove_if_ended(&self, quiet: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut signals = Signals::new(signals::to_end())?;
        let (partial, end) = (self.partial.clone(), self.end.clone());
        let wait = move || {
            if let Some(signal) = signals.forever().next() {
                let _only = end.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = fs::remove_dir_all(&partial);
                quiet();
                let (line, status) = signals::ending(signal);
                let _ = CliError::Job { line, status }.report();
                std::process::exit(status.into());
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
    }

    /// It is complete.
    ///
    /// # Errors
    /// It can't get its name, because that was taken meanwhile, for example.
    pub fn keep(self) -> Result<(), CliError> {
        let _only = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        fs::rename(&self.partial, &self.name).map_err(|e| {
            let name = self.name.display();
            CliError::failed(match fs::symlink_metadata(&self.name) {
                Ok(_) => format!(
                    "{name} has appeared while it was packed, and is left as it is; name another --out"
                ),
                Err(_) => format!("cannot write {name}: {e}"),
            })
        })
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        let _only = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        // Not there any more if it was kept.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

fn refused(name: &Path, why: &str) -> CliError {
    CliError::Usage(format!("--out {}{why}", name.display()))
}

/// Removes what processes that were killed have left of a folder, and says so.
fn remove_left_behind(name: &Path, prefix: &OsStr) {
    let parent = name.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // If it can't be listed, or something not be removed, it is as if nothing were there.
    let Ok(listing) = fs::read_dir(parent) else { return };
    for entry in listing.flatten() {
        let (found, path) = (entry.file_name(), entry.path());
        let pid = found.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        let is_partial = pid.is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit))
            && entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_partial {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok() && fs::remove_dir_all(&path).is_ok() {
            job::say!("removed {}: an `anysplit quantize` that was killed had left it", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_left_behind_goes_and_what_is_locked_or_of_another_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let others = [".a.partial-", ".a.partial-1x", ".b.partial-1", ".xa.partial-1"];
        for left in others.iter().chain(&[".a.partial-1", ".a.partial-22", ".a.partial-333"]) {
            fs::create_dir(dir.path().join(left)).unwrap();
            fs::write(dir.path().join(left).join("file"), "").unwrap();
        }
        fs::write(dir.path().join(".a.partial-4"), "a file").unwrap();
        let alive = File::open(dir.path().join(".a.partial-22")).unwrap();
        alive.lock().unwrap();
        let folder = NewFolder::create(&dir.path().join("a")).unwrap();
        let mine = format!(".a.partial-{}", std::process::id());
        let mut want: Vec<&str> = [&others[..], &[".a.partial-22", ".a.partial-4", &mine]].concat();
        want.sort();
        assert_eq!(names(dir.path()), want);
        folder.keep().unwrap();
        let mut want: Vec<&str> = [&others[..], &[".a.partial-22", ".a.partial-4", "a"]].concat();
        want.sort();
        assert_eq!(names(dir.path()), want);
    }

    #[test]
    fn a_name_that_is_taken_meanwhile_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("a");
        let folder = NewFolder::create(&name).unwrap();
        fs::create_dir(&name).unwrap();
        fs::write(name.join("mine"), "precious").unwrap();
        let line = folder.keep().unwrap_err().to_string();
        assert!(line.contains("a has appeared while it was packed"), "{line}");
        assert_eq!((names(dir.path()), names(&name)), (vec!["a".to_owned()], vec!["mine".to_owned()]));
    }
}
