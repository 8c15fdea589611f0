//! Tests that run in processes of their own, where libraries that stand for NVIDIA's are found.

#![allow(dead_code, reason = "each program of tests uses a part")]

use std::process::Command;

use cuda::{CubinCache, Gpu, NvidiaDriver};
use libloading::Library;

#[path = "../fake/mod.rs"]
pub mod fake;

/// Set in the process where a test's body runs.
const BODY: &str = "ANYSPLIT_TEST_BODY";

/// Runs the body of the test of this name where those libraries are found, and these variables are set.
pub fn with_libraries(test: &str, variables: &[(&str, &str)], body: fn()) {
    if std::env::var_os(BODY).is_some() {
        return body();
    }
    let Some(folder) = fake::libraries() else { return };
    // The folder may be there from an earlier run; what that compiled is not to count.
    let cache = tempfile::tempdir().expect("a folder");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env("LD_LIBRARY_PATH", fake::search_path(folder))
        .env("XDG_CACHE_HOME", cache.path())
        .env(BODY, "1")
        .envs(variables.iter().copied())
        .output()
        .expect("it can be started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{told}", String::from_utf8_lossy(&output.stdout));
}

/// A number that a library counts.
pub fn counted(library: &str, function: &str) -> u32 {
    // SAFETY: it is loaded already.
    let library = unsafe { Library::new(library) }.expect("the library");
    // SAFETY: the function takes nothing and gives a number.
    let count = unsafe { library.get::<unsafe extern "C" fn() -> u32>(function) }.expect("the function");
    // SAFETY: see above.
    unsafe { count() }
}

pub fn graph_launches() -> u32 {
    counted("libcuda.so.1", "fake_graph_launches")
}

pub fn driver(enforce_eager: bool) -> NvidiaDriver {
    let gpu = Gpu::open(0, &CubinCache::none()).expect("the GPU");
    gpu.driver(enforce_eager).expect("a stream")
}
