//! What tests compile of C++ is compiled once for all of them, until its source changes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the compiler is told of all of them.
const COMMON: [&str; 7] =
    ["-shared", "-fPIC", "-ffp-contract=off", "-mfma", "-mf16c", "-U_FORTIFY_SOURCE", "-o"];

/// A library to be made: its name, its source, and what the compiler is told besides.
pub type Source<'a> = (&'a str, &'a str, &'a [&'a str]);

/// A folder of these libraries; none without a C++ compiler.
pub fn compiled(kind: &str, sources: &[Source<'_>]) -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or("c++".into());
    let mut hash = DefaultHasher::new();
    (&compiler, COMMON, sources).hash(&mut hash);
    let all = target().join("tmp").join(kind);
    let folder = all.join(format!("{:016x}", hash.finish()));
    if folder.is_dir() {
        return Some(folder);
    }
    std::fs::create_dir_all(&all).expect("a folder");
    // Other processes may do the same at this time: whoever is first gives it its name.
    let made = tempfile::tempdir_in(&all).expect("a folder");
    for (name, source, options) in sources {
        let (from, to) = (made.path().join(format!("{name}.cpp")), made.path().join(name));
        std::fs::write(&from, source).expect("a source");
        let output = Command::new(&compiler)
            .args(COMMON)
            .args([&to, &from])
            .arg(format!("-Wl,-soname,{name}"))
            .args(*options)
            .output()
            .ok()?;
        assert!(output.status.success(), "{name}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    if std::fs::rename(made.path(), &folder).is_ok() {
        // It is no temporary folder any more.
        let _ = made.keep();
    }
    Some(folder)
}

/// Where this program's tests were built: `target` of `target/debug/deps/program`.
fn target() -> PathBuf {
    let program = std::env::current_exe().expect("this program");
    program.ancestors().nth(3).map_or_else(std::env::temp_dir, Path::to_path_buf)
}
