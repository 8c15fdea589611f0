//! The project's own checks: `cargo xtask tidy`, `cargo xtask golden` and `cargo xtask gpu`.

mod golden;
mod gpu;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask tidy            checks the rules of the code, without building it
       cargo xtask golden [ARGS…] regenerates tests/golden with Hugging Face (ARGS go to make_golden.py)";

fn usage() -> String {
    format!("{USAGE}\n{}", gpu::usage().trim_start_matches("usage:"))
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository's root");
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.split_first() {
        Some((command, [])) if command == "tidy" => tidy::run(root),
        Some((command, rest)) if command == "golden" => golden::run(root, rest),
        Some((command, rest)) if command == "gpu" => gpu::run(root, rest),
        Some((help, _)) if gpu::is_help(help) => Ok(usage()),
        _ => Err(usage()),
    };
    match result {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
