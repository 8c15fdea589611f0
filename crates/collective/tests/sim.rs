//! The group on paper gives right shapes, right counts, and a line per call.

use std::cell::RefCell;
use std::rc::Rc;

use collective::{Collective, ReducePlan, ShapeGroup};
use tensor::{Device, ReductionTree, Reference};

#[test]
fn shapes_counts_and_lines_are_those_of_a_real_group() {
    let lines = Rc::new(RefCell::new(Vec::new()));
    let noted = lines.clone();
    let group = ShapeGroup::new(1, 3, move |line| noted.borrow_mut().push(line.to_string()));
    let group: &dyn Collective<Reference> = &group;
    let dev = Reference;

    let tree = ReductionTree::over_heads(8, 4);
    let ranks = [0..3, 3..6, 6..8];
    let nodes_of_rank = ranks.iter().map(|r| tree.cover(r.clone()).len()).collect();
    let plan = ReducePlan { nodes_of_rank, finish: tree.finish(&ranks) };
    let sum = group.all_reduce(&dev, dev.alloc(2 * 3, 64), 3, &plan).unwrap();
    assert_eq!(dev.shape(&sum), [3, 64]);
    let all = group.all_gather(&dev, &dev.alloc(2, 5), &[1, 2, 0]).unwrap();
    assert_eq!(dev.shape(&all), [3, 5]);
    assert_eq!(group.all_gather_host(&[1.0, 2.0]).unwrap(), vec![vec![1.0, 2.0]; 3]);
    group.broadcast(&mut vec![1, 2, 3], None).unwrap();
    group.barrier().unwrap();

    let expected = [
        "all_reduce 2 nodes of [3, 64]",
        "all_gather [2, 5] of [3, 5]",
        "all_gather_host 2 numbers",
        "broadcast 3 bytes",
        "barrier",
    ];
    assert_eq!(*lines.borrow(), expected);
    let stats = group.stats();
    assert_eq!((stats.all_reduce_calls, stats.all_reduce_bytes, stats.other_calls), (1, 2 * 3 * 64 * 4, 3));
}

#[test]
fn exchanges_and_messages_have_the_shapes_of_a_real_group() {
    let lines = Rc::new(RefCell::new(Vec::new()));
    let noted = lines.clone();
    let group = ShapeGroup::new(1, 3, move |line| noted.borrow_mut().push(line.to_string()));
    let group: &dyn Collective<Reference> = &group;
    let dev = Reference;

    let tree = ReductionTree::over_heads(8, 4);
    let plan = ReducePlan { nodes_of_rank: vec![2, 2, 1], finish: tree.finish(&[0..3, 3..6, 6..8]) };
    let sum = group.reduce_scatter(&dev, dev.alloc(2 * 3, 64), &[0, 2, 1], &plan).unwrap();
    assert_eq!(dev.shape(&sum), [2, 64]);
    let all = group.all_to_all(&dev, &dev.alloc(5, 7), &[3, 2, 0], &[1, 2, 4]).unwrap();
    assert_eq!(dev.shape(&all), [7, 7]);
    group.send(&dev, &dev.alloc(2, 3), 2).unwrap();
    assert_eq!(dev.shape(&group.recv(&dev, 0, 4, 3, None).unwrap()), [4, 3]);

    let expected = [
        "reduce_scatter 2 nodes of [3, 64]",
        "all_to_all [5, 7]",
        "send [2, 3] to rank 2",
        "recv [4, 3] from rank 0",
    ];
    assert_eq!(*lines.borrow(), expected);
    let stats = group.stats();
    assert_eq!((stats.all_reduce_calls, stats.other_calls), (1, 3));
}
