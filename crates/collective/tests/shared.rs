//! The group of threads: conformance, more ranks than cores, ranks that end early.

use std::time::Duration;

use collective::{CollectiveError, Group, SharedConfig, SharedGroup, SharedRank, Staged, conformance};
use tensor::Reference;

fn group(slot_bytes: usize) -> impl Fn(usize, Duration) -> Vec<SharedRank> {
    move |ranks, deadline| {
        SharedGroup::new(ranks, SharedConfig { deadline, slot_bytes, ..SharedConfig::default() })
    }
}

#[test]
fn one_rank_conforms() {
    conformance::run(1, group(1 << 20), |_| Reference);
}

#[test]
fn two_ranks_conform() {
    conformance::run(2, group(1 << 20), |_| Reference);
}

#[test]
fn three_ranks_conform_with_small_slots() {
    conformance::run(3, group(1 << 14), |_| Reference);
}

#[test]
fn eight_ranks_conform() {
    conformance::run(8, group(1 << 18), |_| Reference);
}

#[test]
fn three_ranks_conform_whose_matrices_are_staged() {
    let make = group(1 << 16);
    conformance::run(
        3,
        |ranks, deadline| make(ranks, deadline).into_iter().map(Staged).collect(),
        |_| Reference,
    );
}

/// Runs `work` on every rank and returns what they return.
fn on_all<R: Send>(ranks: Vec<SharedRank>, work: impl Fn(usize, SharedRank) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let work = &work;
        let spawn = |(rank, group)| scope.spawn(move || work(rank, group));
        let threads: Vec<_> = ranks.into_iter().enumerate().map(spawn).collect();
        threads.into_iter().map(|t| t.join().expect("a rank's thread")).collect()
    })
}

#[test]
fn eight_ranks_on_fewer_cores_pass_a_thousand_barriers() {
    on_all(SharedGroup::new(8, SharedConfig::default()), |_, group| {
        (0..1000).for_each(|_| group.barrier().expect("barrier"));
    });
}

#[test]
fn a_rank_that_panics_is_named() {
    let ended = on_all(SharedGroup::new(3, SharedConfig::default()), |rank, group| {
        group.barrier().expect("barrier");
        if rank == 2 {
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _group = group;
                std::panic::resume_unwind(Box::new("index out of bounds"));
            }));
            return panic.expect_err("it panicked").is::<&str>().then_some("rank 2: panicked".to_string());
        }
        group.barrier().err().map(|e| e.to_string())
    });
    assert_eq!(ended, vec![Some("rank 2: panicked".to_string()); 3]);
}

#[test]
fn an_end_is_noticed_while_another_rank_is_still_away() {
    // Rank 1 lives and never comes; rank 0 waits for it first, and must still hear that rank 2 ended.
    let (tell, told) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let ended = on_all(SharedGroup::new(3, SharedConfig::default()), |rank, group| match rank {
        0 => {
            let error = group.barrier().err().map(|e| e.to_string());
            tell.send(()).expect("rank 1 listens");
            error
        }
        1 => told.lock().expect("one listener").recv().err().map(|e| e.to_string()),
        _ => None,
    });
    assert_eq!(ended, [Some("rank 2: ended before barrier number 1".into()), None, None]);
}

#[test]
fn ranks_that_make_different_calls_are_told() {
    let ended = on_all(SharedGroup::new(2, SharedConfig::default()), |rank, group| match rank {
        0 => group.barrier().unwrap_err().to_string(),
        _ => group.all_gather_host(&[1.0]).unwrap_err().to_string(),
    });
    for error in ended {
        assert!(error.contains("operation number 1 is"), "{error}");
        assert!(error.contains("all_gather_host of 0 on rank 1"), "{error}");
        assert!(error.contains("barrier of 0 on rank 0"), "{error}");
    }
}

#[test]
fn every_size_of_message_survives() {
    for message in ["".to_string(), "x".repeat(5000), "ü".repeat(5000)] {
        let ended = on_all(SharedGroup::new(2, SharedConfig::default()), |rank, group| match rank {
            0 => {
                group.fail(&message);
                message.clone()
            }
            _ => match group.barrier().unwrap_err() {
                CollectiveError::Failed { rank: 0, message } => message,
                other => panic!("{other}"),
            },
        });
        assert!(message.starts_with(&ended[1]) && ended[1].len() >= message.len().min(999));
    }
}

#[test]
fn a_sender_waits_for_the_receiver_once_the_ring_is_full() {
    let deadline = Duration::from_millis(100);
    let config = SharedConfig { deadline, ..SharedConfig::default() };
    let ended = on_all(SharedGroup::new(2, config), |rank, group| match rank {
        0 => (0..).find_map(|n| group.send_bytes(&[1; 1000], 1).err().map(|e| (n, e.to_string()))),
        _ => {
            while group.check().is_ok() {
                std::thread::yield_now();
            }
            None
        }
    });
    let (sent, error) = ended[0].clone().expect("a ring has an end");
    // 4 MiB, and a unit for each message's length.
    assert_eq!(sent, (4 << 20) / 1008);
    let expected = format!("send_bytes number {} on rank 0: rank [1] did not arrive within 1 s", sent + 1);
    assert_eq!(error, expected);
}
