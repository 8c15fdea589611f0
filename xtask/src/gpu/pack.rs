//! What a machine with a GPU needs, in one folder and one archive: programs, checkpoints, NVIDIA's compiler.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::speed::{self, DEEP, SHAPE, TO_LOAD};

/// What can be carried to such a machine: some take 64 MiB, of which the working tree has its part.
pub const MOST_BYTES: u64 = 48 << 20;

/// Programs of the package `cuda` that try a real GPU are called so.
const TESTS: &str = "gpu";

const RUN: &str = "\
#!/bin/sh
# Runs everything that is here on this machine's GPU, in ten minutes, and prints one table. It needs a driver and nothing else.
# Usage: ./run [--only PART,PART] [--seconds N] [--out FILE]
cd \"$(dirname \"$0\")\" || exit 2
needs=$(cat glibc)
has=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //')
if [ \"$(printf '%s\\n' \"$needs\" \"${has:-0}\" | sort -V | head -n 1)\" != \"$needs\" ]; then
    echo \"error: these programs need glibc $needs, this system has ${has:-another C library}; pack on an older one, or run this in a container of Debian 12 or Ubuntu 22.04\" >&2
    exit 2
fi
exec ./gpu-run gpu run --folder . \"$@\"
";

/// Builds what is needed and puts it into a folder, which is replaced.
///
/// # Errors
/// Something does not build, or NVIDIA's compiler can't be had.
pub fn folder(root: &Path, profile: &str, out: &Path) -> Result<PathBuf, String> {
    let built = [
        (build(root, profile, &["build", "-p", "cli", "--bin", "anysplit"])?, Kind::Program("anysplit")),
        (build(root, profile, &["build", "-p", "xtask", "--bin", "xtask"])?, Kind::Program("gpu-run")),
        (
            build(root, profile, &["build", "-p", "cuda", "--example", "cuda_bench"])?,
            Kind::Program("cuda_bench"),
        ),
        (build(root, profile, &["test", "--no-run", "-p", "cuda"])?, Kind::Tests),
    ];
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    for (executables, kind) in built {
        for path in executables {
            let stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let test = stem.rsplit_once('-').map_or(stem.as_str(), |(name, _)| name).to_owned();
            match kind {
                Kind::Program(name) => files.push((path, name.into())),
                Kind::Tests if test.contains(TESTS) => files.push((path, format!("tests/{test}"))),
                Kind::Tests => {}
            }
        }
    }
    for library in compiler(root)? {
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((library, format!("lib/{name}")));
    }
    files.push((root.join("tools/gpu/transformers_decode.py"), "transformers_decode.py".into()));
    files.push((root.join("tests/golden"), "golden".into()));
    put(&files, out)?;
    write(&out.join(SHAPE).join("config.json"), &(speed::shape(32).to_string() + "\n"))?;
    write(&out.join(DEEP).join("config.json"), &(speed::deep().to_string() + "\n"))?;
    write(&out.join(TO_LOAD), &(speed::shape(8).to_string() + "\n"))?;
    write(&out.join("run"), RUN)?;
    write(&out.join("glibc"), &(newest_glibc(&files) + "\n"))?;
    let run = out.join("run");
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).map_err(|error| told(&run, &error))?;
    Ok(out.to_owned())
}

/// The newest version of the C library whose symbols one of the programs wants.
fn newest_glibc(files: &[(PathBuf, String)]) -> String {
    let of_file = |(path, _): &(PathBuf, String)| {
        let bytes = if path.is_file() { fs::read(path).unwrap_or_default() } else { Vec::new() };
        glibc_of(&bytes)
    };
    let minor = files.iter().filter_map(of_file).max().unwrap_or(0);
    format!("2.{minor}")
}

/// The largest N of `GLIBC_2.N` in a program.
fn glibc_of(program: &[u8]) -> Option<u32> {
    let name = b"GLIBC_2.";
    let number = |at: usize| {
        let digits = program[at + name.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        // Beyond two digits it is no version.
        let digits: String = digits.take(3).map(|&byte| char::from(byte)).collect();
        digits.parse::<u32>().ok().filter(|&number| number < 100)
    };
    let places = program.windows(name.len()).enumerate().filter(|(_, window)| window == name);
    places.filter_map(|(at, _)| number(at)).max()
}

enum Kind {
    Program(&'static str),
    Tests,
}

/// What cargo built, by its own word.
fn build(root: &Path, profile: &str, words: &[&str]) -> Result<Vec<PathBuf>, String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root).args(words).args([
        "--profile",
        profile,
        "--locked",
        "--message-format=json-render-diagnostics",
    ]);
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| format!("gpu: cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("gpu: cargo {} --profile {profile}: {}", words.join(" "), output.status));
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// The programs that cargo's messages tell of.
fn executables(messages: &str) -> Vec<PathBuf> {
    let values = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    values.filter_map(|value| Some(PathBuf::from(value["executable"].as_str()?))).collect()
}

/// NVIDIA's compiler, as `tools/kernels/nvrtc` gets it. One of CUDA 12 is for drivers of 12 and of 13.
fn compiler(root: &Path) -> Result<Vec<PathBuf>, String> {
    let output = Command::new(root.join("tools/kernels/nvrtc"))
        .arg("12")
        .stderr(std::process::Stdio::inherit())
        .output();
    let output = output.map_err(|error| format!("gpu: tools/kernels/nvrtc: {error}"))?;
    if !output.status.success() {
        return Err(format!("gpu: tools/kernels/nvrtc: {}", output.status));
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let entries = fs::read_dir(&folder).map_err(|error| told(&folder, &error))?;
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc") && !name.contains(".alt.") && !name.contains("static")
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_it).collect())
}

/// Copies files and folders to their names in a new folder; programs without what only debuggers read.
fn put(files: &[(PathBuf, String)], out: &Path) -> Result<(), String> {
    if out.exists() {
        fs::remove_dir_all(out).map_err(|error| told(out, &error))?;
    }
    for (from, name) in files {
        let to = out.join(name);
        let parent = to.parent().unwrap_or(out);
        fs::create_dir_all(parent).map_err(|error| told(parent, &error))?;
        copy(from, &to)?;
        let is_program = !name.contains('.') && to.is_file();
        if is_program && let Err(error) = Command::new("strip").arg(&to).status() {
            eprintln!("gpu: {name} is not stripped: {error}");
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop).map_err(|error| told(from, &error));
    }
    fs::create_dir_all(to).map_err(|error| told(to, &error))?;
    // Only folders and what is in them: a README beside golden checkpoints is none.
    for entry in fs::read_dir(from).map_err(|error| told(from, &error))?.flatten() {
        if entry.path().extension().is_none_or(|kind| kind != "md") {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn write(to: &Path, text: &str) -> Result<(), String> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).map_err(|error| told(parent, &error))?;
    fs::write(to, text).map_err(|error| told(to, &error))
}

fn told(path: &Path, error: &std::io::Error) -> String {
    format!("gpu: {}: {error}", path.display())
}

/// Makes the archive beside the folder, and says how large it is.
///
/// # Errors
/// It is larger than `most` bytes: then there is none.
pub fn archive(folder: &Path, most: u64) -> Result<String, String> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (new, whole) = (parent.join(format!("{name}.tar.xz.new")), parent.join(format!("{name}.tar.xz")));
    fs::remove_file(&whole).ok();
    let made = Command::new("tar")
        // Most of it is machine code; that filter takes 6 % off NVIDIA's compiler.
        .env("XZ_OPT", "--x86 --lzma2=preset=6 -T0")
        .arg("-cJf")
        .arg(&new)
        .arg("-C")
        .arg(parent)
        .arg(&name)
        .status();
    let made = made.map_err(|error| format!("gpu: tar: {error}"))?;
    let bytes = fs::metadata(&new).map_or(0, |about| about.len());
    let result = match made.success() {
        false => Err(format!("gpu: tar: {made}")),
        true if bytes > most => Err(format!(
            "gpu: {:.1} MiB packed are more than {} MiB, beside which a working tree has room; the largest: {}",
            mib(bytes),
            most >> 20,
            largest(folder)
        )),
        true => fs::rename(&new, &whole).map_err(|error| told(&new, &error)),
    };
    // What is no archive is not left behind.
    result.inspect_err(|_| fs::remove_file(&new).unwrap_or(()))?;
    Ok(format!(
        "gpu: {} ({:.1} MiB; at most {} MiB)\non a machine with a GPU: tar -xJf {name}.tar.xz && {name}/run",
        whole.display(),
        mib(bytes),
        most >> 20
    ))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The three largest files of a folder.
fn largest(folder: &Path) -> String {
    let mut all = Vec::new();
    sizes(folder, folder, &mut all);
    all.sort_by(|a, b| b.cmp(a));
    let told = all.into_iter().take(3).map(|(bytes, name)| format!("{name} {:.1} MiB", mib(bytes)));
    told.collect::<Vec<_>>().join(", ")
}

fn sizes(root: &Path, folder: &Path, all: &mut Vec<(u64, String)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(about) if about.is_dir() => sizes(root, &entry.path(), all),
            Ok(about) => {
                let path = entry.path();
                let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                all.push((about.len(), name));
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
