//! What came of a run.

use std::fmt::Write;

use serde_json::{Value, json};

/// What a figure should be: with what is measured of a part, or told as not measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    AtLeast(f64),
    Below(f64),
    None,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Of which part, and what of it.
    pub part: String,
    /// `ok`, or why not.
    pub result: Outcome,
    /// A number and what it is of.
    pub figure: Option<(f64, &'static str)>,
    pub target: Option<Target>,
}

/// How something ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Ok,
    /// What it needs is not here.
    Skipped(String),
    Failed(String),
}

impl Row {
    pub fn ok(part: impl Into<String>) -> Self {
        Row { part: part.into(), result: Outcome::Ok, figure: None, target: None }
    }

    pub fn failed(part: impl Into<String>, why: impl Into<String>) -> Self {
        Row { result: Outcome::Failed(why.into()), ..Row::ok(part) }
    }

    pub fn skipped(part: impl Into<String>, why: impl Into<String>) -> Self {
        Row { result: Outcome::Skipped(why.into()), ..Row::ok(part) }
    }

    /// A figure of a JSON value, if it is one.
    pub fn figure(part: impl Into<String>, value: &Value, scale: f64, unit: &'static str) -> Self {
        match value.as_f64() {
            Some(value) => Row { figure: Some((value * scale, unit)), ..Row::ok(part) },
            None => Row::failed(part, format!("it was not told: {value}")),
        }
    }

    pub fn target(self, target: Target) -> Self {
        Row { target: Some(target), ..self }
    }

    /// Whether the target was met; `None` if there is none, or nothing was measured.
    pub fn is_met(&self) -> Option<bool> {
        let (value, _) = self.figure?;
        Some(match self.target? {
            Target::AtLeast(least) => value >= least,
            Target::Below(most) => value < most,
            Target::None => value == 0.0,
        })
    }
}

/// All of it.
pub struct Report {
    /// The GPU and its driver, as far as they are known.
    pub gpu: String,
    /// Seconds since 1970.
    pub date: u64,
    pub seconds: f64,
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether nothing failed. Targets that were missed are figures, not failures.
    pub fn is_good(&self) -> bool {
        !self.rows.iter().any(|row| matches!(row.result, Outcome::Failed(_)))
    }

    /// For people.
    pub fn table(&self) -> String {
        let cells: Vec<[String; 5]> = self.rows.iter().map(cells).collect();
        let head = ["part", "result", "figure", "target", "met"].map(String::from);
        let all = || std::iter::once(&head).chain(&cells);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        // What failed says why behind the table.
        let widths = [0, 1, 2, 3, 4].map(width);
        let mut table = format!("{}, {:.0} s\n", self.gpu, self.seconds);
        for row in all() {
            let line: String =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            table += line.trim_end();
            table.push('\n');
        }
        for row in &self.rows {
            if let Outcome::Failed(why) | Outcome::Skipped(why) = &row.result {
                let _ = writeln!(table, "{}: {why}", row.part);
            }
        }
        table.trim_end().to_owned()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            let (result, why) = match &row.result {
                Outcome::Ok => ("ok", None),
                Outcome::Skipped(why) => ("skipped", Some(why)),
                Outcome::Failed(why) => ("failed", Some(why)),
            };
            json!({
                "part": row.part,
                "result": result,
                "why": why,
                "figure": row.figure.map(|(value, _)| value),
                "unit": row.figure.map(|(_, unit)| unit),
                "target": row.target.map(told),
                "met": row.is_met(),
            })
        };
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        json!({ "gpu": self.gpu, "date": self.date, "seconds": self.seconds, "rows": rows })
    }
}

fn told(target: Target) -> String {
    match target {
        Target::AtLeast(least) => format!(">= {least}"),
        Target::Below(most) => format!("< {most}"),
        Target::None => "none".into(),
    }
}

fn cells(row: &Row) -> [String; 5] {
    let result = match &row.result {
        Outcome::Ok => "ok",
        Outcome::Skipped(_) => "skipped",
        Outcome::Failed(_) => "FAILED",
    };
    let figure = row.figure.map_or(String::new(), |(value, unit)| {
        let digits = if value.abs() < 10.0 { 3 } else { 1 };
        format!("{value:.digits$} {unit}")
    });
    let met = match (row.is_met(), row.target) {
        (Some(true), _) => "yes",
        (Some(false), _) => "no",
        (None, Some(_)) => "not measured",
        (None, None) => "",
    };
    [row.part.clone(), result.into(), figure, row.target.map_or(String::new(), told), met.into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_what_was_met_and_what_failed_why() {
        let rows = vec![
            Row::figure("decode", &json!(0.8123), 100.0, "% of copy").target(Target::AtLeast(75.0)),
            Row::figure("start", &json!(12), 1.0, "s").target(Target::Below(10.0)),
            Row::figure("comm", &json!(null), 1.0, "µs").target(Target::Below(10.0)),
            Row::skipped("racecheck", "no compute-sanitizer"),
        ];
        let report = Report { gpu: "Some GPU".into(), date: 0, seconds: 17.2, rows };
        let expected = "\
Some GPU, 17 s
part       result   figure          target  met
decode     ok       81.2 % of copy  >= 75   yes
start      ok       12.0 s          < 10    no
comm       FAILED                   < 10    not measured
racecheck  skipped
comm: it was not told: null
racecheck: no compute-sanitizer";
        assert_eq!(report.table(), expected);
        assert!(!report.is_good());
        let json = report.json();
        assert_eq!(json["rows"][0]["met"], true);
        assert_eq!((&json["rows"][1]["met"], &json["rows"][2]["met"]), (&json!(false), &json!(null)));
        assert_eq!(json["rows"][2]["result"], "failed");
    }
}
