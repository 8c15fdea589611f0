//! Groups over several nodes: ranks of a node share memory, nodes talk TCP over loopback.

mod common;

use std::time::Duration;

use collective::{Hierarchical, SharedConfig, SharedGroup, conformance};
use tensor::Reference;

use common::{config, meshes};

/// Groups whose nodes have so many ranks. Ranks of one node have no connection with each other.
fn group(shape: &[usize]) -> impl Fn(usize, Duration) -> Vec<Hierarchical> + Sync {
    let node_of_rank: Vec<usize> =
        shape.iter().enumerate().flat_map(|(node, &ranks)| vec![node; ranks]).collect();
    let shape = shape.to_vec();
    move |ranks, deadline| {
        let local = shape.iter().flat_map(|&ranks| {
            SharedGroup::new(ranks, SharedConfig { deadline, spin: Duration::ZERO, ..SharedConfig::default() })
        });
        let members: Vec<_> = (0..ranks).collect();
        let meshes = meshes(ranks, &config(), |a, b| node_of_rank[a] != node_of_rank[b]);
        let rank = |(local, mesh): (_, collective::TcpMesh)| {
            let wire = mesh.group(7, &members, deadline).expect("a group");
            Hierarchical::new(local, wire, node_of_rank.clone()).expect("its node")
        };
        local.zip(meshes).map(rank).collect()
    }
}

#[test]
fn one_node_of_two_ranks_conforms() {
    conformance::run(2, group(&[2]), |_| Reference);
}

#[test]
fn two_nodes_of_one_rank_conform() {
    conformance::run(2, group(&[1, 1]), |_| Reference);
}

#[test]
fn two_and_one_ranks_conform() {
    conformance::run(3, group(&[2, 1]), |_| Reference);
}

#[test]
fn two_and_two_ranks_conform() {
    conformance::run(4, group(&[2, 2]), |_| Reference);
}

#[test]
fn one_and_three_ranks_conform() {
    conformance::run(4, group(&[1, 3]), |_| Reference);
}

#[test]
fn three_and_three_and_two_ranks_conform() {
    conformance::run(8, group(&[3, 3, 2]), |_| Reference);
}

#[test]
fn nodes_that_do_not_fit_are_refused() {
    let deadline = Duration::from_secs(60);
    let rank_0 = |node_of_rank: Vec<usize>| {
        let local = SharedGroup::new(2, SharedConfig::default()).remove(0);
        let wire = meshes(3, &config(), |_, _| true)[0].group(1, &[0, 1, 2], deadline).expect("a group");
        Hierarchical::new(local, wire, node_of_rank).expect_err("refused").to_string()
    };
    assert!(rank_0(vec![0, 1, 0]).contains("rank 2 is on node 0 again"));
    assert!(rank_0(vec![0, 1, 1]).contains("rank 0 of 1 on its node, but rank 0 of 2 in the local group"));
    assert!(rank_0(vec![0, 0]).contains("2 ranks have a node, in a group of 3"));
}
