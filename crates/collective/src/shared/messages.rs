//! Messages: a [`super::ring`] for every ordered pair of ranks.

use std::time::{Duration, Instant};

use tensor::HostDevice;

use super::channel::{Call, Channel, Op};
use super::shards::{as_bytes, as_bytes_mut};
use super::sync::Stop;
use crate::CollectiveError;

/// How many messages this rank has exchanged with each other rank.
pub(super) struct Messages {
    sent: Vec<u64>,
    received: Vec<u64>,
    /// The group's deadline, for a message that has begun and for a receiver that does not take one.
    deadline: Duration,
}

impl Messages {
    pub fn new(ranks: usize, deadline: Duration) -> Self {
        Messages { sent: vec![0; ranks], received: vec![0; ranks], deadline }
    }

    fn call(&self, op: Op) -> Call {
        Call { op, size: 0, deadline: Some(self.deadline) }
    }

    pub fn send(
        &mut self,
        channel: &mut Channel,
        op: Op,
        bytes: &[u8],
        to: usize,
    ) -> Result<(), CollectiveError> {
        let pipe = |channel| Channel::pipe_to(channel, to);
        self.sent[to] += 1;
        channel.begin_message(op, self.sent[to])?;
        let call = self.call(op);
        let sent = pipe(channel).send(bytes, &channel.patience(call.deadline));
        sent.map_err(|stop| channel.stopped(&call, self.sent[to], stop))
    }

    pub fn recv_bytes(
        &mut self,
        channel: &mut Channel,
        from: usize,
        deadline: Option<Duration>,
    ) -> Result<Vec<u8>, CollectiveError> {
        let len = self.begin(channel, Op::RecvBytes, from, deadline)?;
        let mut bytes = Vec::with_capacity(len);
        self.take(channel, Op::RecvBytes, from, len, &mut |part| bytes.extend_from_slice(part))?;
        Ok(bytes)
    }

    pub fn try_recv_bytes(
        &mut self,
        channel: &mut Channel,
        from: usize,
    ) -> Result<Option<Vec<u8>>, CollectiveError> {
        match channel.pipe_from(from).has_begun() {
            Ok(true) => self.recv_bytes(channel, from, Some(self.deadline)).map(Some),
            Ok(false) => Ok(None),
            Err(stop) => Err(self.stopped(channel, Op::RecvBytes, from, Some(self.deadline), stop)),
        }
    }

    pub fn recv<D: HostDevice>(
        &mut self,
        channel: &mut Channel,
        dev: &D,
        from: usize,
        [rows, cols]: [usize; 2],
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        let len = self.begin(channel, Op::Recv, from, deadline)?;
        let expected = rows * cols * size_of::<f32>();
        if len != expected {
            let number = self.received[from];
            let from = channel.named(from);
            let message = format!(
                "recv number {number} from rank {from}: the message has {len} bytes, [{rows}, {cols}] is {expected}"
            );
            return Err(channel.refuse(&message));
        }
        let mut out = dev.alloc(rows, cols);
        let (to, mut at) = (as_bytes_mut(dev.as_mut_slice(&mut out)), 0);
        self.take(channel, Op::Recv, from, len, &mut |part| {
            to[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        })?;
        Ok(out)
    }

    /// Waits for the next message to begin, and returns its length.
    fn begin(
        &mut self,
        channel: &mut Channel,
        op: Op,
        from: usize,
        deadline: Option<Duration>,
    ) -> Result<usize, CollectiveError> {
        let pipe = |channel| Channel::pipe_from(channel, from);
        self.received[from] += 1;
        channel.begin_message(op, self.received[from])?;
        let is_late = matches!(pipe(channel).has_begun(), Ok(false));
        let since = is_late.then(Instant::now);
        let begun = pipe(channel).begin(&channel.patience(deadline));
        if let Some(since) = since {
            let call = channel.id(op, self.received[from], Some(from));
            channel.waits.add(call, since, Instant::now());
        }
        begun.map_err(|stop| self.stopped(channel, op, from, deadline, stop))
    }

    /// Takes the message that has begun.
    fn take(
        &self,
        channel: &Channel,
        op: Op,
        from: usize,
        len: usize,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<(), CollectiveError> {
        let taken = channel.pipe_from(from).take(len, &channel.patience(Some(self.deadline)), sink);
        taken.map_err(|stop| self.stopped(channel, op, from, Some(self.deadline), stop))
    }

    fn stopped(
        &self,
        channel: &Channel,
        op: Op,
        from: usize,
        deadline: Option<Duration>,
        stop: Stop,
    ) -> CollectiveError {
        channel.stopped(&Call { op, size: 0, deadline }, self.received[from], stop)
    }
}

/// A matrix, as a message.
pub(super) fn bytes_of<'a, D: HostDevice>(dev: &D, x: &'a D::Tensor) -> &'a [u8] {
    as_bytes(dev.as_slice(x))
}
