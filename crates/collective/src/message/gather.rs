//! `all_gather`: directly, or for large parts round a ring.
//!
//! Either way a rank sends and gets the same number of bytes. Directly they take one delay, and all of a rank's peers send to
//! it at once; round the ring a rank hears only its neighbour, so that no port of a switch gets more than it can pass on.

use super::team::Team;
use super::{Call, Wire};
use crate::CollectiveError;

/// The largest part, in bytes, from which three and more ranks pass parts round the ring.
pub(crate) const RING_BYTES: usize = 1 << 20;

/// Fills everybody's part; this rank's is there already.
pub(crate) fn all_gather<W: Wire>(
    team: &Team<'_, W>,
    call: &Call,
    parts: &mut [&mut [f32]],
) -> Result<(), CollectiveError> {
    let most = parts.iter().map(|p| size_of_val(&p[..])).max().unwrap_or(0);
    match team.len() > 2 && most >= RING_BYTES {
        true => ring(team, call, parts),
        false => direct(team, call, parts),
    }
}

fn direct<W: Wire>(team: &Team<'_, W>, call: &Call, parts: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
    let (before, rest) = parts.split_at_mut(team.me);
    let (own, after) = rest.split_first_mut().expect("this rank is in its team");
    let sends: Vec<_> = team.others().map(|r| team.to(r, bytemuck::cast_slice(own))).collect();
    let others = (0..).zip(before).chain((team.me + 1..).zip(after));
    let mut receives: Vec<_> = others.map(|(r, part)| team.from(r, bytemuck::cast_slice_mut(part))).collect();
    team.wire.exchange(call, &sends, &mut receives)
}

fn ring<W: Wire>(team: &Team<'_, W>, call: &Call, parts: &mut [&mut [f32]]) -> Result<(), CollectiveError> {
    let n = team.len();
    let (right, left) = ((team.me + 1) % n, (team.me + n - 1) % n);
    // Who is missing is known to all before parts depend on each other.
    team.meet(call)?;
    for step in 0..n - 1 {
        let pass = (team.me + n - step) % n;
        let [own, next] = parts.get_disjoint_mut([pass, (pass + n - 1) % n]).expect("two parts of the ring");
        let sends = [team.to(right, bytemuck::cast_slice(own))];
        let mut receives = [team.from(left, bytemuck::cast_slice_mut(next))];
        team.wire.exchange(call, &sends, &mut receives)?;
    }
    Ok(())
}

/// Cuts a slice into consecutive parts.
pub(crate) fn cut(mut all: &mut [f32], lens: impl IntoIterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut parts = Vec::new();
    for len in lens {
        let (part, rest) = all.split_at_mut(len);
        parts.push(part);
        all = rest;
    }
    parts
}
