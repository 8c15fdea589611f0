//! Who may talk to other ranks: sharding is known in one place.

use super::Violation;
use super::repo::Repo;
use super::rust_source::calls;

/// The methods of `Collective` that move data or wait.
const METHODS: &[&str] = &[
    "all_reduce",
    "all_gather",
    "all_gather_host",
    "reduce_scatter",
    "all_to_all",
    "send_recv",
    "broadcast",
    "barrier",
];

/// Paths that start so may call them, and why.
const ALLOWED: &[(&str, &str)] = &[
    ("crates/collective/", "implements them"),
    ("crates/cuda/", "implements them"),
    ("crates/job/src/group.rs", "hands them on to the backend that fits"),
    ("crates/model/src/parallel", "the layers that are split"),
    ("crates/engine/", "starts the ranks and hands out the steps"),
    ("crates/cli/src/bench", "`bench comm` measures them"),
];

pub fn check(repo: &Repo) -> Vec<Violation> {
    let outside = repo
        .rust_lines()
        .filter(|(path, _, line)| !line.is_test && !ALLOWED.iter().any(|(start, _)| path.starts_with(start)));
    let called = outside.flat_map(|(path, number, line)| {
        let found = METHODS.iter().filter(|method| calls(&line.code, method));
        found.map(move |method| (path, number, method))
    });
    called
        .map(|(path, number, method)| {
            let advice = format!("no `{method}` here: use or add a layer in crates/model/src/parallel");
            Violation::new(path, number, advice)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    const CALLS: &str = "fn a(g: &G) {\n    g.all_reduce(x);\n    G::broadcast(g, x);\n    // g.barrier()\n}";

    #[test]
    fn a_layer_that_talks_to_ranks_itself_is_found() {
        let found = places(check, &[("crates/model/src/attention.rs", CALLS)]);
        assert_eq!(found, ["crates/model/src/attention.rs:2", "crates/model/src/attention.rs:3"]);
    }

    #[test]
    fn parallel_layers_the_engine_and_tests_may() {
        for path in
            ["crates/model/src/parallel/linear.rs", "crates/engine/src/worker.rs", "crates/model/tests/a.rs"]
        {
            assert!(places(check, &[(path, CALLS)]).is_empty(), "{path}");
        }
        assert!(
            places(check, &[("crates/model/src/a.rs", "fn all_reduce(x: X) {}\nx.all_reduce_bytes")])
                .is_empty()
        );
    }
}
