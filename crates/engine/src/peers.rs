//! What rank 0 knows of the other replicas, and what is on its way to them.
//!
//! A transport holds some MB from one rank to another; among very many ranks of a host it is less, 64 KiB at least. If both ends
//! waited until the other takes something out, they would wait for ever: so rank 0 sends only what has room, unless there are
//! that many, and keeps the rest until the replica says that it has read what came before.

use std::collections::VecDeque;

use crate::EngineError;
use crate::data_parallel::{FromReplica, News, ToReplica, receive, send_bytes};
use crate::leader::Leader;
use crate::pulse::RankPulse;
use crate::report::RankReport;
use crate::request::Timing;
use crate::serving::{Event, LoadReport};

/// Bytes on the way to a replica, beyond which nothing is sent to it.
const UNREAD_MAX: usize = 1 << 20;

/// The other replicas.
pub(crate) struct Peers {
    /// From the second replica on.
    peers: Vec<Peer>,
    /// Of each replica, while they are gathered; else empty.
    pulses: Vec<Option<Vec<RankPulse>>>,
    /// Steps of the first replica.
    own_steps: u64,
    /// Tokens of steps of any replica that nobody has asked about yet.
    stepped: Vec<usize>,
}

#[derive(Default)]
struct Peer {
    load: LoadReport,
    decodes: bool,
    /// Messages that wait until there is room for them.
    outbox: VecDeque<Vec<u8>>,
    /// Sizes of those that are sent and not read yet, as far as is known.
    unread: VecDeque<usize>,
    /// Messages that it has read.
    read: u64,
}

impl Peer {
    /// The next message, if there is room for it.
    fn next(&mut self) -> Option<Vec<u8>> {
        let bytes = self.outbox.front()?.len();
        let has_room = self.unread.is_empty() || self.unread.iter().sum::<usize>() + bytes <= UNREAD_MAX;
        if has_room { self.outbox.pop_front() } else { None }
    }

    fn take(&mut self, news: News, on: &mut dyn FnMut(Event)) {
        while self.read < news.read {
            self.read += 1;
            self.unread.pop_front();
        }
        (self.load, self.decodes) = (news.load, news.decodes);
        news.events.into_iter().for_each(on);
    }

    fn has_read_all(&self) -> bool {
        self.outbox.is_empty() && self.unread.is_empty()
    }
}

impl Peers {
    pub fn new(replicas: usize) -> Self {
        let peers = (1..replicas).map(|_| Peer::default()).collect();
        Peers { peers, pulses: Vec::new(), own_steps: 0, stepped: Vec::new() }
    }

    /// Tells a replica something that it says to have read, as soon as there is room for it.
    ///
    /// # Errors
    /// A rank fails.
    pub fn tell(
        &mut self,
        leader: &mut dyn Leader,
        replica: usize,
        message: &ToReplica,
    ) -> Result<(), EngineError> {
        self.peers[replica - 1].outbox.push_back(encode(message));
        self.send_next(leader)
    }

    fn send_next(&mut self, leader: &mut dyn Leader) -> Result<(), EngineError> {
        for (peer, replica) in self.peers.iter_mut().zip(1..) {
            while let Some(bytes) = peer.next() {
                send_bytes(leader, replica, &bytes)?;
                peer.unread.push_back(bytes.len());
            }
        }
        Ok(())
    }

    /// Has every replica do something for which it must have nothing to do. What is behind it is sent first.
    ///
    /// # Errors
    /// A rank fails.
    pub fn command(&mut self, leader: &mut dyn Leader, message: &ToReplica) -> Result<(), EngineError> {
        let all = encode(message);
        for (peer, replica) in self.peers.iter_mut().zip(1..) {
            while let Some(bytes) = peer.outbox.pop_front() {
                send_bytes(leader, replica, &bytes)?;
                peer.unread.push_back(bytes.len());
            }
            send_bytes(leader, replica, &all)?;
        }
        Ok(())
    }

    /// Takes what the replicas have told since; whether there was anything.
    ///
    /// # Errors
    /// A rank fails.
    pub fn hear(&mut self, leader: &mut dyn Leader, on: &mut dyn FnMut(Event)) -> Result<bool, EngineError> {
        let mut heard = false;
        for replica in 1..=self.peers.len() {
            while let Some(message) = receive(leader, replica, false)? {
                heard = true;
                self.take(replica, message, on);
            }
        }
        self.send_next(leader)?;
        Ok(heard)
    }

    fn take(&mut self, replica: usize, message: FromReplica, on: &mut dyn FnMut(Event)) {
        match message {
            FromReplica::News(news) => {
                let peer = &mut self.peers[replica - 1];
                if news.load.steps != peer.load.steps {
                    self.stepped.push(news.load.last_step_tokens);
                }
                peer.take(news, on);
            }
            FromReplica::Pulses(pulses) => {
                if let Some(place) = self.pulses.get_mut(replica) {
                    *place = Some(pulses);
                }
            }
            FromReplica::Reports(..) | FromReplica::Clock(_) | FromReplica::Traces(_) => {
                unreachable!("whoever asks for these waits for them")
            }
        }
    }

    /// What each rank of a replica reports. Events that come before it go to `on`.
    ///
    /// # Errors
    /// A rank fails.
    pub fn report(
        &mut self,
        leader: &mut dyn Leader,
        replica: usize,
        on: &mut dyn FnMut(Event),
    ) -> Result<(Vec<RankReport>, Timing), EngineError> {
        send_bytes(leader, replica, &encode(&ToReplica::Report))?;
        loop {
            match receive(leader, replica, true)? {
                Some(FromReplica::Reports(reports, timing)) => return Ok((reports, timing)),
                Some(other) => self.take(replica, other, on),
                None => {}
            }
        }
    }

    /// Asks all replicas what their ranks have done, unless they are asked already. `own` is what the first one's have.
    ///
    /// # Errors
    /// A rank fails.
    pub fn ask_for_pulses(
        &mut self,
        leader: &mut dyn Leader,
        own: Vec<RankPulse>,
    ) -> Result<(), EngineError> {
        if self.pulses.is_empty() {
            self.pulses = vec![None; 1 + self.peers.len()];
            (1..self.pulses.len()).try_for_each(|replica| self.tell(leader, replica, &ToReplica::Pulse))?;
        }
        self.pulses[0] = Some(own);
        Ok(())
    }

    /// What was asked for, once all have answered.
    pub fn take_pulses(&mut self) -> Option<Vec<RankPulse>> {
        let all = !self.pulses.is_empty() && self.pulses.iter().all(Option::is_some);
        all.then(|| std::mem::take(&mut self.pulses).into_iter().flatten().flatten().collect())
    }

    /// Whether every replica has read what it was told, and answered.
    pub fn have_read_all(&self) -> bool {
        self.pulses.is_empty() && self.peers.iter().all(Peer::has_read_all)
    }

    /// Whether a replica has streams that run.
    pub fn decode(&self) -> bool {
        self.peers.iter().any(|peer| peer.decodes)
    }

    /// The first replica may have done a step.
    pub fn note_own(&mut self, load: LoadReport) {
        if load.steps != self.own_steps {
            self.own_steps = load.steps;
            self.stepped.push(load.last_step_tokens);
        }
    }

    /// The tokens of each step since the last call.
    pub fn take_steps(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.stepped)
    }

    /// How busy they are, beside the first replica.
    pub fn beside(&self, own: LoadReport) -> LoadReport {
        self.peers.iter().fold(own, |sum, peer| sum.beside(peer.load))
    }
}

fn encode(message: &ToReplica) -> Vec<u8> {
    postcard::to_stdvec(message).expect("a message can be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_on_the_way_than_there_is_surely_room_for() {
        let mut peer = Peer::default();
        peer.outbox.extend([3 * UNREAD_MAX, 10, UNREAD_MAX, 1].map(|bytes| vec![0; bytes]));
        let send = |peer: &mut Peer| {
            let mut sent = Vec::new();
            while let Some(bytes) = peer.next() {
                peer.unread.push_back(bytes.len());
                sent.push(bytes.len());
            }
            sent
        };
        let news = |read| News { events: Vec::new(), load: LoadReport::default(), decodes: false, read };
        assert_eq!(send(&mut peer), [3 * UNREAD_MAX], "alone it may be larger");
        peer.take(news(0), &mut |_| {});
        assert!(send(&mut peer).is_empty());
        peer.take(news(1), &mut |_| {});
        assert_eq!(send(&mut peer), [10]);
        peer.take(news(2), &mut |_| {});
        assert_eq!(send(&mut peer), [UNREAD_MAX]);
        assert!(!peer.has_read_all());
        peer.take(news(3), &mut |_| {});
        assert_eq!(send(&mut peer), [1]);
        peer.take(news(4), &mut |_| {});
        assert!(peer.has_read_all());
    }
}
