//! Groups over TCP: conformance on loopback, and what only a network does.

mod common;

use collective::conformance;
use tensor::Reference;

use common::group;

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
