//! Jobs of several processes that run to their end.

use std::ffi::{OsStr, OsString};
use std::thread::ScopedJoinHandle;

use crate::checkpoints::{golden, golden_prompt};
use crate::child::{Anysplit, Ended, anysplit, free_port};

/// A command, without how it is split.
pub struct Work {
    words: Vec<OsString>,
}

impl Work {
    /// Words divided by spaces.
    pub fn new(words: &str) -> Work {
        let work = Work { words: words.split_whitespace().map(OsString::from).collect() };
        work.arg("--threads-per-rank").arg("1")
    }

    /// `score` of a golden checkpoint's prompt.
    pub fn score(name: &str) -> Work {
        Work::new("score --json")
            .arg("--prompt-ids")
            .arg(golden_prompt(name))
            .arg("--model")
            .arg(golden(name))
    }

    /// `score` of so many tokens by a golden checkpoint.
    pub fn score_long(name: &str, tokens: usize) -> Work {
        let ids: Vec<String> = (0..tokens).map(|i| ((i * i + 7 * i) % 112).to_string()).collect();
        Work::new("score --json").arg("--prompt-ids").arg(ids.join(",")).arg("--model").arg(golden(name))
    }

    /// One word more.
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Work {
        self.words.push(word.as_ref().to_owned());
        self
    }

    fn add_to(&self, command: Anysplit, split: &str) -> Anysplit {
        self.words.iter().fold(command, Anysplit::arg).args(split)
    }

    /// What one rank prints.
    pub fn alone(&self) -> String {
        self.add_to(anysplit(""), "--tp 1").prints()
    }

    /// The command as one rank of a job that another launcher started.
    pub fn as_rank(&self, split: &str) -> Anysplit {
        self.add_to(anysplit(""), split)
    }

    /// The command under `anysplit launch` with these flags.
    pub fn launched(&self, flags: &str, split: &str) -> Anysplit {
        self.add_to(anysplit("launch").args(flags).args("-- anysplit"), split)
    }

    /// What `launch` on one node prints.
    pub fn on_one_node(&self, ranks: usize, split: &str) -> String {
        let flags = format!("--nproc-per-node {ranks} --master-port {}", free_port());
        self.launched(&flags, split).run().succeeds().0
    }

    /// What two `launch` commands print that play two nodes on loopback.
    pub fn on_two_nodes(&self, per_node: usize, split: &str) -> String {
        let port = free_port();
        let node = |node: usize| {
            let flags = format!(
                "--nnodes 2 --nproc-per-node {per_node} --node-rank {node} --master-addr 127.0.0.1 --master-port {port}"
            );
            self.launched(&flags, split)
        };
        together(vec![node(0), node(1)])
    }
}

/// Runs commands at once.
pub fn all_at_once(commands: Vec<Anysplit>) -> Vec<Ended> {
    std::thread::scope(|scope| {
        let running: Vec<_> = commands.into_iter().map(|command| scope.spawn(|| command.run())).collect();
        let join = |command: ScopedJoinHandle<'_, Ended>| command.join().expect("its own error is above");
        running.into_iter().map(join).collect()
    })
}

/// Runs the parts of a job at once, and gives what the first prints. The others print nothing.
pub fn together(parts: Vec<Anysplit>) -> String {
    let mut printed = all_at_once(parts).into_iter().map(|ended| ended.succeeds().0);
    let first = printed.next().expect("a job has a part");
    assert!(printed.all(|more| more.is_empty()), "only rank 0 prints");
    first
}
