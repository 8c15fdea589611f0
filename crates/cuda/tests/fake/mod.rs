//! Libraries that stand for NVIDIA's where there are none: all kernels run, on the processor.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// A folder of them, made once per process; none, and a word about it, without a C++ compiler.
pub fn libraries() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<TempDir>> = OnceLock::new();
    let folder = FOLDER.get_or_init(compiled).as_ref();
    if folder.is_none() {
        eprintln!("skipped: no C++ compiler, so nothing can stand for NVIDIA's libraries");
    }
    folder.map(TempDir::path)
}

/// `LD_LIBRARY_PATH` with that folder first.
pub fn search_path(folder: &Path) -> OsString {
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let all = [folder.into()].into_iter().chain(std::env::split_paths(&others));
    std::env::join_paths(all).expect("folders without colons")
}

fn compiled() -> Option<TempDir> {
    let folder = tempfile::tempdir().expect("a folder");
    let driver = cuda::kernels::emulated() + "#line 1 \"libcuda.cpp\"\n" + include_str!("libcuda.cpp");
    for (name, source) in
        [("libcuda.so.1", driver.as_str()), ("libnvrtc.so.13", include_str!("libnvrtc.cpp"))]
    {
        let (from, to) = (folder.path().join(format!("{name}.cpp")), folder.path().join(name));
        std::fs::write(&from, source).expect("a source");
        let output = Command::new(std::env::var("CXX").unwrap_or("c++".into()))
            .args([
                "-std=c++17",
                "-O1",
                "-shared",
                "-fPIC",
                "-ffp-contract=off",
                "-mfma",
                "-mf16c",
                "-pthread",
            ])
            .args(["-U_FORTIFY_SOURCE", "-w", &format!("-Wl,-soname,{name}"), "-o"])
            .args([&to, &from])
            .arg("-ldl")
            .output()
            .ok()?;
        assert!(output.status.success(), "{name}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Some(folder)
}
