//! Messages between two processes: a length of four bytes, then postcard.
//!
//! The worker reads its standard input and writes its standard output, which nothing else of it does.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// More than any message has.
const BYTES_MAX: usize = 1 << 30;

/// What comes in, as messages of a thread that reads. They end when the other side does; what can't be read ends them, too.
///
/// # Errors
/// The system gives no thread.
pub fn receive<T: DeserializeOwned + Send + 'static>(
    from: impl Read + Send + 'static,
) -> io::Result<Receiver<T>> {
    let (sender, receiver) = channel();
    let read = move || {
        let mut from = BufReader::with_capacity(1 << 16, from);
        while let Ok(Some(message)) = read(&mut from) {
            if sender.send(message).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new().name("frames in".into()).spawn(read)?;
    Ok(receiver)
}

/// Messages that a thread writes. It ends with the last sender, or when the other side is gone.
///
/// # Errors
/// The system gives no thread.
pub fn send<T: Serialize + Send + 'static>(to: impl Write + Send + 'static) -> io::Result<Sending<T>> {
    let (sender, receiver) = channel::<T>();
    let write = move || -> io::Result<()> {
        let mut to = BufWriter::with_capacity(1 << 16, to);
        while let Ok(message) = receiver.recv() {
            write(&mut to, &message)?;
            // What is there already goes with it.
            while let Ok(message) = receiver.try_recv() {
                write(&mut to, &message)?;
            }
            to.flush()?;
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().name("frames out".into()).spawn(write)?;
    Ok(Sending { sender, thread })
}

/// The way out, and the thread that writes.
pub struct Sending<T> {
    /// Where messages are put.
    pub sender: Sender<T>,
    thread: std::thread::JoinHandle<io::Result<()>>,
}

impl<T> Sending<T> {
    /// Waits until all is written. All other senders must be gone.
    pub fn finish(self) {
        drop(self.sender);
        let _ = self.thread.join();
    }
}

fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&bytes)
}

/// The next message; `None` at the end.
fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > BYTES_MAX {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_in_order_and_ends_with_the_sender() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (inbox, outbox) = (receive::<Vec<u32>>(reader).unwrap(), send(writer).unwrap());
        for n in [0, 1, 100_000, 3] {
            outbox.sender.send(vec![n; n as usize]).unwrap();
        }
        outbox.finish();
        let lengths: Vec<usize> = inbox.iter().map(|message| message.len()).collect();
        assert_eq!(lengths, [0, 1, 100_000, 3]);
    }

    #[test]
    fn what_is_no_message_ends_them() {
        let whole = |n: u32| [&n.to_le_bytes()[..], &[1, 7]].concat();
        let inbox =
            receive::<Vec<u32>>(io::Cursor::new([whole(2), whole(2), whole(u32::MAX)].concat())).unwrap();
        assert_eq!(inbox.iter().collect::<Vec<_>>(), [[7], [7]]);
        let inbox = receive::<Vec<u32>>(io::Cursor::new([whole(2), whole(9)].concat())).unwrap();
        assert_eq!(inbox.iter().collect::<Vec<_>>(), [[7]]);
    }
}
