//! Where `unsafe` may be.

use super::Violation;
use super::repo::Repo;
use super::rust_source::has_word;

/// Paths that start so may have it, and why.
const ALLOWED: &[(&str, &str)] = &[
    ("crates/cpu/", "vector instructions and the pinned pool"),
    ("crates/cuda/", "the driver's interface"),
    ("crates/collective/src/shared", "memory that ranks share"),
    ("crates/collective/src/mpi", "MPI's interface"),
    ("crates/collective/tests/loom.rs", "the cells in which loom looks for races"),
    ("crates/checkpoint/src/storage.rs", "mapped files"),
];

pub fn check(repo: &Repo) -> Vec<Violation> {
    let bad = repo.rust_lines().filter(|(path, _, line)| {
        has_word(&line.code, "unsafe") && !ALLOWED.iter().any(|(start, _)| path.starts_with(start))
    });
    let advice = "no `unsafe` here: put it behind a safe function of cpu, cuda, collective/src/{shared,mpi} or \
                  checkpoint/src/storage.rs";
    bad.map(|(path, number, _)| Violation::new(path, number, advice)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn unsafe_outside_its_files_is_found() {
        let bad = "//! unsafe\nfn a() {\n    unsafe { b() }\n}";
        assert_eq!(places(check, &[("crates/model/src/a.rs", bad)]), ["crates/model/src/a.rs:3"]);
        assert_eq!(places(check, &[("crates/collective/src/tcp.rs", bad)]).len(), 1);
    }

    #[test]
    fn unsafe_in_its_files_and_in_words_is_allowed() {
        let good = "unsafe { b() }";
        for path in
            ["crates/cpu/src/a.rs", "crates/collective/src/shared.rs", "crates/collective/src/shared/a.rs"]
        {
            assert!(places(check, &[(path, good)]).is_empty(), "{path}");
        }
        assert!(
            places(check, &[("crates/model/src/a.rs", "#![deny(unsafe_code)] // unsafe\n\"unsafe\"")])
                .is_empty()
        );
    }
}
