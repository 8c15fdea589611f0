//! Jobs that cannot begin: what is wrong is told in one line by one of all ranks, promptly, with the right exit status.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use job::{Job, JobEnv, JobOptions};

use crate::checkpoints::{Copy, golden, safetensors_of, split_safetensors};
use crate::child::{Anysplit, anysplit, free_port};
use crate::job_child::Running;
use crate::jobs_faults::launch;
use crate::jobs_faults_launcher::plain;

/// Runs all at once, as ranks of one job: their exit statuses, and all error lines.
fn told(ranks: impl IntoIterator<Item = Anysplit>) -> (Vec<Option<i32>>, Vec<String>) {
    let began = Instant::now();
    let ranks: Vec<Running> = ranks.into_iter().map(|rank| Running::start(rank.command())).collect();
    let ends: Vec<_> = ranks.into_iter().map(|rank| rank.ends(began)).collect();
    let statuses = ends.iter().map(|end| end.status).collect();
    let mut lines = Vec::new();
    for end in ends {
        end.is_in_time(Duration::from_secs(20));
        assert_eq!(end.stdout, "");
        lines.extend(end.stderr.iter().filter_map(|line| line.strip_prefix("error: ")).map(str::to_owned));
    }
    (statuses, lines)
}

/// Checks that two ranks with these arguments are refused by this part of the one line.
#[track_caller]
fn differ(first: Anysplit, second: Anysplit, parts: &[&str]) {
    let (statuses, lines) = told([first, second]);
    let [line] = &lines[..] else { panic!("one line of both: {lines:?}") };
    assert_eq!(statuses, [Some(2); 2], "{line}");
    assert!(line.starts_with("rank 1 on ") && line.len() < 600, "{line}");
    for part in parts {
        assert!(line.contains(part), "{line}\nshould say: {part}");
    }
}

/// A rank of two that would score a few ids.
fn score(rank: usize, port: u16) -> Anysplit {
    plain(rank, 2, port, "score --prompt-ids 1,2,3 --threads-per-rank 1").env("ANYSPLIT_COMM_TIMEOUT", "20")
}

#[test]
fn ranks_that_do_not_belong_together_are_refused_by_what_differs() {
    let with = |more: [&str; 2], parts: &[&str]| {
        let port = free_port();
        differ(score(0, port).args(more[0]), score(1, port).args(more[1]), parts);
    };
    with(["--tp 2", "--pp 2"], &["has plan \"tp "]);
    with(["", "--dtype float32"], &["has dtype \"", "F32"]);
    with(["", "--comm-timeout 21"], &["has comm-timeout \"21s\"", "\"20s\""]);

    let port = free_port();
    let [first, second] = [golden("llama"), golden("qwen2")];
    differ(score(0, port).model(first), score(1, port).model(second), &["has model \"", "Llama", "Qwen2"]);

    let other = Copy::of("llama");
    let (header, mut data) = split_safetensors(&other.read("model.safetensors"));
    // In the middle of some tensor.
    let at = data.len() / 2;
    data[at] ^= 1;
    other.write("model.safetensors", safetensors_of(&header.to_string(), &data));
    let port = free_port();
    differ(score(0, port).model(golden("llama")), score(1, port).model(&other), &["has checkpoint \""]);
}

#[test]
fn a_rank_of_another_version_is_refused_by_it() {
    let port = free_port();
    let first = Running::start(score(0, port).command());
    let variables = [("RANK", "1".to_owned()), ("WORLD_SIZE", "2".into()), ("LOCAL_WORLD_SIZE", "2".into())];
    let lookup = |name: &str| match name {
        "MASTER_ADDR" => Some("127.0.0.1".to_owned()),
        "MASTER_PORT" => Some(port.to_string()),
        _ => variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()),
    };
    let env = JobEnv::detect(&lookup).expect("fine").expect("a job");
    let began = Instant::now();
    let error = Job::join(&env, &vec![("version".into(), "0.0.9".into())], &JobOptions::default());
    let error = error.map(drop).expect_err("another version").to_string();
    let end = first.ends(began);
    assert_eq!((end.status, end.line()), (Some(2), &*format!("error: {error}")));
    let own = env!("CARGO_PKG_VERSION");
    assert!(
        error.contains("has version \"0.0.9\", rank 0 on ") && error.contains(&format!("\"{own}\"")),
        "{error}"
    );
}

#[test]
fn a_rank_0_of_another_protocol_is_refused_by_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let first = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"anyspjob\x63\0its job.").unwrap();
        // Until the other side has hung up.
        std::io::copy(&mut stream, &mut std::io::sink())
    });
    let (statuses, lines) = told([score(1, port)]);
    assert_eq!((statuses, lines.len()), (vec![Some(2)], 1), "{lines:?}");
    assert!(lines[0].contains("it speaks protocol 99, this process "), "{lines:?}");
    let _ = first.join().unwrap();
}

#[test]
fn two_ranks_with_one_number_are_named_with_their_places() {
    let port = free_port();
    let rank =
        |rank: usize| plain(rank, 3, port, "score --prompt-ids 1,2 --threads-per-rank 1 --comm-timeout 20");
    let (statuses, lines) = told([rank(0), rank(1), rank(1)]);
    assert_eq!((statuses, lines.len()), (vec![Some(2); 3], 1), "{lines:?}");
    assert!(
        lines[0].starts_with("rank 1 came twice: from ") && lines[0].matches("(pid ").count() == 2,
        "{lines:?}"
    );
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let (statuses, lines) = told([score(0, free_port()).args("--startup-timeout 1")]);
    assert_eq!(statuses, [Some(1)]);
    assert_eq!(lines, ["rank 1 of 2 did not come within 1 s"]);
    let port = free_port();
    let (statuses, lines) = told([score(1, port).args("--startup-timeout 1")]);
    assert_eq!((statuses, lines.len()), (vec![Some(1)], 1), "{lines:?}");
    let found = &lines[0];
    assert!(
        found.starts_with(&format!("rank 1 did not reach rank 0 at 127.0.0.1:{port} within 1 s: ")),
        "{found}"
    );
}

#[test]
fn sizes_that_are_not_the_ranks_at_hand_are_refused_with_those_that_work() {
    let line = launch(3).args("score --text x --tp 2").run().fails_with(2);
    for part in ["--tp 2 --pp 1 --dp 1", "3 ranks", "--tp 3 --pp 1 --dp 1", "--tp 1 --pp 3 --dp 1"] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let launch = format!("launch --nproc-per-node 2 --master-port {port} -- anysplit score --prompt-ids 1,2");
    anysplit(&launch).refused(&[&format!("127.0.0.1:{port}"), "--master-port", "in use"]);
    score(0, port).refused(&[&format!("127.0.0.1:{port}"), "MASTER_PORT", "in use"]);
}

/// A file with a secret.
fn secret(dir: &Path, text: &str) -> PathBuf {
    let file = dir.join(text.split(' ').next().unwrap());
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    file
}

#[test]
fn a_host_that_nobody_knows_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = secret(dir.path(), "a secret of two nodes");
    for node in 0..2 {
        let launch =
            anysplit(&format!("launch --nnodes 2 --node-rank {node} --master-addr no-such-host.invalid"));
        let launch = launch.arg("--group-secret-file").arg(&file).args("-- anysplit score --prompt-ids 1,2");
        launch.refused(&["\"no-such-host.invalid\"", "--master-addr"]);
    }
}

#[test]
fn other_secrets_are_told_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let both = |seconds: u64| {
        let port = free_port();
        let node = |rank: usize, text: &str| {
            let options = "--nnodes 2 --comm-timeout 20 --node-rank";
            let launch =
                anysplit(&format!("launch {options} {rank} --master-port {port} --group-secret-file"));
            let launch = launch.arg(secret(dir.path(), text)).args("-- anysplit score --prompt-ids 1,2");
            launch.args(&format!("--startup-timeout {seconds}"))
        };
        told([node(0, "one secret of a node"), node(1, "another secret of a node")])
    };
    let (mut seconds, (mut statuses, mut lines)) = (2, both(2));
    // On a busy machine they may not meet within that.
    if lines.iter().all(|line| line.contains(" within 2 s") && !line.contains(" connected")) {
        seconds = 15;
        (statuses, lines) = both(seconds);
    }
    // Who has the wrong one may be anybody, so rank 0 goes on waiting for rank 1.
    assert_eq!((statuses, lines.len()), (vec![Some(1), Some(2)], 2), "{lines:?}");
    let never_came = format!("rank 1 of 2 did not come within {seconds} s");
    let why = format!("{never_came}; 127.0.0.1 connected, but it has another group secret");
    assert!(lines[0].contains(&why), "{lines:?}");
    assert!(
        lines[1].contains("rank 1 and rank 0 at 127.0.0.1") && lines[1].contains("--group-secret-file"),
        "{lines:?}"
    );
}

#[test]
fn ranks_without_a_launcher_need_a_secret_that_is_one_too() {
    let elsewhere = || score(0, 29500).env("LOCAL_WORLD_SIZE", "1").env("MASTER_ADDR", "192.0.2.1");
    elsewhere().refused(&["192.0.2.1", "--group-secret-file"]);
    let dir = tempfile::tempdir().unwrap();
    let file = secret(dir.path(), "a secret of two nodes");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let refused = |parts: &[&str]| elsewhere().env("ANYSPLIT_GROUP_SECRET_FILE", &file).refused(parts);
    refused(&["--group-secret-file", "others can read or change it (mode 644)", "chmod 600"]);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&file, "short").unwrap();
    refused(&["secret", "5 bytes"]);
    std::fs::remove_file(&file).unwrap();
    refused(&["--group-secret-file", "No such file"]);
}
