//! More ranks than cores work, and are warned of in one line.

use crate::child::{anysplit, is_crowded};
use crate::jobs_faults::launch;

const SCORE: &str = "score --prompt-ids 1,2,3";

fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

#[test]
fn as_threads() {
    let run = |ranks: usize, threads: usize| {
        let split = format!("--pp 1 --dp {ranks} --threads-per-rank {threads}");
        anysplit(SCORE).args(&split).run().succeeds()
    };
    let (want, stderr) = run(1, 1);
    assert_eq!(stderr, "");
    for (ranks, threads, part) in [(cores() + 1, 1, "ranks share"), (1, cores() + 1, "--threads-per-rank")] {
        let (stdout, stderr) = run(ranks, threads);
        assert_eq!(stdout, want);
        let warnings: Vec<&str> = stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
        let [line] = warnings[..] else { panic!("one line: {stderr}") };
        assert!(is_crowded(line) && line.contains(part), "{line}");
    }
}

#[test]
fn as_processes() {
    for (ranks, more) in
        [(cores() + 1, "--threads-per-rank 1"), (2, &*format!("--threads-per-rank {}", cores()))]
    {
        let (stdout, stderr) =
            launch(ranks).args(SCORE).args(&format!("--dp {ranks}")).args(more).run().succeeds();
        assert_eq!(stdout, anysplit(SCORE).args("--threads-per-rank 1").prints());
        assert_eq!(stderr.lines().filter(|line| is_crowded(line)).count(), 1, "{stderr}");
    }
    let (_, stderr) =
        launch(cores()).args(SCORE).args(&format!("--dp {} --threads-per-rank 1", cores())).run().succeeds();
    assert!(!stderr.contains("warning: "), "{stderr}");
}
