//! Shared libraries that are found at run time.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::Library;

/// Where a library is looked for: under each of its names where the system looks (`LD_LIBRARY_PATH`, `ldconfig`), then in folders.
pub(crate) struct Search {
    /// The best first.
    pub names: Vec<String>,
    /// Those that are not there are passed over.
    pub folders: Vec<PathBuf>,
}

impl Search {
    /// The first that is found and can be loaded, and the name or path that it was found by.
    ///
    /// # Errors
    /// What was looked for; and what is wrong with files that are there.
    pub fn open(&self) -> Result<(Library, PathBuf), NotFound> {
        let in_folders = self.folders.iter().flat_map(|f| self.names.iter().map(|name| f.join(name)));
        let paths = self.names.iter().map(PathBuf::from).chain(in_folders.filter(|path| path.exists()));
        let mut broken = Vec::new();
        for path in paths {
            match open(&path) {
                Ok(library) => return Ok((library, path)),
                Err(error) if path.is_absolute() || !error.contains("No such file") => broken.push(error),
                Err(_) => {}
            }
        }
        Err(NotFound { names: self.names.clone(), folders: self.folders.clone(), broken })
    }
}

/// Loads a library and keeps it.
pub(crate) fn open(path: &Path) -> Result<Library, String> {
    // SAFETY: NVIDIA's libraries may be loaded at any time; another file of their name can't be told from them.
    unsafe { Library::new(path) }.map_err(|error| innermost(&error))
}

/// What the system says, without what it was asked.
fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

/// A library that nobody has.
#[derive(Debug)]
pub(crate) struct NotFound {
    names: Vec<String>,
    folders: Vec<PathBuf>,
    broken: Vec<String>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "looked for {} in the system's folders", self.names.join(" and "))?;
        for folder in &self.folders {
            write!(f, ", {}", folder.display())?;
        }
        self.broken.iter().try_for_each(|error| write!(f, "; {error}"))
    }
}

/// Where the packages of pip and conda have their libraries, of those whose folder below `nvidia` is asked for: in the environments
/// that are active, beside each Python that is found, and in the user's own.
pub(crate) fn package_folders(is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    // An environment of conda has libraries of its own; where a python is, packages of pip are beside it.
    let mut folders: Vec<PathBuf> =
        variable("CONDA_PREFIX").map(|prefix| prefix.join("lib")).into_iter().collect();
    let path = env::var_os("PATH").unwrap_or_default();
    let with_python = env::split_paths(&path).filter(|bin| bin.join("python3").exists());
    let prefixes = with_python.filter_map(|bin| bin.parent().map(Path::to_path_buf));
    let own = env::home_dir().map(|home| home.join(".local"));
    for prefix in variable("VIRTUAL_ENV").into_iter().chain(prefixes).chain(own) {
        folders.extend(pip_folders(&prefix, &is_wanted));
    }
    let mut seen = Vec::new();
    folders.retain(|folder| {
        let is_new = !seen.contains(folder);
        seen.push(folder.clone());
        is_new
    });
    folders
}

/// A folder that a variable names.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where pip puts the libraries of NVIDIA's packages below the prefix of a Python.
fn pip_folders(prefix: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let pythons = folders_in(&prefix.join("lib"), |name| name.starts_with("python3"));
    let packages =
        pythons.iter().flat_map(|python| ["site-packages", "dist-packages"].map(|d| python.join(d)));
    let parts = packages.flat_map(|packages| folders_in(&packages.join("nvidia"), &is_wanted));
    parts.map(|part| part.join("lib")).filter(|lib| lib.is_dir()).collect()
}

/// Folders in a folder, by name, the last first: newer versions before older ones.
fn folders_in(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_wanted = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(&wanted);
    let mut folders: Vec<PathBuf> = entries.filter(is_wanted).filter(|path| path.is_dir()).collect();
    folders.sort_by(|a, b| b.cmp(a));
    folders
}

/// A struct of a library's functions, all of which are there, or it can't be made.
macro_rules! functions {
    ($(#[$about:meta])* struct $name:ident { $($function:ident: fn($($argument:ty),*) -> $result:ty,)* }) => {
        $(#[$about])*
        #[allow(non_snake_case)]
        struct $name {
            $($function: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $name {
            /// # Errors
            /// The name of a function that is not in the library.
            ///
            /// # Safety
            /// The library's functions of these names have these types.
            unsafe fn of(library: libloading::Library) -> Result<Self, &'static str> {
                let functions = $name {
                    // SAFETY: the caller promises it.
                    $($function: *unsafe { library.get(stringify!($function)) }
                        .map_err(|_| stringify!($function))?,)*
                };
                // It stays: libraries that started threads or have something to do at the end don't survive being unloaded.
                std::mem::forget(library);
                Ok(functions)
            }
        }
    };
}
pub(crate) use functions;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_with_all_that_was_looked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("libnobody.so.2"), "no library").expect("a file");
        let names = ["libnobody.so.3", "libnobody.so.2"].map(String::from).to_vec();
        let search = Search { names, folders: vec![folder.path().into(), "/nowhere".into()] };
        let told = search.open().expect_err("nobody has it").to_string();
        let begin = format!(
            "looked for libnobody.so.3 and libnobody.so.2 in the system's folders, {}, /nowhere; ",
            folder.path().display()
        );
        assert!(told.starts_with(&begin), "{told}");
        // What is there and is no library is named, once.
        assert_eq!(told.matches("libnobody.so.2").count(), 2, "{told}");
        assert_eq!(told.lines().count(), 1);
    }

    #[test]
    fn folders_of_pip_are_found_whatever_the_version() {
        let prefix = tempfile::tempdir().expect("a folder");
        for path in
            ["python3.9/site-packages/nvidia/cuda_nvrtc/lib", "python3.12/site-packages/nvidia/cu13/lib"]
        {
            std::fs::create_dir_all(prefix.path().join("lib").join(path)).expect("a folder");
        }
        std::fs::create_dir_all(prefix.path().join("lib/python3.12/site-packages/nvidia/cublas/lib"))
            .expect("a folder");
        let is_wanted = |name: &str| name == "cuda_nvrtc" || name == "cu13";
        let found = pip_folders(prefix.path(), is_wanted);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(pip_folders(Path::new("/nowhere"), is_wanted).is_empty());
    }
}
