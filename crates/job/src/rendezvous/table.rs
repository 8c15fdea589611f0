//! Whether those who came are one job. No clock and no connection.

use std::fmt::Write;

use crate::frame::{Hello, Seat};

/// Why they are none: the line, and whether the user's input is the cause.
pub(super) type Refusal = (String, bool);

pub(super) struct Table {
    /// By rank.
    hellos: Vec<Option<Hello>>,
    /// Who else was seen, for the line about those who are missing.
    strangers: Vec<String>,
}

/// Strangers that a message names.
const MAX_STRANGERS: usize = 3;
/// Differences that a message names.
const MAX_DIFFERENCES: usize = 3;

impl Table {
    /// With rank 0 at it.
    pub fn new(first: Hello) -> Table {
        let mut hellos = vec![None; first.size as usize];
        hellos[0] = Some(first);
        Table { hellos, strangers: Vec::new() }
    }

    pub fn admit(&mut self, hello: Hello) -> Result<usize, Refusal> {
        let first = self.hellos[0].as_ref().expect("rank 0 is there from the start");
        let (who, size) = (title(&hello), first.size);
        if hello.size != size {
            let text = format!("{who} says that the job has {} ranks, rank 0 says {size}", hello.size);
            return Err((text, true));
        }
        let differences = differences(&first.fingerprint, &hello.fingerprint);
        if let Some((name, ours, theirs)) = differences.first() {
            let mut text = format!("{who} has {name} {theirs}, {} has {ours}", title(first));
            for (name, ours, theirs) in differences.iter().take(MAX_DIFFERENCES).skip(1) {
                let _ = write!(text, "; {name} {theirs}, not {ours}");
            }
            if differences.len() > MAX_DIFFERENCES {
                let _ = write!(text, "; and {} more differ", differences.len() - MAX_DIFFERENCES);
            }
            return Err((text, true));
        }
        let rank = hello.rank as usize;
        match self.hellos.get_mut(rank) {
            None => Err((format!("{who} is none of the job's {size} ranks"), true)),
            Some(Some(other)) => {
                let (a, b) = (&other.seat, &hello.seat);
                let text = format!(
                    "rank {rank} came twice: from {} (pid {}) and from {} (pid {})",
                    a.host_name, a.pid, b.host_name, b.pid
                );
                Err((text, true))
            }
            Some(empty) => {
                *empty = Some(hello);
                Ok(rank)
            }
        }
    }

    pub fn note_stranger(&mut self, text: String) {
        if self.strangers.len() < MAX_STRANGERS && !self.strangers.contains(&text) {
            self.strangers.push(text);
        }
    }

    /// All seats, once every rank is there.
    pub fn seats(&self) -> Option<Vec<Seat>> {
        self.hellos.iter().map(|hello| hello.as_ref().map(|hello| hello.seat.clone())).collect()
    }

    /// The line about those who did not come.
    pub fn missing(&self, waited_s: f32) -> Refusal {
        let absent = |(rank, hello): (usize, &Option<Hello>)| hello.is_none().then(|| rank.to_string());
        let missing: Vec<String> = self.hellos.iter().enumerate().filter_map(absent).collect();
        let mut text =
            format!("rank {} of {} did not come within {waited_s} s", missing.join(", "), self.hellos.len());
        for stranger in &self.strangers {
            let _ = write!(text, "; {stranger}");
        }
        (text, false)
    }

    /// The line about one who left before the job began.
    pub fn left(&self, rank: usize) -> Refusal {
        let who = self.hellos[rank].as_ref().map_or(format!("rank {rank}"), title);
        (format!("{who} left while the job started"), false)
    }
}

fn title(hello: &Hello) -> String {
    format!("rank {} on {} (pid {})", hello.rank, hello.seat.host_name, hello.seat.pid)
}

/// How much of a long value is shown on each side of where it differs.
const AROUND: usize = 30;

/// A value for people, if it is short; else what is around the first character in which it differs from the other.
fn excerpt(value: &str, other: &str) -> String {
    let differs = value.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let (from, to) = (differs.saturating_sub(AROUND), differs + AROUND);
    let length = value.chars().count();
    if length <= 3 * AROUND {
        return format!("{value:?}");
    }
    let part: String = value.chars().take(to).skip(from).collect();
    let (before, behind) = (if from > 0 { "…" } else { "" }, if to < length { "…" } else { "" });
    format!("{:?}", format!("{before}{part}{behind}"))
}

/// Name, our value, their value.
fn differences(ours: &[(String, String)], theirs: &[(String, String)]) -> Vec<(String, String, String)> {
    let value = |list: &'_ [(String, String)], name: &str| {
        list.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    };
    let shown = |name: &String| {
        let (ours, theirs) = (value(ours, name), value(theirs, name));
        let show = |value: &Option<String>, other: &Option<String>| match value {
            Some(value) => excerpt(value, other.as_deref().unwrap_or_default()),
            None => "none".to_owned(),
        };
        (ours != theirs).then(|| (name.clone(), show(&ours, &theirs), show(&theirs, &ours)))
    };
    let only_theirs = theirs.iter().filter(|(name, _)| !ours.iter().any(|(other, _)| other == name));
    let names = ours.iter().chain(only_theirs).map(|(name, _)| name);
    names.filter_map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(rank: u32, size: u32, fingerprint: &[(&str, &str)]) -> Hello {
        let seat = Seat {
            host: "h".into(),
            host_name: format!("host-{rank}"),
            pid: 10 + rank,
            cores: crate::host::Cores::of(rank..rank + 1),
            data: ([127, 0, 0, 1], 1).into(),
        };
        let fingerprint = fingerprint.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Hello { rank, size, seat, fingerprint }
    }

    const PRINT: &[(&str, &str)] = &[("version", "0.1.0"), ("model", "a"), ("plan", "colwise")];

    #[test]
    fn a_table_is_complete_when_every_rank_is_there() {
        let mut table = Table::new(hello(0, 3, PRINT));
        assert_eq!(table.admit(hello(2, 3, PRINT)), Ok(2));
        assert!(table.seats().is_none());
        assert_eq!(table.missing(1.5).0, "rank 1 of 3 did not come within 1.5 s");
        assert_eq!(table.admit(hello(1, 3, PRINT)), Ok(1));
        assert_eq!(table.seats().expect("complete")[2].host_name, "host-2");
        assert_eq!(table.left(2).0, "rank 2 on host-2 (pid 12) left while the job started");
    }

    #[test]
    fn what_differs_is_named_with_both_values_and_both_ranks() {
        let mut table = Table::new(hello(0, 3, PRINT));
        let other = [("version", "0.1.0"), ("model", "b"), ("plan", "colwise"), ("seed", "1")];
        let (text, is_usage) = table.admit(hello(1, 3, &other)).expect_err("another model");
        assert_eq!(
            text,
            "rank 1 on host-1 (pid 11) has model \"b\", rank 0 on host-0 (pid 10) has \"a\"; seed \"1\", not none"
        );
        assert!(is_usage);
        let (text, _) = table.admit(hello(1, 4, PRINT)).expect_err("another size");
        assert_eq!(text, "rank 1 on host-1 (pid 11) says that the job has 4 ranks, rank 0 says 3");
        assert!(table.admit(hello(7, 3, PRINT)).expect_err("no such rank").0.contains("none of the job's 3"));
    }

    #[test]
    fn of_long_values_only_what_differs_is_shown() {
        let long = |size: u32, end: &str| format!("{} hidden_size: {size}, {}", "a: 1, ".repeat(99), end);
        let (ours, theirs) = (long(256, &"ö".repeat(500)), long(32, &"ö".repeat(700)));
        let shown = excerpt(&ours, &theirs);
        assert!(shown.contains("hidden_size: 256, ö") && shown.chars().count() < 3 * AROUND, "{shown}");
        assert!(excerpt(&theirs, &ours).contains("hidden_size: 32, ö"));
        assert_eq!(excerpt("short", &ours), "\"short\"");
        assert!(
            excerpt(&ours, &ours[..20]).starts_with("\"a: 1, a: 1, "),
            "the shorter is the longer's beginning"
        );
    }

    #[test]
    fn a_rank_that_came_twice_is_named_with_both_places() {
        let mut table = Table::new(hello(0, 3, PRINT));
        table.admit(hello(1, 3, PRINT)).expect("the first");
        for rank in [0, 1] {
            let (text, _) = table.admit(hello(rank, 3, PRINT)).expect_err("the second");
            assert!(text.starts_with(&format!("rank {rank} came twice: from host-{rank} (pid")), "{text}");
        }
    }

    #[test]
    fn strangers_are_named_with_those_who_are_missing_and_never_many() {
        let mut table = Table::new(hello(0, 2, PRINT));
        (0..100).for_each(|i| table.note_stranger(format!("stranger {}", i / 2)));
        let text = table.missing(1.0).0;
        assert!(text.ends_with("within 1 s; stranger 0; stranger 1; stranger 2"), "{text}");
    }
}
