//! Jobs over two hosts: network namespaces with a wire between them, one `launch` in each, and a group secret.

use crate::hosts::{Hosts, secret};
use crate::jobs_common::{Work, together};

#[test]
fn two_hosts_print_the_bytes_of_one_rank() {
    let Some(hosts) = Hosts::new(9) else { return };
    let secret = secret();
    let works = [Work::score("llama"), Work::score("mixtral"), Work::score_long("qwen3_moe", 1100)];
    for (work, splits) in works.iter().zip([
        [(1, "--tp 2"), (1, "--pp 2"), (2, "--tp 2 --pp 2"), (2, "--tp 4 --sp"), (2, "--tp 2 --dp 2")],
        [
            (1, "--tp 2"),
            (1, "--tp 2 --ep"),
            (2, "--tp 2 --pp 2 --ep"),
            (2, "--tp 4 --ep --sp"),
            (1, "--dp 2"),
        ],
        [
            (1, "--pp 2"),
            (2, "--tp 4 --sp"),
            (2, "--tp 4 --dcp 2"),
            (2, "--tp 4 --dcp 2 --ep=false"),
            (1, "--tp 2 --sp"),
        ],
    ]) {
        let want = work.alone();
        for (per_node, split) in splits {
            let host = |host: usize| {
                let flags = format!(
                    "--nnodes 2 --nproc-per-node {per_node} --node-rank {host} --master-addr {} --group-secret-file {}",
                    hosts.address(0),
                    secret.path().display()
                );
                work.launched(&flags, split).by_way_of(hosts.on(host))
            };
            assert_eq!(together(vec![host(0), host(1)]), want, "{split}");
        }
    }
}
