//! The group secret's file: who else can read it has no secret.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use collective::Secret;

use crate::error::CliError;

/// Members of the file's group may read it, since mounted secrets are often given so. No one else may, and no one but its owner
/// may change it.
const TOO_OPEN: u32 = 0o027;

/// The secret that a file holds.
///
/// # Errors
/// It can't be read, others can, or it is too short or too long.
pub fn read(file: &Path) -> Result<Secret, CliError> {
    check(file)?;
    Secret::from_file(file).map_err(|e| CliError::Usage(e.to_string()))
}

/// Refuses a file that is no secret, without a look at whether it is long enough.
///
/// # Errors
/// It can't be read, or others can.
pub fn check(file: &Path) -> Result<(), CliError> {
    let shown = file.display();
    let refuse = |text: String| Err(CliError::Usage(format!("--group-secret-file {shown}: {text}")));
    let metadata = match std::fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(e) => return refuse(e.to_string()),
    };
    if !metadata.is_file() {
        return refuse("this is no file".into());
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & TOO_OPEN != 0 {
        return refuse(format!("others can read or change it (mode {mode:03o}); chmod 600 {shown}"));
    }
    match std::fs::read(file) {
        Ok(secret) if secret.trim_ascii().is_empty() => refuse("it is empty".into()),
        Ok(_) => Ok(()),
        Err(e) => refuse(e.to_string()),
    }
}
