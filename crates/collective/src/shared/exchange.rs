//! `all_to_all`: every rank puts what it has for others into its slot, one part after the other, and takes from each
//! other slot the part that is for itself.
//!
//! What a rank puts is one stream of bytes: where each rank's part ends, then the parts. A stream that is longer than a
//! slot goes in windows of it; all ranks make as many steps as the longest stream needs.

use std::ops::Range;

use tensor::HostDevice;

use super::channel::{Call, Channel};
use super::reduce::{Parallel, copy, overlap};
use super::shards::{as_bytes, as_bytes_mut};
use crate::CollectiveError;

/// Bytes that say where a part ends.
const END: usize = size_of::<u64>();

pub(super) fn all_to_all<D: HostDevice>(
    channel: &mut Channel,
    call: &Call,
    dev: &D,
    x: &D::Tensor,
    rows_to: &[usize],
    rows_from: &[usize],
) -> Result<D::Tensor, CollectiveError> {
    let (rank, ranks) = (channel.rank(), channel.size());
    let [rows, cols] = dev.shape(x);
    assert_eq!((rows_to.len(), rows_from.len()), (ranks, ranks), "a number of rows for each rank");
    assert_eq!(rows, rows_to.iter().sum::<usize>(), "rank {rank} brings its rows");
    assert_eq!(rows_to[rank], rows_from[rank], "rank {rank} keeps its own rows");
    let row = cols * size_of::<f32>();
    let mut rest = as_bytes(dev.as_slice(x));
    let mut parts = Vec::with_capacity(ranks);
    for &rows in rows_to {
        let (part, later) = rest.split_at(rows * row);
        parts.push(part);
        rest = later;
    }
    let mut out = dev.alloc(rows_from.iter().sum(), cols);
    let mut rest = as_bytes_mut(dev.as_mut_slice(&mut out));
    let mut places = Vec::with_capacity(ranks);
    for &rows in rows_from {
        let (place, later) = rest.split_at_mut(rows * row);
        places.push(place);
        rest = later;
    }
    let parallel: Parallel<'_> = &|items, grain, work| dev.parallel(items, grain, work);
    exchange(channel, call, parallel, &parts, |from, len| {
        let place = std::mem::take(&mut places[from]);
        if place.len() == len { Ok(place) } else { Err(place.len()) }
    })?;
    Ok(out)
}

pub(super) fn all_to_all_host(
    channel: &mut Channel,
    call: &Call,
    parts: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, CollectiveError> {
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    assert_eq!(parts.len(), channel.size(), "a part for each rank");
    let places =
        exchange(channel, call, &|items, _, work| work(0..items), &parts, |_, len| Ok(vec![0; len]))?;
    Ok(places)
}

/// Sends `parts[r]` to each rank `r`. `place(r, length)` makes the place for what comes from `r`, or says how much was
/// expected instead.
fn exchange<P: AsMut<[u8]>>(
    channel: &mut Channel,
    call: &Call,
    parallel: Parallel<'_>,
    parts: &[&[u8]],
    mut place: impl FnMut(usize, usize) -> Result<P, usize>,
) -> Result<Vec<P>, CollectiveError> {
    channel.begin(call.op)?;
    let (rank, ranks) = (channel.rank(), channel.size());
    let window = channel.slot_len() * size_of::<f32>();
    let head = ranks * END;
    assert!(head <= window, "a slot holds the ends of {ranks} parts");
    let ends = ends_of(parts, rank);
    let total = ends.last().copied().unwrap_or(head);
    let mut places: Vec<P> = Vec::with_capacity(ranks);
    let mut streams: Vec<Range<usize>> = Vec::with_capacity(ranks);
    let (mut start, mut most) = (0, 1);
    while start < most {
        put(parallel, channel.bytes()?, start, parts, &ends, rank);
        let peers = channel.publish(call, total)?;
        if start == 0 {
            most = (0..ranks).map(|from| peers.length(from)).max().unwrap_or(0);
            streams.extend((0..ranks).map(|from| match from == rank {
                true => 0..0,
                false => mine(peers.bytes(from), rank, head),
            }));
            let made = streams.iter().enumerate().map(|(from, stream)| match from == rank {
                true => {
                    place(from, parts[rank].len()).map_err(|expected| (from, parts[rank].len(), expected))
                }
                false => place(from, stream.len()).map_err(|expected| (from, stream.len(), expected)),
            });
            match made.collect::<Result<Vec<P>, _>>() {
                Ok(made) => places = made,
                Err((from, has, expected)) => {
                    let op = call.op.name();
                    let message =
                        format!("{op}: {has} bytes came from rank {from}, {expected} were expected");
                    return Err(channel.refuse(&message));
                }
            }
            copy(parallel, places[rank].as_mut(), parts[rank]);
        }
        for from in (0..ranks).filter(|&from| from != rank) {
            let now = overlap(&streams[from], &(start..start + window));
            if now.is_empty() {
                continue;
            }
            let first = streams[from].start;
            let to = &mut places[from].as_mut()[now.start - first..now.end - first];
            copy(parallel, to, &peers.bytes(from)[now.start - start..now.end - start]);
        }
        start += window;
    }
    Ok(places)
}

/// Where each part of a rank's stream ends. Its own part is not in it.
fn ends_of(parts: &[&[u8]], rank: usize) -> Vec<usize> {
    let lengths = parts.iter().enumerate().map(|(to, part)| if to == rank { 0 } else { part.len() });
    let mut end = parts.len() * END;
    lengths
        .map(|len| {
            end += len;
            end
        })
        .collect()
}

/// Puts the window of the stream that begins at `start` into the slot.
fn put(parallel: Parallel<'_>, slot: &mut [u8], start: usize, parts: &[&[u8]], ends: &[usize], rank: usize) {
    if start == 0 {
        slot.chunks_exact_mut(END)
            .zip(ends)
            .for_each(|(to, end)| to.copy_from_slice(&(*end as u64).to_le_bytes()));
    }
    let window = start..start + slot.len();
    for (to, part) in parts.iter().enumerate().filter(|(to, _)| *to != rank) {
        let first = ends[to] - part.len();
        let now = overlap(&(first..ends[to]), &window);
        if now.is_empty() {
            continue;
        }
        let from = &part[now.start - first..now.end - first];
        copy(parallel, &mut slot[now.start - start..now.end - start], from);
    }
}

/// Where in another rank's stream this rank's part lies.
fn mine(stream: &[u8], rank: usize, head: usize) -> Range<usize> {
    let end = |rank: usize| {
        let end = stream[rank * END..][..END].try_into().expect("eight bytes");
        (u64::from_le_bytes(end) as usize).max(head)
    };
    let first = if rank == 0 { head } else { end(rank - 1) };
    first..end(rank).max(first)
}
