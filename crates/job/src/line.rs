//! A connection between a rank and rank 0: any thread may write a frame, one thread reads.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::frame::{Frame, FrameReader, write_frame};

/// The end that writes.
#[derive(Clone, Debug)]
pub struct Line(Arc<Mutex<TcpStream>>);

impl Line {
    /// Both ends of a connection. The reader looks at the time at each `tick`; a write that takes longer than
    /// `patience` fails.
    pub fn new(
        stream: TcpStream,
        tick: Duration,
        patience: Duration,
    ) -> std::io::Result<(Line, FrameReader)> {
        stream.set_write_timeout(Some(patience))?;
        let reader = FrameReader::new(stream.try_clone()?, tick)?;
        Ok((Line(Arc::new(Mutex::new(stream))), reader))
    }

    /// Sends a frame. Whether it arrives the other side's frames, or their absence, will tell.
    pub fn send(&self, frame: &Frame) -> std::io::Result<()> {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = write_frame(&stream, frame);
        if sent.is_err() {
            // Half a frame may be on its way: nothing after it would be understood.
            let _ = stream.shutdown(Shutdown::Both);
        }
        sent
    }

    /// No more frames from here; what was sent arrives.
    pub fn finish(&self) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Write);
    }

    /// Ends the connection, and so its reader.
    pub fn close(&self) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
    }
}
