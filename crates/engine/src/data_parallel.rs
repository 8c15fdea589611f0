//! Replicas side by side: rank 0 routes requests to the leaders of the others and gets their tokens.

use std::sync::Arc;
use std::time::Instant;

use collective::Group;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::clocks::HostClock;
use crate::leader::Leader;
use crate::pulse::RankPulse;
use crate::replica::{Prepare, Replica};
use crate::report::RankReport;
use crate::request::{GenerateRequest, Timing};
use crate::serving::{Event, LoadReport};
use crate::trace::RankTrace;
use crate::worker::Command;
use crate::{EngineError, Grammars};

/// From rank 0 to another replica's leader.
#[derive(Serialize, Deserialize)]
pub(crate) enum ToReplica {
    /// Gets ready for a call; the KV cache has this many blocks.
    Prepare {
        prepare: Prepare,
        blocks: Option<usize>,
    },
    Submit {
        id: u64,
        request: GenerateRequest,
    },
    Abort {
        id: u64,
    },
    Report,
    /// Asks for what each rank has done since it was loaded.
    Pulse,
    /// Asks for the time.
    Clock,
    /// Begins to record.
    Record,
    /// Asks for what was recorded.
    Trace,
    Stop,
}

/// Back.
#[derive(Serialize, Deserialize)]
pub(crate) enum FromReplica {
    News(News),
    Reports(Vec<RankReport>, Timing),
    Pulses(Vec<RankPulse>),
    /// In nanoseconds.
    Clock(i64),
    Traces(Vec<RankTrace>),
}

/// What has become of requests, and how busy a replica is.
#[derive(Serialize, Deserialize)]
pub(crate) struct News {
    pub events: Vec<Event>,
    pub load: LoadReport,
    /// Whether it has streams that run.
    pub decodes: bool,
    /// How many requests, aborts and questions for pulses it has read in all.
    pub read: u64,
}

/// Sends a message to another replica's leader.
pub(crate) fn send(leader: &mut dyn Leader, to: usize, message: &impl Serialize) -> Result<(), EngineError> {
    send_bytes(leader, to, &postcard::to_stdvec(message).expect("a message can be written"))
}

/// Sends one that is written already.
pub(crate) fn send_bytes(leader: &mut dyn Leader, to: usize, bytes: &[u8]) -> Result<(), EngineError> {
    leader.between_replicas(&mut |group| group.send_bytes(bytes, to))
}

/// The next message of another replica's leader; `None` if none is there and it isn't waited for.
pub(crate) fn receive<T: DeserializeOwned>(
    leader: &mut dyn Leader,
    from: usize,
    wait: bool,
) -> Result<Option<T>, EngineError> {
    let mut bytes = None;
    leader.between_replicas(&mut |group: &dyn Group| {
        bytes = match wait {
            true => Some(group.recv_bytes(from, None)?),
            false => group.try_recv_bytes(from)?,
        };
        Ok(())
    })?;
    Ok(bytes.map(|bytes| postcard::from_bytes(&bytes).expect("leaders write what leaders read")))
}

/// The life of a leader other than rank 0.
///
/// # Errors
/// A rank fails.
pub(crate) fn serve(leader: &mut dyn Leader, grammars: Option<Arc<Grammars>>) -> Result<(), EngineError> {
    let mut replica = Replica::new(grammars);
    let mut teller = Teller::default();
    loop {
        let Some(message) = receive(leader, 0, replica.is_idle())? else {
            replica.pump(leader, &mut |event| teller.events.push(event))?;
            teller.tell(leader, &replica)?;
            continue;
        };
        if matches!(message, ToReplica::Prepare { .. } | ToReplica::Report | ToReplica::Trace) {
            // Steps may be on their way whose requests have been aborted.
            replica.settle(leader, &mut |event| teller.events.push(event))?;
        }
        match message {
            ToReplica::Prepare { prepare, blocks } => {
                if let Some(blocks) = blocks {
                    leader.issue(&Command::AllocateKv { blocks })?;
                }
                leader.issue(&Command::Mark)?;
                replica.prepare(prepare);
            }
            ToReplica::Submit { id, request } => {
                if let Err(error) = replica.submit(id, request) {
                    teller.events.push(Event::Refused { id, message: error.to_string() });
                }
                teller.has_read(leader, &replica)?;
            }
            ToReplica::Abort { id } => {
                replica.abort(id);
                teller.has_read(leader, &replica)?;
            }
            ToReplica::Report => {
                let reports = leader.reports()?;
                send(leader, 0, &FromReplica::Reports(reports, replica.timing))?;
            }
            ToReplica::Pulse => {
                let pulses = leader.pulses()?;
                send(leader, 0, &FromReplica::Pulses(pulses))?;
                teller.has_read(leader, &replica)?;
            }
            ToReplica::Clock => {
                let clock = HostClock::now();
                send(leader, 0, &FromReplica::Clock(clock.ns(Instant::now())))?;
            }
            ToReplica::Record => leader.issue(&Command::Record)?,
            ToReplica::Trace => {
                let mut traces = Vec::new();
                leader.traces(&mut traces, None)?;
                send(leader, 0, &FromReplica::Traces(traces))?;
            }
            ToReplica::Stop => return Ok(()),
        }
    }
}

/// Tells rank 0 the news.
#[derive(Default)]
struct Teller {
    events: Vec<Event>,
    read: u64,
    /// What it was told last, beside events.
    told: (LoadReport, bool, u64),
}

impl Teller {
    /// Counts a message, and tells of it.
    fn has_read(&mut self, leader: &mut dyn Leader, replica: &Replica) -> Result<(), EngineError> {
        self.read += 1;
        self.tell(leader, replica)
    }

    /// Tells what is new, if anything is.
    fn tell(&mut self, leader: &mut dyn Leader, replica: &Replica) -> Result<(), EngineError> {
        let now = (replica.load(), replica.num_decoding() > 0, self.read);
        if self.events.is_empty() && self.told == now {
            return Ok(());
        }
        self.told = now;
        let (load, decodes, read) = now;
        let events = std::mem::take(&mut self.events);
        send(leader, 0, &FromReplica::News(News { events, load, decodes, read }))
    }
}
