//! Collectives that only move data, and all kinds of collectives in a row.

use tensor::{Device, ReductionTree};

use super::sums::{Split, rows_of_rank};
use super::{Checks, LONG, bits, bytes, dawdle, hash, of_pair, value, values};
use crate::Collective;

impl<D: Device, C: Collective<D>> Checks<'_, D, C> {
    pub(super) fn gathers(&self) {
        let rows_of_rank =
            |case: usize| (0..self.ranks).map(move |r| [1, r, 150 * ((r + 1) % 2), 0, 3][case]);
        self.on_all(LONG, |rank, group, dev| {
            for (case, cols) in (0..5).flat_map(|case| [1, 17, 2048].map(|cols| (case, cols))) {
                let rows: Vec<usize> = rows_of_rank(case).collect();
                let of = |rank: usize| -> Vec<f32> {
                    (0..rows[rank] * cols).map(|i| value(rank as u32, i as u32)).collect()
                };
                let part = dev.upload(&of(rank), rows[rank], cols);
                let all = group.all_gather(&dev, &part, &rows).expect("all_gather");
                assert_eq!(dev.shape(&all), [rows.iter().sum(), cols]);
                let expected: Vec<f32> = (0..self.ranks).flat_map(of).collect();
                assert!(bits(&dev.download(&all).expect("download")) == bits(&expected), "rows {rows:?}");
                if rows.iter().all(|&r| r == rows[0]) {
                    let all = group.all_gather_alike(&dev, &part).expect("all_gather_alike");
                    assert!(bits(&dev.download(&all).expect("download")) == bits(&expected), "rows {rows:?}");
                    let backwards: Vec<u32> = (0..expected.len() as u32 / cols as u32).rev().collect();
                    let back = dev.download(&dev.gather_rows(&all, &backwards)).expect("download");
                    let expected: Vec<f32> = expected.chunks(cols).rev().flatten().copied().collect();
                    assert!(bits(&back) == bits(&expected), "rows {rows:?} backwards");
                }
                let all = group.all_gather_host(&of(rank)).expect("all_gather_host");
                assert!(all == (0..self.ranks).map(of).collect::<Vec<_>>(), "lengths {rows:?} · {cols}");
            }
        });
    }

    /// All-to-alls of rows and of bytes, each pair of ranks with its own number of them.
    pub(super) fn exchanges(&self) {
        self.on_all(LONG, |rank, group, dev| {
            let mut sent = 0;
            for (case, most) in [0, 1, 3, 9, 100, 9].into_iter().enumerate() {
                for cols in [1, 17, 700] {
                    sent += self.check_all_to_all(rank, &group, &dev, case, most, cols);
                }
            }
            assert_eq!(group.stats().sent_bytes, sent, "a rank's own part is not sent");
        });
    }

    /// Checks both, and returns the bytes that went to other ranks.
    fn check_all_to_all(
        &self,
        rank: usize,
        group: &C,
        dev: &D,
        case: usize,
        most: usize,
        cols: usize,
    ) -> u64 {
        let rows = |from, to| match of_pair(from, to, case) as usize % 3 {
            0 => 0,
            _ => of_pair(from, to, case) as usize / 3 % (most + 1),
        };
        let content = |from, to| values(of_pair(from, to, case), rows(from, to) * cols);
        let to: Vec<usize> = (0..self.ranks).map(|r| rows(rank, r)).collect();
        let from: Vec<usize> = (0..self.ranks).map(|r| rows(r, rank)).collect();

        let x: Vec<f32> = (0..self.ranks).flat_map(|r| content(rank, r)).collect();
        let x = dev.upload(&x, to.iter().sum(), cols);
        let all = group.all_to_all(dev, &x, &to, &from).expect("all_to_all");
        assert_eq!(dev.shape(&all), [from.iter().sum(), cols]);
        let expected: Vec<f32> = (0..self.ranks).flat_map(|r| content(r, rank)).collect();
        assert!(bits(&dev.download(&all).expect("download")) == bits(&expected), "from {from:?} · {cols}");

        // Odd lengths of bytes.
        let content = |from, to| bytes(of_pair(from, to, case), rows(from, to) * (cols + 2));
        let parts: Vec<Vec<u8>> = (0..self.ranks).map(|r| content(rank, r)).collect();
        let all = group.all_to_all_host(&parts).expect("all_to_all_host");
        assert!(all == (0..self.ranks).map(|r| content(r, rank)).collect::<Vec<_>>(), "{from:?} · {cols}");

        let others: usize = to.iter().sum::<usize>() - to[rank];
        (others * cols * size_of::<f32>() + others * (cols + 2)) as u64
    }

    pub(super) fn broadcasts(&self) {
        self.on_all(LONG, |rank, group, _| {
            for (seed, len) in [0, 3, 5_000_001, 1, 0].into_iter().enumerate() {
                let sent = bytes(seed as u32, len);
                // The others' content and length must not matter.
                let mut bytes = if rank == 0 { sent.clone() } else { vec![1; 7 * rank] };
                group.broadcast(&mut bytes, [Some(LONG), None][seed % 2]).expect("broadcast");
                assert!(bytes == sent, "{len} bytes");
                group.barrier().expect("barrier");
            }
        });
    }

    /// Hundreds of calls in a row, some ranks late at each.
    pub(super) fn mixed_calls(&self) {
        let splits = Split::all(&ReductionTree::over_heads(8, 4), self.ranks);
        self.on_all(LONG, |rank, group, dev| {
            for call in 0..400 {
                dawdle(hash(rank as u32 + 100, call));
                self.mixed_call(rank, &group, &dev, &splits, call);
            }
        });
    }

    /// One of those calls: which, and of what size, is a function of its number.
    pub(super) fn mixed_call(&self, rank: usize, group: &C, dev: &D, splits: &[Split], call: u32) {
        let shared = hash(7, call);
        let split = &splits[(shared >> 8) as usize % splits.len()];
        let cols = 1 + (shared >> 16) as usize % 70;
        match shared % 7 {
            0 | 1 => split.check(group, dev, 1 + (shared >> 12) as usize % 9, cols, call),
            2 => split.check_scatter(group, dev, &rows_of_rank(self.ranks, 4, call), cols, call),
            3 => {
                let len = |r: usize| (shared >> 8) as usize % (10 * (r + 1));
                let all = group.all_gather_host(&vec![rank as f32; len(rank)]).expect("all_gather_host");
                assert_eq!(all, (0..self.ranks).map(|r| vec![r as f32; len(r)]).collect::<Vec<_>>());
            }
            4 => {
                let mut bytes = if rank == 0 { shared.to_le_bytes().to_vec() } else { Vec::new() };
                group.broadcast(&mut bytes, None).expect("broadcast");
                assert_eq!(bytes, shared.to_le_bytes());
            }
            5 => drop(self.check_all_to_all(rank, group, dev, call as usize, 5, cols)),
            _ => group.barrier().expect("barrier"),
        }
    }
}
