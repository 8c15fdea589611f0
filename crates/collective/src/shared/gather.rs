//! What only moves data: `all_gather`, `all_gather_host`, `broadcast`.

use tensor::HostDevice;

use super::channel::{Call, Channel};
use super::reduce::{Parallel, copy};
use super::shards::as_bytes_mut;
use crate::CollectiveError;

pub(super) fn all_gather<D: HostDevice>(
    channel: &mut Channel,
    call: &Call,
    dev: &D,
    part: &D::Tensor,
    rows_of_rank: &[usize],
) -> Result<D::Tensor, CollectiveError> {
    let (rank, ranks) = (channel.rank(), channel.size());
    let [rows, cols] = dev.shape(part);
    assert_eq!(rows_of_rank.len(), ranks, "a number of rows for each rank");
    assert_eq!(rows, rows_of_rank[rank], "rank {rank} brings its rows");
    channel.begin(call.op)?;
    let mut out = dev.alloc(rows_of_rank.iter().sum(), cols);
    let (own, mut rest) = (dev.as_slice(part), dev.as_mut_slice(&mut out));
    let mut parts = Vec::with_capacity(ranks);
    for &rows in rows_of_rank {
        let (part, tail) = rest.split_at_mut(rows * cols);
        parts.push(part);
        rest = tail;
    }
    let parallel: Parallel<'_> = &|items, grain, work| dev.parallel(items, grain, work);
    copy(parallel, parts[rank], own);
    let most = parts.iter().map(|p| p.len()).max().unwrap_or(0);
    let piece = channel.slot_len();
    for start in (0..most).step_by(piece) {
        let range = |len: usize| start.min(len)..(start + piece).min(len);
        let mine = &own[range(own.len())];
        channel.rotate(piece.min(most - start));
        copy(parallel, &mut channel.slot()?[..mine.len()], mine);
        let peers = channel.publish(call, 0)?;
        for (other, part) in parts.iter_mut().enumerate().filter(|(other, _)| *other != rank) {
            let range = range(part.len());
            copy(parallel, &mut part[range.clone()], &peers.slot(other)[..range.len()]);
        }
    }
    Ok(out)
}

pub(super) fn all_gather_host(
    channel: &mut Channel,
    call: &Call,
    own: &[f32],
) -> Result<Vec<Vec<f32>>, CollectiveError> {
    channel.begin(call.op)?;
    let (me, piece) = (channel.rank(), channel.slot_len());
    let mut parts: Vec<Vec<f32>> = vec![Vec::new(); channel.size()];
    parts[me] = own.to_vec();
    let (mut start, mut most) = (0, own.len().max(1));
    while start < most {
        let mine = &own[start.min(own.len())..(start + piece).min(own.len())];
        channel.slot()?[..mine.len()].copy_from_slice(mine);
        let peers = channel.publish(call, own.len())?;
        for (rank, part) in parts.iter_mut().enumerate().filter(|(rank, _)| *rank != me) {
            let len = peers.length(rank);
            most = most.max(len);
            part.extend_from_slice(&peers.slot(rank)[..len.saturating_sub(start).min(piece)]);
        }
        start += piece;
    }
    Ok(parts)
}

/// `first` is the call that may wait for work; once it began, `rest` waits for the rest.
pub(super) fn broadcast(
    channel: &mut Channel,
    first: &Call,
    rest: &Call,
    bytes: &mut Vec<u8>,
) -> Result<(), CollectiveError> {
    channel.begin(first.op)?;
    let root = channel.rank() == 0;
    let piece = channel.slot_len() * size_of::<f32>();
    let (mut start, mut total) = (0, bytes.len());
    loop {
        if root {
            let mine = &bytes[start..(start + piece).min(total)];
            as_bytes_mut(channel.slot()?)[..mine.len()].copy_from_slice(mine);
        }
        let peers = channel.publish(if start == 0 { first } else { rest }, total)?;
        if !root {
            if start == 0 {
                total = peers.length(0);
                bytes.clear();
                bytes.reserve(total);
            }
            bytes.extend_from_slice(&peers.bytes(0)[..(total - start).min(piece)]);
        }
        start += piece;
        if start >= total {
            return Ok(());
        }
    }
}
