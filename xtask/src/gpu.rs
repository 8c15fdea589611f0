//! Whoever has a GPU for ten minutes gets everything: `pack` makes a folder that needs nothing but a driver, `run` measures there.

mod bits;
mod checkpoint;
mod command;
mod goldens;
mod pack;
mod parts;
mod sanitize;
mod seeing;
mod serve;
mod speed;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use table::Report;

const USAGE: &str = "\
usage: cargo xtask gpu pack [--profile NAME] [--out FOLDER]   builds, and packs what a machine with a GPU needs
       cargo xtask gpu run [--folder FOLDER] [--profile NAME] [--only PART,PART] [--seconds N] [--out FILE]
                                                             runs all of it here; without a packed folder builds first
                                                             a part that is alone has all N seconds
       FILE gets the table as JSON, and beside it .txt gets it as it is printed, after each part; unless it is said,
       it is results.json in FOLDER (without one, in target/gpu), and of some parts results-PART-PART.json";

/// Where it is packed to.
const FOLDER: &str = "target/gpu/anysplit-gpu";
/// Where results of a run that packs are.
const RESULTS: &str = "target/gpu";
/// What it is built with.
const PROFILE: &str = "gpu";
/// What all parts of a run may take together.
const SECONDS: u64 = 590;

/// How to call it, with the parts that there are.
pub fn usage() -> String {
    let told = |part: &parts::Part| {
        format!("\n         {:<14}  {} ({} s at most)", part.name, part.about, part.limit)
    };
    let parts: String = parts::PARTS.iter().map(told).collect();
    format!("{USAGE}\n       parts, the most important first; what there is no time for is left out:{parts}")
}

/// Options by their names, each with a value.
struct Options(Vec<(String, String)>);

impl Options {
    fn of(args: &[String], known: &[&str]) -> Result<Self, String> {
        let pair = |pair: &[String]| match pair {
            [name, value] if known.contains(&name.as_str()) => Ok((name.clone(), value.clone())),
            _ => Err(format!("gpu: {:?} is not understood\n{}", pair.join(" "), usage())),
        };
        Ok(Options(args.chunks(2).map(pair).collect::<Result<_, _>>()?))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// `cargo xtask gpu …`, or the same from a packed folder.
pub fn run(root: &Path, args: &[String]) -> Result<String, String> {
    if args.iter().any(|arg| is_help(arg)) {
        return Ok(usage());
    }
    let (command, rest) = args.split_first().ok_or_else(usage)?;
    match command.as_str() {
        "pack" => {
            let options = Options::of(rest, &["--profile", "--out"])?;
            let out = options.get("--out").map_or_else(|| root.join(FOLDER), PathBuf::from);
            let packed = pack::folder(root, options.get("--profile").unwrap_or(PROFILE), &out)?;
            pack::archive(&packed, pack::MOST_BYTES)
        }
        "run" => {
            let options = Options::of(rest, &["--folder", "--profile", "--only", "--seconds", "--out"])?;
            let seconds = match options.get("--seconds").map(str::parse) {
                None => SECONDS,
                Some(Ok(seconds)) => seconds,
                Some(Err(_)) => return Err(format!("gpu: --seconds is a whole number\n{}", usage())),
            };
            let only: Option<Vec<&str>> = options.get("--only").map(|only| only.split(',').collect());
            parts::check(only.as_deref())?;
            // Packing replaces the folder, so that results of a run that packs lie beside it.
            let (folder, beside) = match options.get("--folder") {
                Some(folder) => (PathBuf::from(folder), PathBuf::from(folder)),
                None => {
                    let profile = options.get("--profile").unwrap_or(PROFILE);
                    (pack::folder(root, profile, &root.join(FOLDER))?, root.join(RESULTS))
                }
            };
            let file =
                options.get("--out").map_or_else(|| beside.join(results(only.as_deref())), PathBuf::from);
            // A run that is cut off has left what came before.
            let keep = |report: &Report| write(report, &file);
            let report = parts::all(&folder, only.as_deref(), Duration::from_secs(seconds), &keep)?;
            let told = format!(
                "{}\ngpu: {} and {}",
                report.table(),
                file.display(),
                file.with_extension("txt").display()
            );
            if report.is_good() { Ok(told) } else { Err(told) }
        }
        other => Err(format!("gpu: there is no {other:?}\n{}", usage())),
    }
}

/// Whether somebody asks how to call it.
pub fn is_help(arg: &str) -> bool {
    ["--help", "-h", "help"].contains(&arg)
}

/// The file of a run's results: what some parts came to takes nothing from a whole run.
fn results(only: Option<&[&str]>) -> String {
    only.map_or_else(|| "results.json".into(), |only| format!("results-{}.json", only.join("-")))
}

/// Writes what there is for programs, and beside it for people.
fn write(report: &Report, file: &Path) -> Result<(), String> {
    let text = file.with_extension("txt");
    for (file, content) in [(file, report.json().to_string()), (&text, report.table())] {
        std::fs::write(file, content + "\n").map_err(|error| format!("gpu: {}: {error}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_help_gets_it_wherever_it_is_said() {
        let told = |words: &str| {
            let args: Vec<String> = words.split_whitespace().map(String::from).collect();
            run(Path::new("/nowhere"), &args)
        };
        for words in ["--help", "-h", "help", "run --help", "run -h", "pack --help", "run --seconds 9 --help"]
        {
            assert_eq!(told(words), Ok(usage()), "{words}");
        }
        assert_eq!(told(""), Err(usage()));
        let refused = told("sing").expect_err("there is no such thing");
        assert!(refused.starts_with("gpu: there is no \"sing\"\nusage: "), "{refused}");
        let odd = told("run --secs 9").expect_err("there is no such option");
        assert!(odd.starts_with("gpu: \"--secs 9\" is not understood\nusage: "), "{odd}");
    }

    #[test]
    fn results_of_some_parts_take_no_whole_runs_place() {
        assert_eq!(results(None), "results.json");
        assert_eq!(results(Some(&["decode", "start-up"])), "results-decode-start-up.json");
    }
}
