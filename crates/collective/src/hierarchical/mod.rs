//! A group over several nodes: ranks of a node share memory, nodes talk TCP.
//!
//! A collective goes up, across and down: the ranks of a node bring what they have to their leader, the node's first
//! rank, as one thing where that is possible (sums are added up as far as the tree allows, see [`nodes`]); the leaders
//! exchange; then each shares the result with its node. So what a node has to say crosses the wire once for each other
//! node, however many ranks it has.
//!
//! Each level waits a little longer than the one below, so that the first who gives up knows who is missing.

mod group;
mod nodes;
mod parts;
mod tensors;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Call, Op, Scratch, Standing, Team, Wire};
use crate::shared::Outer;
use crate::tcp::Guarded;
use crate::{CallId, CollectiveError, CollectiveStats, Group, Progress, SharedRank, TcpRank, Watched};

/// One rank of a group over several nodes.
pub struct Hierarchical {
    local: SharedRank,
    wire: TcpRank,
    /// The ranks of each node.
    nodes: Vec<Range<usize>>,
    /// This rank's node.
    node: usize,
    /// The first rank of each node.
    leaders: Vec<usize>,
    /// Collectives so far, and messages to and from each rank.
    calls: Cell<u64>,
    sent: Vec<Cell<u64>>,
    received: Vec<Cell<u64>>,
    scratch: RefCell<Scratch>,
    stats: Cell<CollectiveStats>,
    standing: Arc<Standing>,
}

impl Hierarchical {
    /// A rank of the group that `wire` spans. `local` are the ranks of its node, in the same order; the two should have the
    /// same deadline. `node_of_rank` says which ranks share a node, in any numbers.
    ///
    /// Ranks of different nodes need connections with each other.
    ///
    /// # Errors
    /// The ranks of a node do not follow each other, or `local` is not this rank's node.
    pub fn new(local: SharedRank, wire: TcpRank, node_of_rank: Vec<usize>) -> Result<Self, CollectiveError> {
        let (rank, ranks) = (wire.rank(), wire.size());
        if node_of_rank.len() != ranks {
            let given = node_of_rank.len();
            return Err(CollectiveError::Nodes(format!("{given} ranks have a node, in a group of {ranks}")));
        }
        let nodes = nodes::group(&node_of_rank)?;
        let node = nodes.iter().position(|n| n.contains(&rank)).expect("every rank has a node");
        let (expected, size) = (rank - nodes[node].start, nodes[node].len());
        if (local.rank(), local.size()) != (expected, size) {
            let (local, of) = (local.rank(), local.size());
            return Err(CollectiveError::Nodes(format!(
                "rank {rank} is rank {expected} of {size} on its node, but rank {local} of {of} in the local group"
            )));
        }
        local.speak_of(Outer { first_rank: nodes[node].start, call: CallId::default() });
        Ok(Hierarchical {
            leaders: nodes.iter().map(|n| n.start).collect(),
            calls: Cell::new(0),
            sent: vec![Cell::new(0); ranks],
            received: vec![Cell::new(0); ranks],
            scratch: RefCell::default(),
            stats: Cell::default(),
            // Waits look at the failures of the two groups.
            standing: Arc::new(Standing::new(|| {})),
            local,
            wire,
            nodes,
            node,
        })
    }

    /// The ranks of this node.
    fn here(&self) -> Range<usize> {
        self.nodes[self.node].clone()
    }

    fn leads(&self) -> bool {
        self.rank() == self.here().start
    }

    /// The deadline, longer by some for each level of waits that may end before.
    fn patience(&self, levels: u32) -> Duration {
        let deadline = self.wire.wire().deadline();
        deadline + (deadline / 4).max(Duration::from_millis(100)) * levels
    }

    /// Begins a collective. The call is that of the leaders.
    fn begin(&self, op: Op, size: usize) -> Result<Call, CollectiveError> {
        self.calls.set(self.calls.get() + 1);
        let (number, deadline) = (self.calls.get(), Some(self.patience(1)));
        self.begin_call(Call { op, number, peer: None, size, deadline })
    }

    /// Begins a message to or from `peer`.
    fn begin_message(
        &self,
        op: Op,
        peer: usize,
        deadline: Option<Duration>,
    ) -> Result<Call, CollectiveError> {
        assert!(
            peer != self.rank() && peer < self.size(),
            "rank {} and another one, not {peer}",
            self.rank()
        );
        let count = match op {
            Op::Send | Op::SendBytes => &self.sent[peer],
            _ => &self.received[peer],
        };
        count.set(count.get() + 1);
        self.begin_call(Call { op, number: count.get(), peer: Some(peer), size: 0, deadline })
    }

    fn begin_call(&self, call: Call) -> Result<Call, CollectiveError> {
        self.local.speak_of(Outer { first_rank: self.here().start, call: call.id() });
        self.told(self.standing.begin(&call).and_then(|()| self.local.check()))?;
        self.told(self.wire.wire().standing().check())?;
        Ok(call)
    }

    /// A result of one of the two groups; the other one hears of an error.
    fn told<T>(&self, result: Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        result.inspect_err(|error| {
            let (rank, message) = match error {
                CollectiveError::Failed { rank, message } => (*rank, message.clone()),
                CollectiveError::Missing { rank, .. } => (*rank, error.to_string()),
                _ => (self.rank(), error.to_string()),
            };
            self.local.watched().abort(rank, &message);
            self.wire.wire().fail(rank, &message);
        })
    }

    /// Something on the wire, which also ends when the local group fails.
    fn on_wire<T>(
        &self,
        work: impl FnOnce(&Guarded<'_>) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        let guard = || self.local.check();
        self.told(work(&Guarded { wire: self.wire.wire(), guard: &guard }))
    }

    /// Something among the leaders, by one of them.
    fn across<T>(
        &self,
        work: impl FnOnce(&Team<'_, Guarded<'_>>) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        self.on_wire(|wire| work(&Team { wire, ranks: &self.leaders, me: self.node }))
    }

    /// The leader's bytes on all ranks of the node, as soon as it has them.
    fn share(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        self.told(self.local.broadcast(bytes, deadline))
    }

    /// Waits until the leader has been on the wire.
    fn wait_for_leader(&self) -> Result<(), CollectiveError> {
        self.share(&mut Vec::new(), Some(self.patience(2)))
    }

    /// What only a rank that speaks another protocol sends.
    fn garbled<T>(&self, call: &Call, what: &str) -> Result<T, CollectiveError> {
        let message = format!("{} number {}: {what}", call.op.name(), call.number);
        self.told(Err(CollectiveError::Failed { rank: self.rank(), message }))
    }

    fn count(&self, change: impl FnOnce(&mut CollectiveStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

/// Both groups, for whoever watches.
struct Both {
    local: Arc<dyn Watched>,
    wire: Arc<Standing>,
    standing: Arc<Standing>,
}

impl Watched for Both {
    fn abort(&self, rank: usize, message: &str) {
        self.local.abort(rank, message);
        self.wire.abort(rank, message);
    }

    fn progress(&self) -> Progress {
        self.standing.progress()
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.local.check()?;
        Standing::check(&self.wire)
    }
}

impl std::fmt::Debug for Hierarchical {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hierarchical(rank {} of {} on {} nodes)", self.rank(), self.size(), self.nodes.len())
    }
}
