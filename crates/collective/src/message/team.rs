//! The ranks that exchange, and exchanges in which each of them takes part. A group's ranks are a team; so are the
//! leaders of its nodes.

use super::{Buffer, Call, Incoming, Outgoing, Wire};
use crate::CollectiveError;

/// Some ranks of a wire, in ascending order. Places in it are called members.
pub(crate) struct Team<'a, W> {
    pub wire: &'a W,
    pub ranks: &'a [usize],
    /// This rank's place.
    pub me: usize,
}

impl<W: Wire> Team<'_, W> {
    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    /// The other members, beginning after this one, so that not all turn to the same first.
    pub fn others(&self) -> impl Iterator<Item = usize> + use<W> {
        let (me, n) = (self.me, self.ranks.len());
        (1..n).map(move |distance| (me + distance) % n)
    }

    /// A message to a member.
    pub fn to<'b>(&self, member: usize, bytes: &'b [u8]) -> Outgoing<'b> {
        Outgoing { to: self.ranks[member], bytes }
    }

    /// A message from a member, of a known length.
    pub fn from<'b>(&self, member: usize, bytes: &'b mut [u8]) -> Incoming<'b> {
        Incoming { from: self.ranks[member], into: Buffer::Exact(bytes) }
    }

    /// A message from a member, of any length.
    pub fn from_any<'b>(&self, member: usize, bytes: &'b mut Vec<u8>) -> Incoming<'b> {
        Incoming { from: self.ranks[member], into: Buffer::Any(bytes) }
    }

    /// Says to all that one is there, and waits until all have said it.
    pub fn meet(&self, call: &Call) -> Result<(), CollectiveError> {
        let sends: Vec<_> = self.others().map(|r| self.to(r, &[])).collect();
        let mut receives: Vec<_> = self.others().map(|r| self.from(r, &mut [])).collect();
        self.wire.exchange(call, &sends, &mut receives)
    }

    /// `part(r)` goes to member `r`; what came from member `r` is the result's `r`-th, own parts included.
    pub fn swap<'b>(
        &self,
        call: &Call,
        part: impl Fn(usize) -> &'b [u8],
    ) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let mut all: Vec<Vec<u8>> = vec![Vec::new(); self.len()];
        all[self.me] = part(self.me).to_vec();
        let sends: Vec<_> = self.others().map(|r| self.to(r, part(r))).collect();
        let others = all.iter_mut().enumerate().filter(|(r, _)| *r != self.me);
        let mut receives: Vec<_> = others.map(|(r, bytes)| self.from_any(r, bytes)).collect();
        self.wire.exchange(call, &sends, &mut receives)?;
        drop(receives);
        Ok(all)
    }
}
