//! Operations, their names, and what ranks compare of them.

use std::time::Duration;

use crate::{CallId, CollectiveError};

/// An operation of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are the methods of `Group` and `Collective`
pub enum Op {
    AllReduce,
    ReduceScatter,
    AllGather,
    AllToAll,
    AllGatherHost,
    AllToAllHost,
    Broadcast,
    Barrier,
    Send,
    Recv,
    SendBytes,
    RecvBytes,
    TryRecvBytes,
}

impl Op {
    const ALL: [(Op, &'static str); 13] = [
        (Op::AllReduce, "all_reduce"),
        (Op::ReduceScatter, "reduce_scatter"),
        (Op::AllGather, "all_gather"),
        (Op::AllToAll, "all_to_all"),
        (Op::AllGatherHost, "all_gather_host"),
        (Op::AllToAllHost, "all_to_all_host"),
        (Op::Broadcast, "broadcast"),
        (Op::Barrier, "barrier"),
        (Op::Send, "send"),
        (Op::Recv, "recv"),
        (Op::SendBytes, "send_bytes"),
        (Op::RecvBytes, "recv_bytes"),
        (Op::TryRecvBytes, "try_recv_bytes"),
    ];

    /// Its method's name.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The operation of a number, as in `op as usize`.
    pub fn of_number(number: usize) -> Option<Op> {
        Self::ALL.get(number).map(|(op, _)| *op)
    }
}

/// Bits of a tag below its operation.
const SIZE_BITS: u32 = 56;

/// One call of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The operation.
    pub op: Op,
    /// Its number: of a collective, among those of the group; of a message, among those of its pair in this direction.
    pub number: u64,
    /// Of a message: the other rank.
    pub peer: Option<usize>,
    /// A size on which all ranks of a collective agree.
    pub size: usize,
    /// How long nothing may move. `None`: for ever.
    pub deadline: Option<Duration>,
}

impl Call {
    /// What ranks compare: the operation and the size.
    pub fn tag(&self) -> u64 {
        (self.op as u64) << SIZE_BITS | (self.size as u64 & ((1 << SIZE_BITS) - 1))
    }

    /// What it is called.
    pub fn id(&self) -> CallId {
        CallId { op: self.op.name(), number: self.number, peer: self.peer }
    }

    /// The error of a rank that waits for `missing`.
    pub fn missing(&self, rank: usize, missing: Vec<usize>) -> CollectiveError {
        let waited_s = self.deadline.unwrap_or_default().as_secs_f64().ceil() as u64;
        CollectiveError::Missing { op: self.op.name(), sequence: self.number, rank, missing, waited_s }
    }

    /// What a rank says that got another operation's message.
    pub fn disagreement(&self, rank: usize, from: usize, tag: u64) -> String {
        let theirs = Op::of_number((tag >> SIZE_BITS) as usize).map_or("nothing known", Op::name);
        format!(
            "operation number {} is {} of {} on rank {rank}, but {theirs} of {} on rank {from}",
            self.number,
            self.op.name(),
            self.size,
            tag & ((1 << SIZE_BITS) - 1)
        )
    }

    /// What a rank says that got a message of another length.
    pub fn wrong_length(&self, from: usize, have: u64, expected: usize) -> String {
        let (op, number) = (self.op.name(), self.number);
        format!(
            "{op} number {number}: a message of rank {from} has {have} bytes, and {expected} were expected"
        )
    }

    /// What is said of a rank that ended too early.
    pub fn ended(&self) -> String {
        format!("ended before {} number {}", self.op.name(), self.number)
    }
}
