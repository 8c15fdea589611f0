//! The parts of a run, in the order of what they are worth: each has its time, and what becomes of one is nothing to the others.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::command::Place;
use super::table::{Report, Row};
use super::{bits, speed};

/// One part.
pub struct Part {
    /// As `--only` calls it.
    pub name: &'static str,
    /// Seconds.
    pub limit: u64,
    pub run: fn(&Place) -> Result<Vec<Row>, String>,
}

/// Together they take at most what a run may.
pub const PARTS: &[Part] = &[
    Part { name: "limits", limit: 15, run: speed::limits },
    Part { name: "conformance", limit: 60, run: conformance },
    Part { name: "goldens", limit: 60, run: bits::goldens },
    Part { name: "bits", limit: 50, run: bits::equality },
    Part { name: "kernels", limit: 50, run: speed::kernels },
    Part { name: "decode", limit: 80, run: speed::decode },
    Part { name: "prefill", limit: 50, run: speed::prefill },
    Part { name: "fast", limit: 75, run: speed::fast },
    Part { name: "comm", limit: 15, run: speed::comm },
    Part { name: "start-up", limit: 25, run: speed::start_up },
    Part { name: "memcheck", limit: 30, run: |place| sanitizer(place, "memcheck") },
    Part { name: "racecheck", limit: 30, run: |place| sanitizer(place, "racecheck") },
    Part { name: "transformers", limit: 45, run: speed::transformers },
];

/// Runs them, or some.
///
/// # Errors
/// There is no such part, or no packed folder.
pub fn all(folder: &Path, only: Option<&[&str]>, budget: Duration) -> Result<Report, String> {
    run(PARTS, folder, only, budget)
}

fn run(parts: &[Part], folder: &Path, only: Option<&[&str]>, budget: Duration) -> Result<Report, String> {
    let names = || parts.iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
    if let Some(unknown) =
        only.unwrap_or(&[]).iter().find(|name| !parts.iter().any(|part| part.name == **name))
    {
        return Err(format!("gpu: there is no part {unknown:?}; there are {}", names()));
    }
    let folder = fs::canonicalize(folder).map_err(|error| format!("gpu: {}: {error}", folder.display()))?;
    if !folder.join("anysplit").is_file() {
        return Err(format!(
            "gpu: {} has no program `anysplit`; `cargo xtask gpu pack` makes it",
            folder.display()
        ));
    }
    // Those of the run before, which parts read what they have found in.
    for old in ["logs", "figures.json"].map(|name| folder.join(name)) {
        fs::remove_dir_all(&old).or_else(|_| fs::remove_file(&old)).ok();
    }
    let began = Instant::now();
    let mut rows = Vec::new();
    for part in parts.iter().filter(|part| only.is_none_or(|only| only.contains(&part.name))) {
        let left = budget.saturating_sub(began.elapsed());
        if left.is_zero() {
            rows.push(Row::skipped(part.name, "no time was left"));
            continue;
        }
        let limit = Duration::from_secs(part.limit).min(left);
        eprintln!("gpu: {} ({:.0} s at most)", part.name, limit.as_secs_f64());
        let place = Place { folder: folder.clone(), deadline: Instant::now() + limit, limit };
        match (part.run)(&place) {
            Ok(of_part) => rows.extend(of_part),
            Err(why) => rows.push(Row::failed(part.name, why)),
        }
    }
    let date = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Report { gpu: gpu(&folder), date, seconds: began.elapsed().as_secs_f64(), rows })
}

/// The GPU and its driver.
fn gpu(folder: &Path) -> String {
    let limit = Duration::from_secs(10);
    let place = Place { folder: folder.to_owned(), deadline: Instant::now() + limit, limit };
    let mut ask = place.command("nvidia-smi");
    ask.args(["--query-gpu=name,driver_version", "--format=csv,noheader"]);
    let told = place.run(&mut ask).unwrap_or_default();
    told.lines().next().map_or("GPU unknown (no nvidia-smi)".into(), |line| line.replace(", ", ", driver "))
}

/// A figure that an earlier part noted.
pub fn noted(place: &Place, name: &str) -> Option<f64> {
    let text = fs::read_to_string(place.folder.join("figures.json")).ok()?;
    serde_json::from_str::<Value>(&text).ok()?[name].as_f64()
}

/// Notes a figure for later parts.
pub fn note(place: &Place, name: &str, value: &Value) {
    let file = place.folder.join("figures.json");
    let old = fs::read_to_string(&file).ok().and_then(|text| serde_json::from_str(&text).ok());
    let mut all: Value = old.unwrap_or_else(|| serde_json::json!({}));
    all[name] = value.clone();
    // Without it a later part has nothing to compare with, and says so.
    fs::write(file, all.to_string()).ok();
}

/// The programs that test what is on this machine's GPU.
fn tests(place: &Place) -> Result<Vec<String>, String> {
    let folder = place.folder.join("tests");
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let names = entries.flatten().map(|entry| format!("tests/{}", entry.file_name().to_string_lossy()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    if names.is_empty() { Err(format!("{} is empty", folder.display())) } else { Ok(names) }
}

/// Tests that found no GPU say so and pass: here that is none.
fn conformance(place: &Place) -> Result<Vec<Row>, String> {
    let tested = |name: String| {
        let printed = place.run(place.command(&name).arg("--nocapture").env("RUST_TEST_THREADS", "1"));
        let printed = match printed {
            Ok(printed) => printed,
            Err(why) => return Row::failed(name, why),
        };
        let passed =
            printed.lines().filter(|line| line.starts_with("test ") && line.contains("... ok")).count();
        let count = Row { figure: Some((passed as f64, "tests")), ..Row::ok(&name) };
        match skipped(place) {
            Some(why) => Row::failed(name, why),
            None => count,
        }
    };
    Ok(tests(place)?.into_iter().map(tested).collect())
}

/// What the program that ran last skipped, and why.
fn skipped(place: &Place) -> Option<String> {
    let mut logs: Vec<_> =
        fs::read_dir(place.folder.join("logs")).ok()?.flatten().map(|entry| entry.path()).collect();
    logs.retain(|path| path.extension().is_some_and(|kind| kind == "err"));
    logs.sort();
    let text = fs::read_to_string(logs.last()?).ok()?;
    text.lines().find_map(|line| line.strip_prefix("skipped: ")).map(str::to_owned)
}

fn sanitizer(place: &Place, tool: &str) -> Result<Vec<Row>, String> {
    if place.run(place.command("compute-sanitizer").arg("--version")).is_err() {
        return Ok(vec![Row::skipped(tool, "compute-sanitizer is not on PATH")]);
    }
    let mut rows = Vec::new();
    for test in tests(place)? {
        let mut command = place.command("compute-sanitizer");
        command.args(["--tool", tool, "--error-exitcode", "9"]).arg(place.folder.join(&test));
        command.env("RUST_TEST_THREADS", "1");
        let name = format!("{tool} {test}");
        rows.push(place.run(&mut command).map_or_else(|why| Row::failed(&name, why), |_| Row::ok(&name)));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
