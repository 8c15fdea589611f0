//! `anysplit launch`: what is refused before anything starts.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::child::anysplit;

#[test]
fn numbers_that_cannot_be_are_named() {
    let launch = |options: &str| anysplit("launch").args(options).args("-- true");
    launch("--nproc-per-node 0").refused(&["--nproc-per-node", "0"]);
    launch("--nproc-per-node -2").refused(&["--nproc-per-node", "-2"]);
    launch("--nproc-per-node 100000").refused(&["--nproc-per-node", "100000"]);
    launch("--nnodes 0").refused(&["--nnodes", "0"]);
    launch("--nnodes 2 --node-rank 2").refused(&["--node-rank 2", "--nnodes 2"]);
    launch("--node-rank 1").refused(&["--node-rank 1", "--nnodes 1"]);
    launch("--master-port 0").refused(&["--master-port", "0"]);
    launch("--master-port 65536").refused(&["--master-port", "65536"]);
    launch("--comm-timeout 0").refused(&["--comm-timeout", "0"]);
    launch("--max-restarts -1").refused(&["--max-restarts", "-1"]);
    anysplit("launch --master-addr")
        .arg("two words")
        .args("-- true")
        .refused(&["--master-addr", "two words"]);
}

#[test]
fn a_command_is_needed_and_must_exist() {
    anysplit("launch --nproc-per-node 2").refused(&["COMMAND"]);
    anysplit("launch --nproc-per-node 2 --").refused(&["COMMAND"]);
    anysplit("launch --nproc 2 -- true").refused(&["--nproc"]);
    anysplit("launch --nproc-per-node 2 -- no-such-program-anywhere")
        .refused(&["cannot start", "no-such-program-anywhere"]);
    // A file that is no program.
    let file = tempfile::NamedTempFile::new().unwrap();
    anysplit("launch --").arg(file.path()).refused(&["cannot start", file.path().to_str().unwrap()]);
}

#[test]
fn hosts_do_not_restart_each_other() {
    anysplit("launch --nnodes 2 --max-restarts 1 -- true").refused(&["--max-restarts 1", "--nnodes 1"]);
}

#[test]
fn other_hosts_are_joined_with_a_secret_only() {
    let elsewhere = "launch --nnodes 2 --master-addr 192.0.2.7";
    anysplit(elsewhere).args("-- true").refused(&["192.0.2.7", "--group-secret-file"]);
    anysplit("launch --nnodes 2 --master-addr node-0 -- true").refused(&["node-0", "--group-secret-file"]);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let with_secret = || anysplit(elsewhere).args("--group-secret-file").arg(&file).args("-- sh -c");
    let script = "test \"$ANYSPLIT_GROUP_SECRET_FILE\" = \"$EXPECTED\"";
    with_secret().arg(script).refused(&["--group-secret-file", "No such file"]);
    fs::write(&file, " \n").unwrap();
    for mode in [0o644, 0o604, 0o620, 0o602] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        with_secret().arg(script).refused(&[
            "others can read or change it",
            &format!("{mode:03o}"),
            "chmod 600",
        ]);
    }
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    with_secret().arg(script).refused(&["secret", "empty"]);
    fs::write(&file, "swordfish\n").unwrap();
    for mode in [0o600, 0o400, 0o440] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let launch = with_secret().arg(script).env("EXPECTED", &file);
        assert_eq!(launch.prints(), "");
    }
    anysplit(elsewhere).args("--group-secret-file").arg(dir.path()).args("-- true").refused(&["no file"]);
}
