//! Groups over TCP: conformance on loopback, and what only a network does.

mod common;

use std::time::Duration;

use collective::{TcpRank, conformance};
use tensor::Reference;

use common::{config, meshes};

/// One group of all processes.
fn group(ranks: usize, deadline: Duration) -> Vec<TcpRank> {
    let members: Vec<_> = (0..ranks).collect();
    let meshes = meshes(ranks, &config(), |_, _| true);
    meshes.iter().map(|mesh| mesh.group(1, &members, deadline).expect("a group")).collect()
}

#[test]
fn one_rank_conforms() {
    conformance::run(1, group, |_| Reference);
}

#[test]
fn two_ranks_conform() {
    conformance::run(2, group, |_| Reference);
}

#[test]
fn three_ranks_conform() {
    conformance::run(3, group, |_| Reference);
}

#[test]
fn five_ranks_conform() {
    conformance::run(5, group, |_| Reference);
}

#[test]
fn eight_ranks_conform() {
    conformance::run(8, group, |_| Reference);
}
