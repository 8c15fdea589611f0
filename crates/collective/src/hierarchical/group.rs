//! What needs no device.

use std::sync::Arc;
use std::time::Duration;

use super::parts::{pack, unpack};
use super::{Both, Hierarchical};
use crate::message::{Buffer, Call, Op, Wire};
use crate::{CollectiveError, CollectiveStats, Group, Watched};

impl Hierarchical {
    /// [`Group::all_to_all_host`] once it has begun.
    pub(super) fn exchange(&self, call: &Call, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let here = self.here();
        let there = |r: &usize| !here.contains(r);
        // Up: the leader also gets what goes to other nodes.
        let up: Vec<_> = here
            .clone()
            .map(|to| {
                let away = (0..self.size()).filter(there).filter(|_| to == here.start).map(|r| parts[r]);
                pack([parts[to]].into_iter().chain(away))
            })
            .collect();
        let up = self.told(self.local.all_to_all_host(&up))?;
        let count = if self.leads() { 1 + self.size() - here.len() } else { 1 };
        let Some(up) = up.iter().map(|bytes| unpack(bytes, count)).collect::<Option<Vec<_>>>() else {
            return self.garbled(call, "parts of its node that are none");
        };
        let mut all: Vec<Vec<u8>> = vec![Vec::new(); self.size()];
        for (from, parts) in here.clone().zip(&up) {
            all[from] = parts[0].to_vec();
        }
        if self.nodes.len() == 1 {
            return Ok(all);
        }

        // Across: for each node what all ranks here have for all ranks there.
        let mut down = vec![Vec::new(); here.len()];
        if self.leads() {
            let place = |to: usize| 1 + to - if to < here.start { 0 } else { here.len() };
            let for_node = |node: usize| {
                let parts = up.iter().flat_map(|parts| self.nodes[node].clone().map(|to| parts[place(to)]));
                pack(parts)
            };
            let blobs: Vec<_> = (0..self.nodes.len())
                .map(|node| if node == self.node { Vec::new() } else { for_node(node) })
                .collect();
            let blobs = self.across(|team| team.swap(call, |node| &blobs[node]))?;
            // Down: for each rank here what all ranks there have for it.
            for (node, blob) in blobs.iter().enumerate().filter(|(node, _)| *node != self.node) {
                let Some(parts) = unpack(blob, self.nodes[node].len() * here.len()) else {
                    return self.garbled(call, &format!("parts of node {node} that are none"));
                };
                for (i, part) in parts.into_iter().enumerate() {
                    down[i % here.len()].extend(pack([part]));
                }
            }
        }
        self.wait_for_leader()?;
        let down = self.told(self.local.all_to_all_host(&down))?;
        let Some(away) = unpack(&down[0], self.size() - here.len()) else {
            return self.garbled(call, "parts of other nodes that are none");
        };
        for (from, part) in (0..self.size()).filter(there).zip(away) {
            all[from] = part.to_vec();
        }
        Ok(all)
    }

    /// This rank's place on its node, if `rank` is there too.
    pub(super) fn neighbour(&self, rank: usize) -> Option<usize> {
        self.here().contains(&rank).then(|| rank - self.here().start)
    }
}

impl Group for Hierarchical {
    fn rank(&self) -> usize {
        self.wire.rank()
    }

    fn size(&self) -> usize {
        self.wire.size()
    }

    fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, CollectiveError> {
        self.count(|stats| stats.other_calls += 1);
        let call = self.begin(Op::AllGatherHost, 0)?;
        let here = self.told(self.local.all_gather_host(part))?;
        if self.nodes.len() == 1 {
            return Ok(here);
        }
        let mut all = Vec::new();
        if self.leads() {
            let blob = pack(here.iter().map(|part| bytemuck::cast_slice(part)));
            all = self.across(|team| team.swap(&call, |_| &blob))?.concat();
        }
        self.share(&mut all, Some(self.patience(2)))?;
        let Some(parts) = unpack(&all, self.size()) else {
            return self.garbled(&call, "parts of other nodes that are none");
        };
        let numbers = |part: &[u8]| part.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        Ok(parts.into_iter().map(numbers).collect())
    }

    fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        assert_eq!(parts.len(), self.size(), "a part for each rank");
        let total: usize = parts.iter().map(Vec::len).sum();
        self.count(|stats| {
            stats.other_calls += 1;
            stats.sent_bytes += (total - parts[self.rank()].len()) as u64;
        });
        let call = self.begin(Op::AllToAllHost, 0)?;
        self.exchange(&call, &parts.iter().map(|p| &p[..]).collect::<Vec<_>>())
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, deadline: Option<Duration>) -> Result<(), CollectiveError> {
        self.count(|stats| stats.other_calls += 1);
        let longer = |levels| deadline.map(|d| d + (self.patience(levels) - self.patience(0)));
        let call = Call { deadline: longer(1), ..self.begin(Op::Broadcast, 0)? };
        self.share(&mut Vec::new(), deadline)?;
        if self.leads() && self.nodes.len() > 1 {
            let part: &[u8] = if self.rank() == 0 { bytes } else { &[] };
            let mut all = self.across(|team| team.swap(&call, |_| part))?;
            if self.rank() != 0 {
                *bytes = std::mem::take(&mut all[0]);
            }
        }
        self.share(bytes, longer(2))
    }

    fn barrier(&self) -> Result<(), CollectiveError> {
        let call = self.begin(Op::Barrier, 0)?;
        self.told(self.local.barrier())?;
        if self.leads() {
            self.across(|team| team.meet(&call))?;
        }
        self.wait_for_leader()
    }

    fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), CollectiveError> {
        let call = self.begin_message(Op::SendBytes, to, Some(self.patience(0)))?;
        self.count(|stats| stats.sent_bytes += bytes.len() as u64);
        match self.neighbour(to) {
            Some(to) => self.told(self.local.send_bytes(bytes, to)),
            None => self.on_wire(|wire| wire.send(&call, to, bytes)),
        }
    }

    fn recv_bytes(&self, from: usize, deadline: Option<Duration>) -> Result<Vec<u8>, CollectiveError> {
        let call = self.begin_message(Op::RecvBytes, from, deadline)?;
        match self.neighbour(from) {
            Some(from) => self.told(self.local.recv_bytes(from, deadline)),
            None => {
                let mut bytes = Vec::new();
                self.on_wire(|wire| wire.receive(&call, from, Buffer::Any(&mut bytes))).map(|()| bytes)
            }
        }
    }

    fn try_recv_bytes(&self, from: usize) -> Result<Option<Vec<u8>>, CollectiveError> {
        let number = self.received[from].get() + 1;
        let call = Call { op: Op::TryRecvBytes, number, peer: Some(from), size: 0, deadline: None };
        self.check()?;
        match self.neighbour(from) {
            Some(local) => {
                let message = self.told(self.local.try_recv_bytes(local))?;
                self.received[from].set(self.received[from].get() + u64::from(message.is_some()));
                Ok(message)
            }
            None if self.on_wire(|wire| wire.has_begun(&call, from))? => {
                self.recv_bytes(from, Some(self.patience(0))).map(Some)
            }
            None => Ok(None),
        }
    }

    fn check(&self) -> Result<(), CollectiveError> {
        self.told(self.local.check())?;
        self.told(self.wire.check())
    }

    fn fail(&self, message: &str) {
        let error = CollectiveError::Failed { rank: self.rank(), message: message.into() };
        // What there is to hear, all have heard.
        let _ = self.told::<()>(Err(error));
    }

    fn watched(&self) -> Arc<dyn Watched> {
        let (wire, standing) = (self.wire.wire().standing().clone(), self.standing.clone());
        Arc::new(Both { local: self.local.watched(), wire, standing })
    }

    fn stats(&self) -> CollectiveStats {
        self.local.waits().and(self.wire.wire().waits()).in_stats(self.stats.get())
    }
}
