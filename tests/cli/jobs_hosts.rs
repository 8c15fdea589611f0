//! Jobs over two hosts: network namespaces with a wire between them, one `launch` in each, and a group secret.

use tempfile::NamedTempFile;

use crate::hosts::Hosts;
use crate::jobs_common::{Work, together};

/// A file that only its owner can read.
fn secret(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().expect("there is room for temporary files");
    std::fs::write(file.path(), text).expect("there is room for temporary files");
    file
}

#[test]
fn two_hosts_print_the_bytes_of_one_rank() {
    let Some(hosts) = Hosts::new(3) else {
        eprintln!("skipped: this process may not make network namespaces");
        return;
    };
    let secret = secret("a secret that only a test has");
    for name in ["llama", "mixtral"] {
        let work = Work::score(name);
        let want = work.alone();
        for (per_node, split) in
            [(1, "--tp 2"), (1, "--pp 2"), (2, "--tp 2 --pp 2"), (2, "--tp 4 --sp"), (2, "--tp 2 --dp 2")]
        {
            let host = |host: usize| {
                let flags = format!(
                    "--nnodes 2 --nproc-per-node {per_node} --node-rank {host} --master-addr {} --group-secret-file {}",
                    hosts.address(0),
                    secret.path().display()
                );
                work.launched(&flags, split).by_way_of(hosts.command(host))
            };
            assert_eq!(together(vec![host(0), host(1)]), want, "{name} {split}");
        }
    }
}
