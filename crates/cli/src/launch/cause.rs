//! Which rank was the cause of a failure, in one line. The ranks that notice first are rarely the ones that failed.

use serde::Deserialize;

use super::{lines, signals};

/// What a rank writes into its report pipe before it ends.
#[derive(Deserialize)]
pub struct Report {
    #[serde(default)]
    cause: Cause,
    #[serde(default)]
    code: u8,
    message: String,
}

/// Whose failure a report is about.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Cause {
    /// The rank's own.
    #[default]
    Own,
    /// Another rank's, as this one saw it.
    Other,
}

/// Where a rank is, as it notes from time to time.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    /// Such as `in all_reduce number 41`; none before the first.
    place: Option<String>,
}

/// More than this on one line is neither report nor note.
const LINE_MAX: usize = 64 << 10;

/// What a rank has written into its report pipe so far. A program that knows nothing of it writes nothing.
#[derive(Default)]
pub struct Heard {
    line: Vec<u8>,
    report: Option<Report>,
    /// The last note.
    note: Option<Note>,
}

impl Heard {
    /// Takes what has come. Of several reports and notes the last counts; what is neither is passed over.
    pub fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend(piece);
            if piece.ends_with(b"\n") || self.line.len() > LINE_MAX {
                self.end_line();
            }
        }
    }

    fn place(&self) -> Option<String> {
        self.note.as_ref()?.place.as_ref().map(|place| lines::quote(place.as_bytes()))
    }

    /// No more will come.
    pub fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Ok(report) = serde_json::from_slice(&line) {
            self.report = Some(report);
        } else if let Ok(note) = serde_json::from_slice(&line) {
            self.note = Some(note);
        }
    }
}

/// How a rank's process ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By itself.
    Exited(i32),
    /// By a signal that wasn't the launcher's.
    Killed(i32),
    /// By the launcher, since it was stopped for so many seconds.
    Stopped {
        /// How long.
        seconds: u64,
        /// Whether that was longer than the time-out, so that nobody else failed before.
        too_long: bool,
    },
    /// By the launcher, since so many seconds after rank 0 it had not.
    Late(u64),
    /// By the launcher, after another rank had failed.
    Ended,
}

/// What is known of a rank that ended.
pub struct End {
    /// The rank.
    pub rank: u64,
    /// Its process.
    pub pid: u32,
    /// How.
    pub how: How,
    /// What it said of it, and of where it was, if it did.
    pub heard: Heard,
    /// Its last line on stderr.
    pub last_line: String,
}

impl End {
    /// How likely this end was the cause of the others, from 0 on; none if it was no failure.
    fn order(&self) -> Option<u8> {
        let cause = self.heard.report.as_ref().map(|report| report.cause);
        match (self.how, cause) {
            (How::Killed(_) | How::Stopped { too_long: true, .. } | How::Late(_), _) => Some(0),
            (How::Exited(0), _) => None,
            (How::Exited(_), Some(Cause::Own)) => Some(1),
            (How::Stopped { .. }, _) => Some(2),
            (How::Exited(_), None) => Some(3),
            // It was too slow with its own failure, so the launcher ended it.
            (How::Ended, Some(Cause::Own)) => Some(4),
            (_, Some(Cause::Other)) => Some(5),
            (How::Ended, None) => None,
        }
    }

    /// Where it was, by its own notes or another rank's. Who writes no notes has no collectives.
    fn place(&self, others: &[&End]) -> String {
        let other = || others.iter().find_map(|other| Some((other.rank, other.heard.place()?)));
        match (self.heard.place(), other()) {
            _ if self.heard.note.is_none() => String::new(),
            (Some(place), _) => format!(" {place}"),
            (None, Some((rank, place))) => format!(" while rank {rank} was {place}"),
            (None, None) => " before the first collective".into(),
        }
    }

    /// Its last line, if that says why. A rank that writes notes is one of ours: other lines of it are none of errors.
    fn last_words(&self) -> &str {
        let error = self.last_line.strip_prefix("error:");
        match (error, &self.heard.note) {
            (Some(error), _) => error.trim(),
            (None, Some(_)) => "",
            (None, None) => self.last_line.trim(),
        }
    }

    fn told(&self, host: &str, others: &[&End]) -> String {
        let (rank, pid) = (self.rank, self.pid);
        let who = format!("rank {rank} on {host} (pid {pid})");
        let last = self.last_words();
        let place = self.place(others);
        let said = if last.is_empty() { String::new() } else { format!("; its last line: {last}") };
        match (self.how, &self.heard.report) {
            (How::Killed(signal), _) => {
                format!("{who} was killed by {}{place}{said}", signals::name(signal))
            }
            (How::Stopped { seconds, .. }, _) => {
                format!("{who} was stopped for {seconds} s{place}, and was killed{said}")
            }
            (How::Late(seconds), _) => {
                format!("{who} had not ended {seconds} s after rank 0 had, and was killed{said}")
            }
            (_, Some(report)) => {
                let message = lines::quote(report.message.as_bytes());
                let named = rank_named(&message);
                let is_told = named == Some(rank) || named.is_some() && report.cause == Cause::Other;
                if is_told { message } else { format!("rank {rank} on {host}: {message}") }
            }
            (How::Exited(status), None) if last.is_empty() => format!("{who} exited with status {status}"),
            (How::Exited(status), None) => format!("{who} exited with status {status}: {last}"),
            (How::Ended, None) => format!("{who} was ended"),
        }
    }
}

/// The rank with whose name a message begins.
fn rank_named(message: &str) -> Option<u64> {
    let rest = message.strip_prefix("rank ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The one line about a job whose ranks ended so, in the order in which they did, and its exit status; none if all went
/// well.
pub fn root(ends: &[&End], host: &str) -> Option<(String, u8)> {
    // Of equals the first is found.
    let (_, end) = ends.iter().filter_map(|end| Some((end.order()?, end))).min_by_key(|(order, _)| *order)?;
    let is_wrong_use = match end.how {
        How::Exited(status) => status == 2,
        How::Ended => end.heard.report.as_ref().is_some_and(|report| report.code == 2),
        How::Killed(_) | How::Stopped { .. } | How::Late(_) => false,
    };
    Some((end.told(host, ends), if is_wrong_use { 2 } else { 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str) -> Heard {
        let mut heard = Heard::default();
        text.as_bytes().chunks(7).for_each(|piece| heard.take(piece));
        heard.end_line();
        heard
    }

    fn end(rank: u64, how: How, report: Option<&str>) -> End {
        let line = report.map(|cause| {
            format!("{{\"rank\":{rank},\"host\":\"h\",\"cause\":\"{cause}\",\"code\":1,\"message\":\"m{rank}\"}}\n")
        });
        End {
            rank,
            pid: 7,
            how,
            heard: heard(&line.unwrap_or_default()),
            last_line: format!("error: l{rank}"),
        }
    }

    fn told(ends: &[End]) -> String {
        root(&ends.iter().collect::<Vec<_>>(), "h").unwrap().0
    }

    #[test]
    fn causes_are_in_order() {
        let echo = || end(0, How::Exited(1), Some("other"));
        let own = || end(1, How::Exited(1), Some("own"));
        let silent = || end(2, How::Exited(3), None);
        let killed = || end(3, How::Killed(9), None);
        let paused = || end(4, How::Stopped { seconds: 2, too_long: false }, None);
        let slow = || end(5, How::Ended, Some("own"));
        let ended = || end(6, How::Ended, None);
        assert_eq!(
            told(&[echo(), silent(), own(), killed()]),
            "rank 3 on h (pid 7) was killed by SIGKILL; its last line: l3"
        );
        assert_eq!(told(&[echo(), silent(), own(), ended()]), "rank 1 on h: m1");
        assert_eq!(
            told(&[echo(), silent(), paused()]),
            "rank 4 on h (pid 7) was stopped for 2 s, and was killed; its last line: l4"
        );
        assert_eq!(told(&[echo(), slow(), silent()]), "rank 2 on h (pid 7) exited with status 3: l2");
        assert_eq!(told(&[echo(), slow()]), "rank 5 on h: m5");
        assert_eq!(told(&[ended(), echo()]), "rank 0 on h: m0");
    }

    #[test]
    fn the_status_is_of_the_cause() {
        let status = |ends: &[End]| root(&ends.iter().collect::<Vec<_>>(), "h").unwrap().1;
        let (wrong, killed) = (|| end(0, How::Exited(2), None), || end(1, How::Killed(9), None));
        assert_eq!(status(&[wrong(), end(1, How::Exited(1), Some("other"))]), 2);
        assert_eq!(status(&[wrong(), killed()]), 1, "who was left alone may guess wrong");
    }

    #[test]
    fn of_two_alike_the_first_to_end_is_told() {
        assert!(told(&[end(4, How::Exited(1), None), end(2, How::Exited(1), None)]).starts_with("rank 4 "));
    }

    #[test]
    fn what_went_well_is_no_cause() {
        assert!(root(&[&end(0, How::Exited(0), None), &end(1, How::Ended, None)], "h").is_none());
    }

    #[test]
    fn a_message_that_names_the_rank_of_the_cause_does_so_once() {
        let told_as = |cause: &str, message: &str| {
            let report = format!("{{\"cause\":\"{cause}\",\"message\":\"{message}\"}}");
            told(&[End { heard: heard(&report), ..end(1, How::Exited(1), None) }])
        };
        assert_eq!(told_as("own", "rank 1 on a: gone"), "rank 1 on a: gone");
        assert_eq!(told_as("own", "rank 12 is gone"), "rank 1 on h: rank 12 is gone");
        assert_eq!(told_as("other", "rank 12 on b is gone"), "rank 12 on b is gone");
        assert_eq!(told_as("other", "all are gone"), "rank 1 on h: all are gone");
    }

    #[test]
    fn what_is_no_report_is_passed_over() {
        for text in ["", "{\"rank\":1", "{\"message\":7}\n[1]\nhello"] {
            let Heard { report, note, .. } = heard(text);
            assert!(report.is_none() && note.is_none(), "{text}");
        }
        assert_eq!(heard("{\"message\":\"a\"}\n{\"message\":\"b\"}\ntail").report.unwrap().message, "b");
    }

    #[test]
    fn a_rank_that_is_gone_is_told_with_where_it_was() {
        let killed = |notes: &str| End { heard: heard(notes), ..end(1, How::Killed(9), None) };
        let witness = |notes: &str| End { heard: heard(notes), ..end(0, How::Exited(1), None) };
        let (early, late) = ("{\"place\":null}\n", "{\"place\":null}\n{\"place\":\"in barrier number 7\"}\n");
        for (own, other, place) in [
            (late, early, "in barrier number 7"),
            (early, late, "while rank 0 was in barrier number 7"),
            (early, early, "before the first collective"),
        ] {
            let text = format!("rank 1 on h (pid 7) was killed by SIGKILL {place}; its last line: l1");
            assert_eq!(told(&[killed(own), witness(other)]), text);
        }
        assert!(
            told(&[killed(""), witness(late)]).contains("by SIGKILL; its"),
            "scripts have no collectives"
        );
    }
}
