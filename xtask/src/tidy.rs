//! Rules of the code that no compiler knows. Each is a file with its data, its check, and tests that show it
//! failing. ARCHITECTURE.md says why they are there.

mod architecture_names;
mod architecture_page;
mod collective_calls;
mod dependency_reasons;
mod file_length;
mod imports;
mod links;
mod machine_paths;
mod manifest;
mod pure_scheduler;
mod registries;
mod repo;
mod rust_source;
mod test_sleeps;
mod unfinished;
mod unsafe_code;
mod workspace_lints;

use std::fmt;
use std::path::Path;
use std::time::Instant;

use repo::Repo;

/// A rule, by its name in reports.
struct Rule {
    name: &'static str,
    check: fn(&Repo) -> Vec<Violation>,
}

const RULES: &[Rule] = &[
    Rule { name: "imports", check: imports::check },
    Rule { name: "unsafe-code", check: unsafe_code::check },
    Rule { name: "collective-calls", check: collective_calls::check },
    Rule { name: "architecture-names", check: architecture_names::check },
    Rule { name: "pure-scheduler", check: pure_scheduler::check },
    Rule { name: "unfinished", check: unfinished::check },
    Rule { name: "test-sleeps", check: test_sleeps::check },
    Rule { name: "dependency-reasons", check: dependency_reasons::check },
    Rule { name: "workspace-lints", check: workspace_lints::check },
    Rule { name: "file-length", check: file_length::check },
    Rule { name: "architecture-page", check: architecture_page::check },
    Rule { name: "links", check: links::check },
    Rule { name: "machine-paths", check: machine_paths::check },
    Rule { name: "registries", check: registries::check },
];

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    /// From 1.
    line: usize,
    /// What is wrong, and what to do instead.
    advice: String,
}

impl Violation {
    fn new(file: &str, line: usize, advice: impl fmt::Display) -> Self {
        Violation { file: file.into(), line, advice: advice.to_string() }
    }
}

/// Checks all rules; a report of one line, or the violations, one a line.
pub fn run(root: &Path) -> Result<String, String> {
    let start = Instant::now();
    let repo = Repo::read(root)?;
    let mut lines = Vec::new();
    for rule in RULES {
        for Violation { file, line, advice } in (rule.check)(&repo) {
            lines.push(format!("{file}:{line}: {}: {advice}", rule.name));
        }
    }
    let (rules, files, seconds) = (RULES.len(), repo.num_files(), start.elapsed().as_secs_f32());
    if lines.is_empty() {
        return Ok(format!("tidy: {rules} rules hold in {files} files ({seconds:.1} s)"));
    }
    lines.push(format!("tidy: {} violations in {files} files", lines.len()));
    Err(lines.join("\n"))
}

/// For the rules' tests: which `file:line` a check complains about in a repository of these files.
#[cfg(test)]
fn places(check: fn(&Repo) -> Vec<Violation>, files: &[(&str, &str)]) -> Vec<String> {
    let violations = check(&Repo::of(files));
    violations.into_iter().map(|v| format!("{}:{}", v.file, v.line)).collect()
}
