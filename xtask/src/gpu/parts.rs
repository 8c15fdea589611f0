//! The parts of a run, in the order of what they are worth: each has its time, and what becomes of one is nothing to the others.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::command::Place;
use super::table::{Report, Row, Target};
use super::{bits, goldens, sanitize, seeing, serve, speed};

/// One part.
pub struct Part {
    /// As `--only` calls it.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Seconds.
    pub limit: u64,
    pub run: fn(&Place) -> Result<Vec<Row>, String>,
    /// What its rows should come to, by their names. A target is told of even if nothing was measured.
    pub targets: &'static [(&'static str, Target)],
}

/// Those further down get what time is left.
pub const PARTS: &[Part] = &[
    Part { name: "limits", about: "what the GPU does at best", limit: 15, run: speed::limits, targets: &[] },
    Part {
        name: "conformance",
        about: "every operation against the reference",
        limit: 70,
        run: conformance,
        targets: &[],
    },
    Part {
        name: "bits",
        about: "equal bits over tp 1 to 4, graphs, chunks, batch 33",
        limit: 75,
        run: bits::equality,
        targets: &[("bits", Target::None)],
    },
    Part {
        name: "decode",
        about: "Llama-3.1-8B's shape in bf16, batch 1 and 64",
        limit: 80,
        run: speed::decode,
        targets: &[
            ("decode, batch 1, of copying", Target::AtLeast(75.0)),
            ("batch 64 beside batch 1", Target::AtLeast(30.0)),
        ],
    },
    Part {
        name: "prefill",
        about: "4,096 tokens of the same",
        limit: 50,
        run: speed::prefill,
        targets: &[("prefill of 4096, of cuBLASLt", Target::AtLeast(55.0))],
    },
    Part {
        name: "start-up",
        about: "with kernels to compile, and with kernels found",
        limit: 30,
        run: speed::start_up,
        targets: &[
            ("start, kernels compiled", Target::Below(10.0)),
            ("start, kernels cached", Target::Below(2.0)),
        ],
    },
    Part {
        name: "load",
        about: "5.6 GB of weights from files that are in memory",
        limit: 50,
        run: speed::load,
        targets: &[("weights from page cache", Target::AtLeast(3.0))],
    },
    Part {
        name: "comm",
        about: "all-reduces of 16 KB, 2, 4 and 8 ranks on one card, in one shot and in two; other operations",
        limit: 30,
        run: speed::comm,
        targets: &[],
    },
    Part {
        name: "kernels",
        about: "each kernel's share of what limits it",
        limit: 45,
        run: speed::kernels,
        targets: &[("slowest gemv", Target::AtLeast(85.0))],
    },
    Part {
        name: "goldens",
        about: "what transformers computes, on every architecture, in float32",
        limit: 40,
        run: goldens::goldens,
        targets: &[],
    },
    Part {
        name: "fast",
        about: "--reduction fast: what the promise of equal bits costs",
        limit: 55,
        run: speed::fast,
        targets: &[("fast: prefill of 4096, of cuBLASLt", Target::AtLeast(70.0))],
    },
    Part {
        name: "serve",
        about: "eight clients at a time get generate's texts",
        limit: 20,
        run: serve::serve,
        targets: &[],
    },
    Part {
        name: "formats",
        about: "bf16, f16, int8, int4, fp8 and caches of fp8 beside the processor",
        limit: 25,
        run: goldens::formats,
        targets: &[],
    },
    Part {
        name: "eager",
        about: "transformers as it comes, on the same shape",
        limit: 60,
        run: |place| speed::transformers(place, "eager"),
        targets: &[("beside transformers, eager", Target::AtLeast(3.0))],
    },
    Part {
        name: "compiled",
        about: "transformers with a static cache and torch.compile",
        limit: 150,
        run: |place| speed::transformers(place, "compiled"),
        targets: &[("beside transformers, compiled", Target::AtLeast(1.3))],
    },
    Part {
        name: "splits",
        about: "equal bits over pp, dp, sp, ep, dcp, two processes; int4, int8, fp8; 100 layers",
        limit: 45,
        run: bits::splits,
        targets: &[("splits", Target::None)],
    },
    Part {
        name: "seeing",
        about: "--stats and --trace: times of parts are of their steps",
        limit: 10,
        run: seeing::seeing,
        targets: &[],
    },
    Part {
        name: "memcheck",
        about: "compute-sanitizer over each family of kernels",
        limit: 60,
        run: |place| sanitize::models(place, "memcheck"),
        targets: &[],
    },
    Part {
        name: "racecheck",
        about: "compute-sanitizer, races in shared memory",
        limit: 60,
        run: |place| sanitize::models(place, "racecheck"),
        targets: &[],
    },
    Part {
        name: "synccheck",
        about: "compute-sanitizer, barriers",
        limit: 60,
        run: |place| sanitize::models(place, "synccheck"),
        targets: &[],
    },
    Part {
        name: "memcheck-suite",
        about: "compute-sanitizer over the conformance suite",
        limit: 150,
        run: sanitize::suite,
        targets: &[],
    },
];

/// What is done with what there is, after each part.
pub type Keep<'a> = &'a dyn Fn(&Report) -> Result<(), String>;

/// Whether there are such parts.
///
/// # Errors
/// One that there is not, and those that there are.
pub fn check(only: Option<&[&str]>) -> Result<(), String> {
    known(PARTS, only)
}

fn known(parts: &[Part], only: Option<&[&str]>) -> Result<(), String> {
    let names = || parts.iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
    match only.unwrap_or(&[]).iter().find(|name| !parts.iter().any(|part| part.name == **name)) {
        Some(unknown) => Err(format!("gpu: there is no part {unknown:?}; there are {}", names())),
        None => Ok(()),
    }
}

/// Runs them, or some.
///
/// # Errors
/// There is no such part, no packed folder, or what there is can't be kept.
pub fn all(folder: &Path, only: Option<&[&str]>, budget: Duration, keep: Keep<'_>) -> Result<Report, String> {
    run(PARTS, folder, only, budget, keep)
}

fn run(
    parts: &[Part],
    folder: &Path,
    only: Option<&[&str]>,
    budget: Duration,
    keep: Keep<'_>,
) -> Result<Report, String> {
    known(parts, only)?;
    let folder = fs::canonicalize(folder).map_err(|error| format!("gpu: {}: {error}", folder.display()))?;
    if !folder.join("anysplit").is_file() {
        return Err(format!(
            "gpu: {} has no program `anysplit`; `cargo xtask gpu pack` makes it",
            folder.display()
        ));
    }
    // Those of the run before, which parts read what they have found in.
    fs::remove_dir_all(folder.join("logs")).ok();
    // Some parts alone may be compared with figures that a whole run noted.
    if only.is_none() {
        fs::remove_file(folder.join("figures.json")).ok();
    }
    let began = Instant::now();
    let date = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut report = Report { gpu: gpu(&folder), date, seconds: 0.0, rows: Vec::new() };
    for part in parts.iter().filter(|part| only.is_none_or(|only| only.contains(&part.name))) {
        let left = budget.saturating_sub(began.elapsed());
        let rows = if left.is_zero() {
            vec![Row::skipped(part.name, "no time was left")]
        } else {
            // What is asked for alone may take all that there is.
            let is_alone = only.is_some_and(|only| only.len() == 1);
            let limit = if is_alone { left } else { Duration::from_secs(part.limit).min(left) };
            eprintln!("gpu: {} ({:.0} s at most)", part.name, limit.as_secs_f64());
            let place = Place { folder: folder.clone(), deadline: Instant::now() + limit, limit };
            (part.run)(&place).unwrap_or_else(|why| {
                // Who had less time than planned may have needed more; who had all of it hangs.
                let is_late = place.is_over() && limit < Duration::from_secs(part.limit);
                vec![if is_late { Row::skipped(part.name, why) } else { Row::failed(part.name, why) }]
            })
        };
        report.rows.extend(part.with_targets(rows));
        report.seconds = began.elapsed().as_secs_f64();
        keep(&report)?;
    }
    Ok(report)
}

impl Part {
    /// Its rows, with what they should come to; and a row for each target that none of them is of.
    fn with_targets(&self, mut rows: Vec<Row>) -> Vec<Row> {
        for &(name, target) in self.targets {
            match rows.iter_mut().find(|row| row.part == name) {
                Some(row) => row.target = Some(target),
                None => rows.push(Row::skipped(name, "it was not measured").target(target)),
            }
        }
        rows
    }
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
pub fn tests(place: &Place) -> Result<Vec<String>, String> {
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
pub fn skipped(place: &Place) -> Option<String> {
    let mut logs: Vec<_> =
        fs::read_dir(place.folder.join("logs")).ok()?.flatten().map(|entry| entry.path()).collect();
    logs.retain(|path| path.extension().is_some_and(|kind| kind == "err"));
    logs.sort();
    let text = fs::read_to_string(logs.last()?).ok()?;
    text.lines().find_map(|line| line.strip_prefix("skipped: ")).map(str::to_owned)
}

#[cfg(test)]
mod tests;
