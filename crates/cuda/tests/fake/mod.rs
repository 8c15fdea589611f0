//! Libraries that stand for NVIDIA's where there are none: all kernels run, on the processor.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

#[path = "../once/mod.rs"]
mod once;

/// A folder of them, made when their sources have changed; none, and a word about it, without a C++ compiler.
pub fn libraries() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(compiled).as_deref();
    if folder.is_none() {
        eprintln!("skipped: no C++ compiler, so nothing can stand for NVIDIA's libraries");
    }
    folder
}

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
    const OPTIONS: &[&str] = &["-std=c++17", "-O1", "-pthread", "-w", "-ldl"];
    once::compiled("stand-ins", &sources.map(|(name, source)| (name, source, OPTIONS)))
}
