//! A disk that is full while a model is downloaded.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::checkpoints::{Copy, golden};
use crate::child::{Anysplit, anysplit, free_port};
use crate::hub::{hub_of, hub_server::Server, with_hub};
use crate::job_child::Running;

/// Runs its arguments with a cache that is too small, then looks for what is there of the weights, then again with more
/// room. Where nothing may be mounted, no file may become long instead.
const SCRIPT: &str = r#"
    if mount -t tmpfs -o size=100k tmpfs "$HF_HOME"; then
        more() { mount -o remount,size=64m "$HF_HOME"; }
    else
        echo 'skipped: this process may not mount a small disk; limited the length of files instead' >&2
        trap '' XFSZ; ulimit -S -f 100; more() { ulimit -S -f unlimited; }
    fi
    "$@"; echo "status $?"
    find "$HF_HOME" -name '*.safetensors'
    more; "$@""#;

/// `unshare` takes the mount away with the process.
fn on_a_small_disk(command: Anysplit) -> Command {
    let inner = command.command();
    let can_mount =
        Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|out| out.status.success());
    let words: &[&str] = if can_mount { &["unshare", "-m", "sh"] } else { &["sh"] };
    let mut outer = Command::new(words[0]);
    outer.args(&words[1..]).args(["-c", SCRIPT, "sh"]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

#[test]
fn is_told_in_one_line_and_leaves_no_half_of_a_model() {
    let want =
        anysplit("score --json --prompt-ids 1,2,3 --threads-per-rank 1").model(golden("llama")).prints();
    let score = "score --json --prompt-ids 1,2,3 --threads-per-rank 1 --tp 2 --model org/tiny";
    let launch = format!(
        "launch --nproc-per-node 2 --master-port {} --comm-timeout 20 -- anysplit {score}",
        free_port()
    );
    for arguments in [score, &launch] {
        let (server, home) = (Server::start(hub_of("llama")), Copy::empty());
        let began = Instant::now();
        let job = Running::start(on_a_small_disk(with_hub(arguments, &server.endpoint(), &home)));
        let end = job.ends(began);
        end.is_in_time(Duration::from_secs(20));
        assert_eq!((end.status, &*end.stdout), (Some(0), &*format!("status 1\n{want}")), "{:?}", end.stderr);
        let line = end.line();
        assert!(line.contains(home.path().to_str().unwrap()) && line.contains("HF_HOME"), "{line}");
        assert!(line.contains("No space left") || line.contains("File too large"), "{line}");
    }
}
