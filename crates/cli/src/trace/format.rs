//! Chrome's trace format, which Perfetto opens.

use std::io::{self, Write};
use std::time::Instant;

use engine::{HostClock, RankTrace, TraceEvent};
use serde_json::{Value, json};
use tensor::Category;

use super::Incomplete;

/// Writes events of ranks, and of this process besides, of a run that came to its end or did not.
pub fn write_json(
    out: &mut impl Write,
    ranks: &[RankTrace],
    own: &[(&'static str, Instant, Instant)],
    incomplete: Option<&Incomplete>,
) -> io::Result<()> {
    let clock = HostClock::now();
    let began = ranks.iter().flat_map(|rank| &rank.threads).flatten().map(|event| event.began_ns);
    let origin = began.chain(own.iter().map(|&(_, began, _)| clock.ns(began))).min().unwrap_or(0);
    let mut lines = Lines { out, origin, is_first: true };
    write!(
        lines.out,
        "{{\"displayTimeUnit\":\"ms\",\"otherData\":{},\"traceEvents\":[",
        about(ranks, incomplete)
    )?;
    for rank in ranks {
        lines.names(rank)?;
        for (thread, events) in rank.threads.iter().enumerate() {
            events.iter().try_for_each(|event| lines.event(rank, thread, event))?;
        }
        lines.dropped(rank)?;
    }
    for &(name, began, ended) in own {
        let (began_ns, took_ns) = (clock.ns(began), (ended - began).as_nanos() as u64);
        let (name, pid) = (json!(name), ranks.first().map_or(0, |rank| rank.rank));
        lines.complete(&name, Category::Host, [began_ns, took_ns as i64], [pid, OWN_THREAD], &json!({}))?;
    }
    writeln!(lines.out, "\n]}}")
}

/// What a reader should know of the whole.
fn about(ranks: &[RankTrace], incomplete: Option<&Incomplete>) -> Value {
    let clock_error_us = ranks.iter().map(|rank| rank.clock_error_ns).max().unwrap_or(0) as f64 / 1e3;
    let mut about = json!({
        "made_by": concat!("anysplit ", env!("CARGO_PKG_VERSION")),
        "clock": match clock_error_us {
            0.0 => "one host, one clock".to_owned(),
            us => format!("clocks of hosts were compared when the trace began and when it ended, to within {us:.1} µs of that of rank 0"),
        },
        "dropped_events": ranks.iter().map(|rank| rank.dropped).sum::<u64>(),
    });
    if let Some(Incomplete { why, missing_ranks }) = incomplete {
        about["incomplete"] = json!(why);
        about["missing_ranks"] = json!(missing_ranks);
    }
    about
}

/// Events of the format, one per line.
struct Lines<'a, W> {
    out: &'a mut W,
    /// The moment 0, in nanoseconds.
    origin: i64,
    is_first: bool,
}

/// The number of a rank's own thread; the others follow. Not 0: Perfetto takes thread 0 of process 1 for its thread 1.
const OWN_THREAD: usize = 1;

/// Microseconds, to the nanosecond.
fn us(ns: i64) -> String {
    format!("{}.{:03}", ns / 1000, ns % 1000)
}

impl<W: Write> Lines<'_, W> {
    fn begin(&mut self) -> io::Result<()> {
        let comma = if std::mem::take(&mut self.is_first) { "" } else { "," };
        writeln!(self.out, "{comma}")
    }

    fn about(&mut self, name: &str, [pid, tid]: [usize; 2], args: &Value) -> io::Result<()> {
        self.begin()?;
        write!(self.out, "{}", json!({ "name": name, "ph": "M", "pid": pid, "tid": tid, "args": args }))
    }

    fn names(&mut self, rank: &RankTrace) -> io::Result<()> {
        let (dp, pp, tp) = rank.place;
        let host = if rank.host.is_empty() { String::new() } else { format!(" on {}", rank.host) };
        let error = match rank.clock_error_ns {
            0 => String::new(),
            ns => format!(", times ± {:.1} µs", ns as f64 / 1e3),
        };
        let name = format!("rank {}{host} (replica {dp}, stage {pp}, tp {tp}{error})", rank.rank);
        self.about("process_name", [rank.rank, OWN_THREAD], &json!({ "name": name }))?;
        self.about("process_sort_index", [rank.rank, OWN_THREAD], &json!({ "sort_index": rank.rank }))?;
        for thread in 0..rank.threads.len() {
            let name = if thread == 0 { "rank".to_owned() } else { format!("cpu-{thread}") };
            let at = [rank.rank, OWN_THREAD + thread];
            self.about("thread_name", at, &json!({ "name": name }))?;
            self.about("thread_sort_index", at, &json!({ "sort_index": thread }))?;
        }
        Ok(())
    }

    fn event(&mut self, rank: &RankTrace, thread: usize, event: &TraceEvent) -> io::Result<()> {
        let word = |at: u32| &rank.words[at as usize];
        let mut args = serde_json::Map::new();
        let is_of_group = event.category == Category::Communication;
        if let Some(detail) = event.detail {
            args.insert(if is_of_group { "op" } else { "ops" }.into(), json!(word(detail)));
        }
        // A rank may have nothing to give. What further threads do is a part of what the rank's own does.
        let has_bytes = event.bytes > 0 || is_of_group && thread == 0;
        for (name, value) in
            [("bytes", has_bytes.then_some(event.bytes)), ("flops", (event.flops > 0).then_some(event.flops))]
        {
            if let Some(value) = value {
                args.insert(name.into(), value.into());
            }
        }
        let time = [event.began_ns, event.took_ns as i64];
        self.complete(
            &json!(word(event.name)),
            event.category,
            time,
            [rank.rank, OWN_THREAD + thread],
            &args.into(),
        )
    }

    fn complete(
        &mut self,
        name: &Value,
        category: Category,
        [began_ns, took_ns]: [i64; 2],
        [pid, tid]: [usize; 2],
        args: &Value,
    ) -> io::Result<()> {
        self.begin()?;
        let (cat, ts, dur) = (category.name(), us(began_ns - self.origin), us(took_ns));
        write!(
            self.out,
            "{{\"name\":{name},\"cat\":\"{cat}\",\"ph\":\"X\",\"ts\":{ts},\"dur\":{dur},\"pid\":{pid},\"tid\":{tid},\"args\":{args}}}"
        )
    }

    /// Says of a rank where its events end before the run did.
    fn dropped(&mut self, rank: &RankTrace) -> io::Result<()> {
        let last = rank.threads.iter().flatten().map(|event| event.began_ns + event.took_ns as i64).max();
        let Some(last) = last.filter(|_| rank.dropped > 0) else { return Ok(()) };
        self.begin()?;
        let name = json!(format!("no room for {} later events of rank {}", rank.dropped, rank.rank));
        let (ts, pid) = (us(last - self.origin), rank.rank);
        write!(
            self.out,
            "{{\"name\":{name},\"cat\":\"host\",\"ph\":\"i\",\"s\":\"p\",\"ts\":{ts},\"pid\":{pid},\"tid\":{OWN_THREAD}}}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: u32, began_ns: i64) -> TraceEvent {
        TraceEvent {
            name,
            category: Category::Compute,
            began_ns,
            took_ns: 1_001,
            flops: 6,
            bytes: 0,
            detail: Some(0),
        }
    }

    fn rank(threads: Vec<Vec<TraceEvent>>, dropped: u64) -> RankTrace {
        let words = ["a \"quoted\" word".to_owned(), "qkv".to_owned()].into();
        RankTrace {
            rank: 3,
            place: (0, 1, 1),
            host: "b".into(),
            clock_error_ns: 2_500,
            threads,
            words,
            dropped,
        }
    }

    fn written(ranks: &[RankTrace]) -> Value {
        let mut bytes = Vec::new();
        write_json(&mut bytes, ranks, &[], None).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn times_are_microseconds_to_the_nanosecond_from_the_first_event_on() {
        let trace = written(&[rank(vec![vec![event(1, 5_000_000_007)], vec![event(1, 5_000_002_010)]], 0)]);
        let events: Vec<&Value> =
            trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
        assert_eq!(
            *events[1],
            json!({
                "name": "qkv", "cat": "compute", "ph": "X", "ts": 2.003, "dur": 1.001, "pid": 3, "tid": 2,
                "args": { "ops": "a \"quoted\" word", "flops": 6 },
            })
        );
        assert_eq!(events[0]["ts"], 0.0);
    }

    #[test]
    fn what_had_no_room_and_how_exact_clocks_are_is_said() {
        let trace = written(&[rank(vec![vec![event(1, 0)]], 17)]);
        assert_eq!(trace["otherData"]["dropped_events"], 17);
        assert!(trace["otherData"]["clock"].as_str().unwrap().contains("2.5 µs"));
        let note = trace["traceEvents"].as_array().unwrap().iter().find(|e| e["ph"] == "i").unwrap();
        assert_eq!(note["name"], "no room for 17 later events of rank 3");
    }

    #[test]
    fn a_trace_of_nothing_is_a_trace() {
        assert_eq!(written(&[])["traceEvents"], json!([]));
    }
}
