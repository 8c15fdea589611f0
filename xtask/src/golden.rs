//! Runs `tools/golden/make_golden.py` in a virtual environment of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

const SCRIPT: &str = "tools/golden/make_golden.py";
const REQUIREMENTS: &str = "tools/golden/requirements.txt";
const VENV: &str = "target/golden-venv";

/// Makes the environment if the requirements have changed since, and runs the script with `args`.
pub fn run(root: &Path, args: &[String]) -> Result<String, String> {
    let venv = root.join(VENV);
    let requirements =
        fs::read_to_string(root.join(REQUIREMENTS)).map_err(|e| format!("{REQUIREMENTS}: {e}"))?;
    let installed = venv.join("installed-requirements.txt");
    if fs::read_to_string(&installed).ok().as_ref() != Some(&requirements) {
        call(root, Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        call(root, Command::new(venv.join("bin/pip")).args(["install", "--quiet", "-r", REQUIREMENTS]))?;
        fs::write(&installed, &requirements).map_err(|e| format!("{}: {e}", installed.display()))?;
    }
    call(root, Command::new(venv.join("bin/python")).arg(SCRIPT).args(args))?;
    Ok("golden: done; look at `git diff --stat tests/golden` before you commit".into())
}

fn call(root: &Path, command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.current_dir(root).status().map_err(|e| format!("{name}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("golden: {name} failed: {status}")) }
}
