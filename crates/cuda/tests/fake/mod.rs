//! Libraries that stand for NVIDIA's where there are none: all kernels run, on the processor.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A folder of them, made when their sources have changed; none, and a word about it, without a C++ compiler.
pub fn libraries() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(compiled).as_deref();
    if folder.is_none() {
        eprintln!("skipped: no C++ compiler, so nothing can stand for NVIDIA's libraries");
    }
    folder
}

const OPTIONS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-mfma",
    "-mf16c",
    "-pthread",
    "-U_FORTIFY_SOURCE",
    "-w",
];

/// `LD_LIBRARY_PATH` with that folder first.
pub fn search_path(folder: &Path) -> OsString {
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let all = [folder.into()].into_iter().chain(std::env::split_paths(&others));
    std::env::join_paths(all).expect("folders without colons")
}

fn compiled() -> Option<PathBuf> {
    let parts = [
        ("libcuda_state.cpp", include_str!("libcuda_state.cpp")),
        ("libcuda.cpp", include_str!("libcuda.cpp")),
        ("libcuda_streams.cpp", include_str!("libcuda_streams.cpp")),
    ];
    let parts = parts.map(|(name, source)| format!("#line 1 \"{name}\"\n{source}"));
    let driver = cuda::kernels::emulated() + &parts.concat();
    let sources = [
        ("libcuda.so.1", driver.as_str()),
        ("libnvrtc.so.13", include_str!("libnvrtc.cpp")),
        ("libtool.so", include_str!("libtool.cpp")),
        ("libnccl.so.2", include_str!("libnccl.cpp")),
        ("libcublasLt.so.13", include_str!("libcublaslt.cpp")),
    ];
    let mut hash = DefaultHasher::new();
    (sources, OPTIONS).hash(&mut hash);
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand-ins");
    let folder = all.join(format!("{:016x}", hash.finish()));
    if folder.is_dir() {
        return Some(folder);
    }
    std::fs::create_dir_all(&all).expect("a folder");
    // Other processes may do the same at this time: whoever is first gives it its name.
    let made = tempfile::tempdir_in(&all).expect("a folder");
    for (name, source) in sources {
        let (from, to) = (made.path().join(format!("{name}.cpp")), made.path().join(name));
        std::fs::write(&from, source).expect("a source");
        let output = Command::new(std::env::var("CXX").unwrap_or("c++".into()))
            .args(OPTIONS)
            .args([&format!("-Wl,-soname,{name}"), "-o"])
            .args([&to, &from])
            .arg("-ldl")
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
