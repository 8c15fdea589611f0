//! What a rank writes to stderr: shown as it comes, but for `error:` lines. They are held until the launcher knows which
//! rank was the cause, because the ranks that only suffer from a failure are often the first to speak.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// How such a line begins.
const ERROR: &[u8] = b"error:";
/// A line that goes on for longer is shown in pieces.
const LINE_MAX: usize = 16 << 10;
/// How much of a line is quoted.
const QUOTE_MAX: usize = 800;

/// What was seen of one rank's stderr so far.
#[derive(Clone, Default)]
pub struct Seen {
    /// The last line that was not empty.
    pub last: String,
    /// The lines that were held back.
    pub errors: Vec<String>,
}

/// A rank's stderr while it is read.
pub struct Following {
    seen: Arc<Mutex<Seen>>,
    ended: Receiver<()>,
}

impl Following {
    /// Reads a rank's stderr to its end, on a thread of its own. Rank 0's is passed through; the others' lines get the
    /// prefix.
    pub fn start(pipe: impl Read + Send + 'static, prefix: Option<String>) -> io::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sender, ended) = channel();
        let lines = Lines { prefix, line: Vec::new(), shown: 0, seen: seen.clone() };
        std::thread::Builder::new().name("stderr".into()).spawn(move || follow(pipe, lines, sender))?;
        Ok(Following { seen, ended })
    }

    /// What was seen when stderr ended, or at the deadline: something that left the process group may hold it open.
    pub fn finish(&self, deadline: Instant) -> Seen {
        // Both outcomes mean the same: there is no more to wait for.
        let _ = self.ended.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        lock(&self.seen).clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sender tells the end by going away.
fn follow(mut pipe: impl Read, mut lines: Lines, _ended: Sender<()>) {
    let mut buffer = [0; 8192];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => lines.push(&buffer[..n], &mut io::stderr()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    lines.end_line(&mut io::stderr());
}

/// Bytes to lines.
struct Lines {
    prefix: Option<String>,
    line: Vec<u8>,
    /// How much of the line has been shown.
    shown: usize,
    seen: Arc<Mutex<Seen>>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], out: &mut impl Write) {
        for byte in bytes {
            self.line.push(*byte);
            if self.is_complete() || self.line.len() > LINE_MAX {
                self.end_line(out);
            }
        }
        if self.prefix.is_none() && !self.may_be_error() {
            // A progress line is shown before it is complete.
            show(out, &self.line[self.shown..]);
            self.shown = self.line.len();
        }
    }

    /// Where progress is drawn, a line also begins behind a return to its start, and behind what erases it.
    fn is_complete(&self) -> bool {
        match self.line[..] {
            [.., b'\n'] => true,
            [.., b'\r'] | [0x1b, b'[', .., b'A'..=b'Z' | b'a'..=b'z'] => self.prefix.is_none(),
            _ => false,
        }
    }

    /// Whether the line is an error, or may become one.
    fn may_be_error(&self) -> bool {
        let known = self.line.len().min(ERROR.len());
        self.line[..known] == ERROR[..known]
    }

    fn end_line(&mut self, out: &mut impl Write) {
        let line = std::mem::take(&mut self.line);
        let shown = std::mem::take(&mut self.shown);
        let quoted = quote(&line);
        let is_error = line.starts_with(ERROR);
        {
            let mut seen = lock(&self.seen);
            if is_error {
                seen.errors.push(quoted.clone());
            }
            let is_drawn = line.starts_with(b"\x1b[") || line.ends_with(b"\r");
            if !quoted.is_empty() && !is_drawn {
                seen.last = quoted;
            }
        }
        match &self.prefix {
            _ if is_error || line.is_empty() => {}
            None => show(out, &line[shown..]),
            Some(prefix) => {
                let text = line.strip_suffix(b"\n").unwrap_or(&line);
                show(out, &[prefix.as_bytes(), text, b"\n"].concat());
            }
        }
    }
}

/// Whoever closed our stderr has seen enough.
fn show(out: &mut impl Write, bytes: &[u8]) {
    let _ = out.write_all(bytes);
}

/// A line as it can be quoted in another: without control characters, and not too long.
pub fn quote(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match text.char_indices().nth(QUOTE_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(prefix: Option<&str>) -> Lines {
        Lines { prefix: prefix.map(str::to_owned), line: Vec::new(), shown: 0, seen: Arc::default() }
    }

    #[test]
    fn rank_0_is_passed_through_byte_by_byte_but_for_errors() {
        let text = b"load\r 10 %\r 20 %\nerr\nerror: no\nerrors: 3\n\n\xff end";
        for size in 1..text.len() {
            let (mut lines, mut out) = (lines(None), Vec::new());
            text.chunks(size).for_each(|chunk| lines.push(chunk, &mut out));
            lines.end_line(&mut out);
            assert_eq!(out, b"load\r 10 %\r 20 %\nerr\nerrors: 3\n\n\xff end", "pieces of {size}");
            let seen = lock(&lines.seen).clone();
            assert_eq!(seen.errors, ["error: no"]);
            assert_eq!(seen.last, "\u{fffd} end");
        }
    }

    #[test]
    fn an_error_behind_an_erased_progress_bar_is_held() {
        let (mut lines, mut out) = (lines(None), Vec::new());
        lines.push(b"loading 5 %\r\x1b[2Kerror: no\nx\n\r\x1b[2K", &mut out);
        assert_eq!(out, b"loading 5 %\r\x1b[2Kx\n\r\x1b[2K");
        let seen = lock(&lines.seen).clone();
        assert_eq!((&seen.errors[..], &*seen.last), (&["error: no".to_owned()][..], "x"));
    }

    #[test]
    fn a_progress_line_is_shown_before_it_ends() {
        let (mut lines, mut out) = (lines(None), Vec::new());
        lines.push(b"loading 5 %", &mut out);
        assert_eq!(out, b"loading 5 %");
    }

    #[test]
    fn lines_of_other_ranks_say_whose_they_are() {
        let (mut lines, mut out) = (lines(Some("rank 3: ")), Vec::new());
        lines.push(b"a\nerror: x\n\nb", &mut out);
        assert_eq!(out, b"rank 3: a\nrank 3: \n");
        lines.end_line(&mut out);
        assert_eq!(out, b"rank 3: a\nrank 3: \nrank 3: b\n");
    }

    #[test]
    fn what_is_quoted_is_one_line_of_bounded_length() {
        assert_eq!(quote(b"  a\tb\x1b[0m \n"), "a b [0m");
        assert!(quote(&[b'x'; 5000]).chars().count() == QUOTE_MAX + 1);
    }
}
