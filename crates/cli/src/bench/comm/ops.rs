//! The operations that are measured: what each is given, does, and must give.

use std::time::Duration;

use clap::ValueEnum;
use collective::{Collective, CollectiveError, ReducePlan};
use tensor::{Device, DeviceError, Program, ReductionTree};

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Op {
    /// Everybody gets the sum of all
    AllReduce,
    /// Everybody gets everybody's part
    AllGather,
    /// Everybody gets a part of the sum
    ReduceScatter,
    /// Everybody sends a part to everybody
    AllToAll,
    /// Everybody gets rank 0's bytes
    Broadcast,
    /// Everybody sends to the next and receives from the one before, one half of the ranks after the other
    SendRecv,
}

impl Op {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Op; 6] =
        [Op::AllReduce, Op::AllGather, Op::ReduceScatter, Op::AllToAll, Op::Broadcast, Op::SendRecv];

    /// Whether it is of memory of GPUs where ranks have them.
    pub fn is_of_tensors(self) -> bool {
        self != Op::Broadcast
    }

    /// Its name, as in flags.
    pub fn name(self) -> &'static str {
        match self {
            Op::AllReduce => "all_reduce",
            Op::AllGather => "all_gather",
            Op::ReduceScatter => "reduce_scatter",
            Op::AllToAll => "all_to_all",
            Op::Broadcast => "broadcast",
            Op::SendRecv => "send_recv",
        }
    }

    /// What elements are.
    pub fn element(self) -> &'static str {
        if self == Op::Broadcast { "uint8" } else { "float" }
    }

    /// What is done with them.
    pub fn reduction(self) -> &'static str {
        if matches!(self, Op::AllReduce | Op::ReduceScatter) { "sum" } else { "none" }
    }

    /// Bytes that must cross the slowest link, as a share of the size: what makes figures of operations and numbers of
    /// ranks comparable. By nccl-tests' definitions.
    pub fn bus_share(self, ranks: usize) -> f64 {
        let others = (ranks - 1) as f64 / ranks as f64;
        match self {
            Op::AllReduce => 2.0 * others,
            Op::AllGather | Op::ReduceScatter | Op::AllToAll => others,
            Op::Broadcast | Op::SendRecv => 1.0,
        }
    }

    /// How many calls' worth of time a call takes: a message is passed on in two turns.
    pub fn turns(self) -> f64 {
        if self == Op::SendRecv { 2.0 } else { 1.0 }
    }

    /// Whether a call's result can be the next one's input.
    fn feeds_itself(self) -> bool {
        matches!(self, Op::AllReduce | Op::Broadcast | Op::SendRecv)
    }

    /// Whether its size is shared out among the ranks.
    fn is_shared_out(self) -> bool {
        matches!(self, Op::AllGather | Op::ReduceScatter | Op::AllToAll)
    }
}

/// What an operation takes or gives.
pub enum Data<T> {
    Matrix(T),
    Bytes(Vec<u8>),
}

/// An operation at one size on one rank.
pub struct Case<'a, D: Device> {
    group: &'a dyn Collective<D>,
    dev: &'a D,
    op: Op,
    /// Elements in all, by nccl-tests' notion of an operation's size.
    count: usize,
    /// Elements of a rank's part; else all of them.
    part: usize,
    plan: ReducePlan,
    sum: Program,
    deadline: Duration,
}

impl<'a, D: Device> Case<'a, D> {
    /// An operation over `bytes`, or the nearest number below that ranks can share.
    pub fn new(group: &'a dyn Collective<D>, dev: &'a D, op: Op, bytes: usize, deadline: Duration) -> Self {
        let ranks = group.size();
        let parts = if op.is_shared_out() { ranks } else { 1 };
        let element = if op == Op::Broadcast { 1 } else { size_of::<f32>() };
        let part = (bytes / element / parts).max(1);
        let tree = ReductionTree::over_ids(ranks);
        let leaves: Vec<_> = (0..ranks).map(|r| r..r + 1).collect();
        let plan = ReducePlan { nodes_of_rank: vec![1; ranks], finish: tree.finish(&leaves) };
        Case { group, dev, op, count: part * parts, part, plan, sum: tree.program(0..ranks), deadline }
    }

    /// Elements in all.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        if self.op == Op::Broadcast { self.count } else { self.count * size_of::<f32>() }
    }

    /// Zeros of the input's size.
    pub fn zeros(&self) -> Data<D::Tensor> {
        self.input(|_| 0.0, |_| 0)
    }

    /// The next call's input, if `result` was this one's.
    pub fn next(&self, result: Data<D::Tensor>) -> Data<D::Tensor> {
        if self.op.feeds_itself() { result } else { self.zeros() }
    }

    fn input(&self, value: impl Fn(usize) -> f32, byte: impl Fn(usize) -> u8) -> Data<D::Tensor> {
        if self.op == Op::Broadcast {
            return Data::Bytes((0..self.count).map(byte).collect());
        }
        let rows = self.rows();
        let values: Vec<f32> = (0..rows * self.part).map(value).collect();
        Data::Matrix(self.dev.upload(&values, rows, self.part))
    }

    /// Does it once.
    pub fn call(&self, input: Data<D::Tensor>) -> Result<Data<D::Tensor>, CollectiveError> {
        let (group, dev) = (self.group, self.dev);
        let ones = || vec![1; group.size()];
        let x = match input {
            Data::Matrix(x) => x,
            Data::Bytes(mut bytes) => {
                group.broadcast(&mut bytes, Some(self.deadline))?;
                return Ok(Data::Bytes(bytes));
            }
        };
        Ok(Data::Matrix(match self.op {
            Op::AllReduce => group.all_reduce(dev, x, 1, &self.plan)?,
            Op::AllGather => group.all_gather(dev, &x, &ones())?,
            Op::ReduceScatter => group.reduce_scatter(dev, x, &ones(), &self.plan)?,
            Op::AllToAll => group.all_to_all(dev, &x, &ones(), &ones())?,
            Op::Broadcast | Op::SendRecv => self.pass_on(x)?,
        }))
    }

    /// This rank's device could not go on; all ranks hear of it.
    fn failed(&self, error: &DeviceError) -> CollectiveError {
        let message = error.to_string();
        self.group.fail(&message);
        CollectiveError::Failed { rank: self.group.rank(), message }
    }

    /// Does it so many times, without looking at what comes of it, and returns when all is done.
    pub fn calls(&self, times: usize) -> Result<(), CollectiveError> {
        let rows = self.rows();
        let last = self.dev.alloc(1, 1);
        for _ in 0..times {
            self.call(Data::Matrix(self.dev.alloc(rows, self.part)))?;
        }
        // What is read is read behind all that came before.
        self.dev.download(&last).map(drop).map_err(|error| self.failed(&error))
    }

    /// Rows of the input.
    fn rows(&self) -> usize {
        if matches!(self.op, Op::ReduceScatter | Op::AllToAll) { self.group.size() } else { 1 }
    }

    /// Sends to the next rank and receives from the one before. Half of the ranks send first, so that messages which no
    /// buffer holds find their receivers.
    fn pass_on(&self, x: D::Tensor) -> Result<D::Tensor, CollectiveError> {
        let (rank, ranks) = (self.group.rank(), self.group.size());
        let send = || self.group.send(self.dev, &x, (rank + 1) % ranks);
        let receive =
            || self.group.recv(self.dev, (rank + ranks - 1) % ranks, 1, self.part, Some(self.deadline));
        match rank.is_multiple_of(2) {
            true => send().and_then(|()| receive()),
            false => receive().and_then(|came| send().map(|()| came)),
        }
    }

    /// Does it once with numbers whose sum depends on the order, and counts elements with other bits than they must
    /// have, on this rank.
    pub fn wrong(&self, seed: u32) -> Result<u64, CollectiveError> {
        let (rank, ranks, part) = (self.group.rank(), self.group.size(), self.part);
        let of = |rank: usize, i: usize| value(seed, rank, i);
        let sum = |i: usize| self.sum.run(|rank| of(rank, i))[0];
        let input = self.input(|i| of(rank, i), |i| byte(seed, rank, i));
        let found = match self.call(input)? {
            Data::Matrix(x) => self.dev.download(&x).map_err(|error| self.failed(&error))?,
            Data::Bytes(bytes) => {
                let wrong = bytes.iter().enumerate().filter(|(i, b)| **b != byte(seed, 0, *i)).count();
                return Ok((wrong + bytes.len().abs_diff(self.count)) as u64);
            }
        };
        let expected = |i: usize| match self.op {
            Op::AllReduce => sum(i),
            Op::ReduceScatter => sum(rank * part + i),
            Op::AllGather => of(i / part, i % part),
            Op::AllToAll => of(i / part, rank * part + i % part),
            Op::Broadcast | Op::SendRecv => of((rank + ranks - 1) % ranks, i),
        };
        let wrong = found.iter().enumerate().filter(|(i, x)| x.to_bits() != expected(*i).to_bits()).count();
        let len = if matches!(self.op, Op::AllGather | Op::AllToAll) { self.count } else { part };
        Ok((wrong + found.len().abs_diff(len)) as u64)
    }
}

fn hash(seed: u32, rank: usize, i: usize) -> u32 {
    let h =
        (i as u32 ^ seed.rotate_left(24)).wrapping_mul(0x9E37_79B9) ^ (rank as u32).wrapping_mul(0x85EB_CA6B);
    (h ^ h >> 15).wrapping_mul(0xC2B2_AE35)
}

/// Numbers of very different sizes.
fn value(seed: u32, rank: usize, i: usize) -> f32 {
    const SCALES: [f32; 5] = [1e-3, 1e-1, 1.0, 30.0, 1e4];
    let h = hash(seed, rank, i);
    (h as f32 / u32::MAX as f32 - 0.5) * SCALES[h as usize % 5]
}

fn byte(seed: u32, rank: usize, i: usize) -> u8 {
    (hash(seed, rank, i) >> 24) as u8
}
