//! What the threads of ranks did, as their leader collects it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use collective::Group;
use model::ModelError;
use serde::{Deserialize, Serialize};
use tensor::{Category, Device, Part, PartCost, Timeline, What};

use crate::EngineError;
use crate::clocks::{self, ClockDrift, ClockOffset, HostClock};
use crate::data_parallel::{FromReplica, ToReplica, receive, send};
use crate::leader::Leader;
use crate::worker::{Command, Worker};

/// What the threads of a rank did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankTrace {
    /// The rank.
    pub rank: usize,
    /// Its replica, stage, and place in its tensor-parallel group.
    pub place: (usize, usize, usize),
    /// The host that it runs on; empty if all ranks are threads of one process.
    pub host: String,
    /// By how much its times may be wrong beside those of rank 0, in nanoseconds.
    pub clock_error_ns: u64,
    /// Its own thread, then the others of its device.
    pub threads: Vec<Vec<TraceEvent>>,
    /// Words that events speak of.
    pub words: Vec<String>,
    /// Events for which there was no room, the last ones.
    pub dropped: u64,
}

/// Something that took time. Events of a thread nest: they are in the order of their beginnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// Its name, among the words.
    pub name: u32,
    /// What kind of work it was.
    pub category: Category,
    /// When it began, in nanoseconds of the clock of rank 0's host.
    pub began_ns: i64,
    /// How long it took.
    pub took_ns: u64,
    /// Floating-point operations, without those of parts inside it.
    pub flops: u64,
    /// Bytes read and written, likewise; of what ranks do together, those that this rank gave to others, or got, if it
    /// only got some.
    pub bytes: u64,
    /// What it was in detail, among the words: operations of the device, or one of the group.
    pub detail: Option<u32>,
}

/// Words, each once.
#[derive(Default)]
struct Words {
    all: Vec<String>,
    places: HashMap<String, u32>,
}

impl Words {
    fn place(&mut self, word: &str) -> u32 {
        if let Some(&place) = self.places.get(word) {
            return place;
        }
        let place = self.all.len() as u32;
        self.all.push(word.to_owned());
        self.places.insert(word.to_owned(), place);
        place
    }
}

/// The recording of all replicas' ranks, as rank 0 has it.
pub(crate) struct Recording {
    comm_timeout: Duration,
    /// How far the clocks of the replicas' leaders were from this rank's when it began.
    clocks: Vec<ClockOffset>,
    /// Those that came before another could not be had.
    traces: Vec<RankTrace>,
}

impl Recording {
    pub fn new(comm_timeout: Duration) -> Self {
        Recording { comm_timeout, clocks: Vec::new(), traces: Vec::new() }
    }

    /// Has all ranks record.
    pub fn begin(&mut self, leader: &mut dyn Leader, replicas: usize) -> Result<(), EngineError> {
        self.clocks = begin(leader, replicas)?;
        Ok(())
    }

    /// What all ranks recorded.
    pub fn take(&mut self, leader: &mut dyn Leader) -> Result<Vec<RankTrace>, EngineError> {
        collect(leader, &self.clocks, &mut self.traces, None)?;
        Ok(std::mem::take(&mut self.traces))
    }

    /// What this rank recorded, and others, as far as they still answer.
    pub fn take_so_far(&mut self, leader: &mut dyn Leader) -> Vec<RankTrace> {
        if self.traces.is_empty() {
            // Who doesn't answer is no news: the run has ended.
            let _ = collect(leader, &self.clocks, &mut self.traces, Some(self.comm_timeout));
        }
        let mut traces = std::mem::take(&mut self.traces);
        traces.sort_by_key(|trace| trace.rank);
        traces
    }
}

/// What another replica's leader says its clock shows. Tokens of a request that was aborted may come first.
fn clock_of(leader: &mut dyn Leader, replica: usize) -> Result<ClockOffset, EngineError> {
    clocks::compare(|| {
        send(leader, replica, &ToReplica::Clock)?;
        loop {
            if let Some(FromReplica::Clock(ns)) = receive(leader, replica, true)? {
                return Ok(ns);
            }
        }
    })
}

/// Has all ranks of all replicas record. How far the clocks of the replicas' leaders are from this one's.
///
/// # Errors
/// A rank fails.
fn begin(leader: &mut dyn Leader, replicas: usize) -> Result<Vec<ClockOffset>, EngineError> {
    let mut offsets = vec![ClockOffset::default()];
    for replica in 1..replicas {
        offsets.push(clock_of(leader, replica)?);
        send(leader, replica, &ToReplica::Record)?;
    }
    leader.issue(&Command::Record)?;
    Ok(offsets)
}

/// Puts what all ranks of all replicas recorded into `all`, by this rank's clock. Ranks of this replica get `deadline` to
/// answer.
///
/// # Errors
/// A rank fails. What could be had is there.
fn collect(
    leader: &mut dyn Leader,
    offsets: &[ClockOffset],
    all: &mut Vec<RankTrace>,
    deadline: Option<Duration>,
) -> Result<(), EngineError> {
    leader.traces(all, deadline)?;
    let host = all[0].host.clone();
    for (replica, &began) in offsets.iter().enumerate().skip(1) {
        let ended = clock_of(leader, replica)?;
        send(leader, replica, &ToReplica::Trace)?;
        let mut traces = loop {
            if let Some(FromReplica::Traces(traces)) = receive(leader, replica, true)? {
                break traces;
            }
        };
        if traces[0].host != host {
            traces.iter_mut().for_each(|trace| trace.shift(ClockDrift { began, ended }));
        }
        all.extend(traces);
    }
    Ok(())
}

impl<D: Device> Worker<D> {
    /// All ranks of the replica compare their clocks with the leader's, and begin to record.
    pub(crate) fn begin_trace(&mut self) -> Result<(), ModelError> {
        self.spent.clocks = clocks::of_group(self.groups.replica(), None)?;
        self.dev.record();
        Ok(())
    }

    /// A rank that does not lead tells its leader what was recorded.
    pub(crate) fn send_trace(&mut self) -> Result<(), ModelError> {
        if self.groups.leads() {
            return Ok(());
        }
        clocks::of_group(self.groups.replica(), None)?;
        let bytes = postcard::to_stdvec(&self.take_trace()?).expect("a trace can be written");
        Ok(self.groups.replica().send_bytes(&bytes, 0)?)
    }

    /// The leader: puts what all ranks of its replica recorded into `traces`, by its own clock. If one fails or takes
    /// longer than `deadline` to answer, what could be had is there.
    pub(crate) fn traces(
        &mut self,
        traces: &mut Vec<RankTrace>,
        deadline: Option<Duration>,
    ) -> Result<(), ModelError> {
        let asked = self.lead(&Command::Trace);
        let clocks = asked.and_then(|_| Ok(clocks::of_group(self.groups.replica(), deadline)?));
        traces.push(self.take_trace()?);
        let clocks = clocks?;
        for (rank, ended) in clocks.into_iter().enumerate().skip(1) {
            let bytes = self.groups.replica().recv_bytes(rank, deadline)?;
            let mut trace: RankTrace =
                postcard::from_bytes(&bytes).expect("a rank writes what the leader reads");
            // Processes of a host have one clock.
            if trace.host != self.host {
                trace.shift(ClockDrift { began: self.spent.clocks[rank], ended });
            }
            traces.push(trace);
        }
        Ok(())
    }

    /// What this rank recorded, by its own clock.
    pub(crate) fn take_trace(&mut self) -> Result<RankTrace, ModelError> {
        let timeline = self.dev.take_timeline();
        let steps = std::mem::take(&mut self.spent.recorded);
        let mut costs = Vec::new();
        self.costs().of(steps.iter().map(|(meta, asked)| (meta, *asked)), |parts| costs.push(parts))?;
        let at = self.groups.at;
        let mut words = Words::default();
        let clock = HostClock::now();
        let first_layer = self.decoder.stage().layers.start;
        let threads = assemble(&timeline, &costs, &clock, first_layer, &mut words);
        Ok(RankTrace {
            rank: self.groups.rank,
            place: (at.dp, at.pp, at.tp),
            host: self.host.clone(),
            clock_error_ns: 0,
            threads,
            words: words.all,
            dropped: timeline.dropped,
        })
    }
}

impl RankTrace {
    /// Its times by another clock, which its own is so far from. Events keep how they nest: both of an event's ends move.
    pub(crate) fn shift(&mut self, drift: ClockDrift) {
        self.clock_error_ns += drift.error_ns();
        for event in self.threads.iter_mut().flatten() {
            let ended_ns = event.began_ns + event.took_ns as i64;
            event.began_ns -= drift.ahead_ns(event.began_ns);
            event.took_ns = (ended_ns - drift.ahead_ns(ended_ns) - event.began_ns).max(0) as u64;
        }
    }
}

/// Events with their names and what they cost. The parts of a step begin in the same order wherever it is run, so the
/// n-th of a step costs what the n-th of it cost on paper.
fn assemble(
    timeline: &Timeline,
    costs: &[Vec<PartCost>],
    clock: &HostClock,
    first_layer: usize,
    words: &mut Words,
) -> Vec<Vec<TraceEvent>> {
    let mut steps = costs.iter();
    let mut costs: &[PartCost] = &[];
    let mut layer = first_layer;
    let mut own = Vec::with_capacity(timeline.events.len());
    for event in &timeline.events {
        let mut traced = TraceEvent {
            name: 0,
            category: Category::Compute,
            began_ns: clock.ns(event.began),
            took_ns: (event.ended - event.began).as_nanos() as u64,
            flops: 0,
            bytes: 0,
            detail: None,
        };
        match event.what {
            What::Op { name, made } => {
                traced.name = words.place(name);
                traced.detail = made.map(|[rows, cols]| words.place(&format!("-> [{rows}, {cols}]")));
            }
            What::Wait => {
                traced.name = words.place("waiting");
                traced.category = Category::Waiting;
            }
            What::Part { part, exchanged } => {
                traced.category = part.category();
                let name = match part {
                    Part::Step => {
                        costs = steps.next().map_or(&[], Vec::as_slice);
                        layer = first_layer;
                        part.name()
                    }
                    Part::Layer => {
                        layer += 1;
                        &*format!("layer {}", layer - 1)
                    }
                    part => part.name(),
                };
                traced.name = words.place(name);
                if part != Part::Step {
                    // Where paper and device went different ways, nothing more is said of the step.
                    costs = match costs {
                        [cost, rest @ ..] if cost.part == part => {
                            traced.flops = cost.cost.flops;
                            traced.bytes = cost.cost.bytes();
                            traced.detail = (!cost.ops.is_empty()).then(|| words.place(&cost.ops));
                            rest
                        }
                        _ => &[],
                    };
                }
                if let Some((op, bytes)) = exchanged {
                    (traced.bytes, traced.detail) = (bytes, Some(words.place(op)));
                }
            }
        }
        own.push(traced);
    }
    let shares = |shares: &Vec<(Instant, Instant)>| named_shares(shares, &own, clock);
    let others: Vec<_> = timeline.threads.iter().map(shares).collect();
    std::iter::once(own).chain(others).collect()
}

/// A thread's shares, each called like the innermost event of the rank's own thread in which it began.
fn named_shares(shares: &[(Instant, Instant)], own: &[TraceEvent], clock: &HostClock) -> Vec<TraceEvent> {
    let mut open: Vec<&TraceEvent> = Vec::new();
    let mut rest = own.iter().peekable();
    let end = |event: &TraceEvent| event.began_ns + event.took_ns as i64;
    let named = |&(began, ended): &(Instant, Instant)| {
        let began_ns = clock.ns(began);
        while let Some(event) = rest.next_if(|event| event.began_ns <= began_ns) {
            open.retain(|outer| end(outer) >= event.began_ns);
            open.push(event);
        }
        open.retain(|outer| end(outer) >= began_ns);
        let took_ns = (ended - began).as_nanos() as u64;
        open.last().map(|&inner| TraceEvent {
            began_ns,
            took_ns,
            category: match inner.category {
                Category::Communication => Category::Communication,
                _ => Category::Compute,
            },
            flops: 0,
            bytes: 0,
            ..*inner
        })
    };
    shares.iter().filter_map(named).collect()
}
