//! One connection: frames in, frames out, as much as it takes without waiting.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::ops::Range;

use super::exchange::Exchange;
use super::frame::{HEADER, Header, Kind, MAX_FRAME};
use super::groups::{Groups, Space};

/// Bytes read at once where it is not known what they are.
const BUFFER: usize = 64 << 10;
/// Bytes read before other connections get their turn.
const TURN: usize = 4 << 20;

/// Bytes that belong to the connection.
struct Queued {
    bytes: Vec<u8>,
    at: usize,
    /// Whether it must go on where it is: a frame has been cut.
    begun: bool,
}

/// A frame whose payload belongs to a call, and that has been written in part.
struct Lent {
    group: u16,
    kind: Kind,
    send: usize,
    header: [u8; HEADER],
    payload: Range<usize>,
    /// Bytes written, the header's included.
    at: usize,
}

/// A connection's state beside its socket.
pub struct Link {
    /// World rank of the other side.
    pub peer: usize,
    buffer: Vec<u8>,
    /// What of the buffer has been read and not yet understood.
    unread: Range<usize>,
    /// The frame that arrives, and how much of it is to come.
    frame: Option<(Header, usize)>,
    /// The payload of a control frame.
    control: Vec<u8>,
    queue: VecDeque<Queued>,
    lent: Option<Lent>,
    /// Bytes in the queue.
    pub queued: usize,
    /// Whether the last turn left bytes to somebody else.
    pub blocked: bool,
    /// Nothing can be written any more; what has arrived can still be read.
    broken: bool,
    /// Why the connection is over.
    pub closed: Option<String>,
}

impl Link {
    pub fn new(peer: usize) -> Self {
        Link {
            peer,
            buffer: vec![0; BUFFER],
            unread: 0..0,
            frame: None,
            control: Vec::new(),
            queue: VecDeque::new(),
            lent: None,
            queued: 0,
            blocked: false,
            broken: false,
            closed: None,
        }
    }

    /// Puts frames behind all others of the connection.
    pub fn push(&mut self, bytes: Vec<u8>) {
        self.queued += bytes.len();
        self.queue.push_back(Queued { bytes, at: 0, begun: false });
    }

    /// Puts frames before all others that have not begun.
    pub fn push_first(&mut self, bytes: Vec<u8>) {
        self.queued += bytes.len();
        let begun = self.queue.front().is_some_and(|q| q.begun);
        self.queue.insert(begun as usize, Queued { bytes, at: 0, begun: false });
    }

    /// Puts what is left of a message behind all others, in frames.
    pub fn take_over(&mut self, exchange: &mut Exchange<'_>, send: usize) {
        self.abandon(exchange);
        while !exchange.sends[send].done {
            let (header, payload) = next_frame(exchange, send);
            let sending = &mut exchange.sends[send];
            let bytes = [&header[..], &sending.bytes[payload.clone()]].concat();
            sending.sent = payload.end;
            sending.done = sending.sent == sending.bytes.len();
            self.push(bytes);
        }
    }

    /// Makes the connection independent of a call's memory: a frame that has begun must be completed.
    pub fn abandon(&mut self, exchange: &mut Exchange<'_>) {
        let Some(lent) = self.lent.take_if(|l| exchange.is(l.group, l.kind)) else { return };
        let sending = &mut exchange.sends[lent.send];
        let bytes = [&lent.header[..], &sending.bytes[lent.payload.clone()]].concat();
        sending.sent = lent.payload.end;
        sending.done = sending.sent == sending.bytes.len();
        self.queued += bytes.len() - lent.at;
        self.queue.push_front(Queued { bytes, at: lent.at, begun: true });
    }

    /// Whether there is something to write that can be written now.
    pub fn has_output(&self, exchange: Option<&Exchange<'_>>) -> bool {
        let mine = |lent: &Lent| exchange.is_some_and(|e| e.is(lent.group, lent.kind));
        match &self.lent {
            _ if self.broken || self.closed.is_some() => false,
            Some(lent) => mine(lent),
            None => !self.queue.is_empty() || exchange.is_some_and(|e| e.next_send(self.peer).is_some()),
        }
    }

    /// Writes what the socket takes, and says whether it took something.
    pub fn write(&mut self, mut socket: &TcpStream, mut exchange: Option<&mut Exchange<'_>>) -> bool {
        let mut moved = false;
        while self.has_output(exchange.as_deref()) {
            let written = match &mut self.lent {
                Some(lent) => {
                    let sending = &exchange.as_ref().expect("has_output says so").sends[lent.send];
                    let payload = &sending.bytes[lent.payload.clone()];
                    let header = &lent.header[lent.at.min(HEADER)..];
                    let payload = &payload[lent.at.saturating_sub(HEADER)..];
                    socket.write_vectored(&[IoSlice::new(header), IoSlice::new(payload)])
                }
                None if !self.queue.is_empty() => socket.write(&self.queue[0].bytes[self.queue[0].at..]),
                None => {
                    let exchange = exchange.as_mut().expect("has_output says so");
                    let send = exchange.next_send(self.peer).expect("has_output says so");
                    let (header, payload) = next_frame(exchange, send);
                    let (group, kind) = (exchange.group, exchange.kind);
                    self.lent = Some(Lent { group, kind, send, header, payload, at: 0 });
                    continue;
                }
            };
            match written {
                Ok(0) => self.broken = true,
                Ok(n) => {
                    moved = true;
                    self.written(n, exchange.as_deref_mut());
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // What the peer said before is still to be read; reading ends the connection.
                Err(_) => self.broken = true,
            }
        }
        moved
    }

    fn written(&mut self, n: usize, exchange: Option<&mut Exchange<'_>>) {
        if let Some(lent) = &mut self.lent {
            let exchange = exchange.expect("only its exchange writes a lent frame");
            exchange.moved = true;
            lent.at += n;
            if lent.at == HEADER + lent.payload.len() {
                let sending = &mut exchange.sends[lent.send];
                sending.sent = lent.payload.end;
                sending.done = sending.sent == sending.bytes.len();
                self.lent = None;
            }
            return;
        }
        self.queued -= n;
        let front = &mut self.queue[0];
        front.at += n;
        front.begun = true;
        if front.at == front.bytes.len() {
            self.queue.pop_front();
        }
    }

    /// Reads what has come, and says whether something has.
    pub fn read(
        &mut self,
        socket: &TcpStream,
        groups: &mut Groups,
        mut exchange: Option<&mut Exchange<'_>>,
    ) -> bool {
        let mut total = 0;
        self.blocked = false;
        while self.closed.is_none() && total < TURN {
            match self.step(socket, groups, exchange.as_deref_mut()) {
                Ok(Some((read, drained))) => {
                    total += read;
                    if drained {
                        break;
                    }
                }
                Ok(None) => {
                    self.blocked = true;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => self.close(groups, &e.to_string()),
            }
        }
        total > 0
    }

    fn close(&mut self, groups: &mut Groups, why: &str) {
        groups.lose(self.peer, why);
        self.closed = Some(why.to_string());
        self.queue.clear();
        (self.queued, self.lent) = (0, None);
    }

    /// Reads once, and hands on what that completes. Says how much it read and whether that was all there is. `None`: the
    /// bytes are not for this thread.
    fn step(
        &mut self,
        mut socket: &TcpStream,
        groups: &mut Groups,
        mut exchange: Option<&mut Exchange<'_>>,
    ) -> io::Result<Option<(usize, bool)>> {
        if !self.understand(groups, exchange.as_deref_mut())? {
            return Ok(None);
        }
        // All that was read is understood but for a part of a header.
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        let room = &mut self.buffer[self.unread.end..];
        let (n, direct, asked) = match &self.frame {
            Some((header, left)) if matches!(header.kind, Kind::Collective | Kind::Message) => {
                match groups.space(self.peer, header, *left, exchange.as_deref_mut()) {
                    Space::Blocked => return Ok(None),
                    Space::Discard => (socket.read(room)?, 0, room.len()),
                    Space::Into(space) => {
                        let (len, asked) = (space.len(), space.len() + room.len());
                        let n = socket.read_vectored(&mut [IoSliceMut::new(space), IoSliceMut::new(room)])?;
                        (n, n.min(len), asked)
                    }
                }
            }
            _ => (socket.read(room)?, 0, room.len()),
        };
        if n == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed its connection"));
        }
        if direct > 0 {
            self.delivered(direct, groups, exchange.as_deref_mut());
        }
        self.unread.end += n - direct;
        self.understand(groups, exchange)?;
        Ok(Some((n, n < asked)))
    }

    /// Hands on the frames in the buffer. `false`: they are not for this thread.
    fn understand(
        &mut self,
        groups: &mut Groups,
        mut exchange: Option<&mut Exchange<'_>>,
    ) -> io::Result<bool> {
        let wrong = |why: String| io::Error::new(ErrorKind::InvalidData, format!("it sent {why}"));
        loop {
            let unread = &self.buffer[self.unread.clone()];
            let Some((header, left)) = self.frame else {
                let Some(bytes) = unread.first_chunk::<HEADER>() else { return Ok(true) };
                let header = Header::decode(bytes).map_err(wrong)?;
                if matches!(header.kind, Kind::Collective | Kind::Message) {
                    groups.begin(self.peer, &header, exchange.as_deref_mut()).map_err(wrong)?;
                }
                self.unread.start += HEADER;
                self.frame = Some((header, header.len));
                if header.len == 0 {
                    self.complete(&header, groups, exchange.as_deref_mut()).map_err(wrong)?;
                }
                continue;
            };
            if unread.is_empty() {
                return Ok(true);
            }
            let len = left.min(unread.len());
            match header.kind {
                Kind::Collective | Kind::Message => {
                    let len = match groups.space(self.peer, &header, len, exchange.as_deref_mut()) {
                        Space::Blocked => return Ok(false),
                        Space::Discard => len,
                        Space::Into(space) => {
                            space.copy_from_slice(&unread[..space.len()]);
                            space.len()
                        }
                    };
                    self.unread.start += len;
                    self.delivered(len, groups, exchange.as_deref_mut());
                }
                Kind::Fail | Kind::End => {
                    self.control.extend(&unread[..len]);
                    self.unread.start += len;
                    self.frame = Some((header, left - len));
                    if left == len {
                        self.complete(&header, groups, exchange.as_deref_mut()).map_err(wrong)?;
                    }
                }
            }
        }
    }

    /// Bytes of a message are where they belong.
    fn delivered(&mut self, n: usize, groups: &mut Groups, exchange: Option<&mut Exchange<'_>>) {
        let (header, left) = self.frame.expect("its frame has begun");
        groups.advance(self.peer, &header, n, exchange);
        self.frame = (left > n).then_some((header, left - n));
    }

    /// A frame without bytes, or a control frame, is complete.
    fn complete(
        &mut self,
        header: &Header,
        groups: &mut Groups,
        exchange: Option<&mut Exchange<'_>>,
    ) -> Result<(), String> {
        self.frame = None;
        match header.kind {
            Kind::Collective | Kind::Message => groups.advance(self.peer, header, 0, exchange),
            Kind::Fail | Kind::End => {
                groups.control(self.peer, header, &std::mem::take(&mut self.control))?;
            }
        }
        Ok(())
    }
}

/// The next frame of a message: its header, and which bytes follow.
fn next_frame(exchange: &Exchange<'_>, send: usize) -> ([u8; HEADER], Range<usize>) {
    let sending = &exchange.sends[send];
    let (first, total) = (sending.sent == 0, sending.bytes.len());
    let payload = sending.sent..(sending.sent + MAX_FRAME).min(total);
    let header = Header {
        group: exchange.group,
        kind: exchange.kind,
        first,
        len: payload.len(),
        tag: if first { exchange.tag } else { 0 },
        total: if first { total as u64 } else { 0 },
    };
    (header.encode(), payload)
}
