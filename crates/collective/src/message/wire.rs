//! What a transport has to do, so that [`super::Messages`] makes a group of it.

use std::sync::Arc;
use std::time::Duration;

use super::{Call, Standing};
use crate::{CollectiveError, Waits};

/// Bytes for another rank.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Whom they are for.
    pub to: usize,
    /// The message.
    pub bytes: &'a [u8],
}

/// Where a message goes.
#[derive(Debug)]
pub enum Buffer<'a> {
    /// The message has exactly this length; another one is an error.
    Exact(&'a mut [u8]),
    /// Whatever its length is. What the vector holds is replaced.
    Any(&'a mut Vec<u8>),
}

/// A message that another rank sends.
#[derive(Debug)]
pub struct Incoming<'a> {
    /// Who sends it.
    pub from: usize,
    /// Where it goes.
    pub into: Buffer<'a>,
}

/// Reliable, ordered messages between the ranks of a group.
///
/// Between two ranks there are two independent lanes in each direction: one for collectives ([`Wire::exchange`]), one for
/// messages ([`Wire::send`], [`Wire::receive`]). In each, messages arrive complete and in the order in which they were sent.
///
/// A call that cannot succeed fails the group (see [`Standing`]) and tells all others, who then fail too, whatever they wait
/// for. A rank that cannot be reached any more, or has ended while its messages are still waited for, is such a failure.
/// While a call waits, the transport goes on with everything else that is under way, and a call's deadline counts
/// from the last byte that moved for it.
pub trait Wire {
    /// This rank.
    fn rank(&self) -> usize;
    /// Ranks in the group.
    fn size(&self) -> usize;
    /// The group's deadline.
    fn deadline(&self) -> Duration;
    /// Sends and receives messages of a collective, all at once; returns when all are received and no bytes of
    /// `sends` are needed any more. To and from one rank in the order of the lists.
    ///
    /// Each message carries [`Call::tag`]; one with another tag is the error [`Call::disagreement`].
    ///
    /// # Errors
    /// Ranks are missing at the call's deadline, a length or tag is another one, or the group has failed.
    fn exchange(
        &self,
        call: &Call,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
    ) -> Result<(), CollectiveError>;
    /// Sends a message. Returns as soon as the transport has taken it over, at once while its buffers have room.
    ///
    /// # Errors
    /// The receiver took too little until the call's deadline, or the group has failed.
    fn send(&self, call: &Call, to: usize, bytes: &[u8]) -> Result<(), CollectiveError>;
    /// Receives the next message of a rank.
    ///
    /// # Errors
    /// As for [`Wire::exchange`].
    fn receive(&self, call: &Call, from: usize, into: Buffer<'_>) -> Result<(), CollectiveError>;
    /// Whether the next message of a rank has begun to arrive. Waits for nobody.
    ///
    /// # Errors
    /// There is none and there will not be one, or the group has failed.
    fn has_begun(&self, call: &Call, from: usize) -> Result<bool, CollectiveError>;
    /// Whether the group can go on. Waits for nobody.
    ///
    /// # Errors
    /// The group has failed.
    fn check(&self) -> Result<(), CollectiveError>;
    /// Fails the group for all ranks on account of `rank`, unless it has failed already.
    fn fail(&self, rank: usize, message: &str);
    /// How this rank stands.
    fn standing(&self) -> &Arc<Standing>;
    /// How long this rank waited for others' first bytes.
    fn waits(&self) -> Waits;
}
