//! A line per sample, in nccl-tests' columns, or one JSON value.

use std::io::Write;

use cpu::limits::CoreToCore;
use serde_json::{Value, json};

use super::measure::Sample;
use super::ops::Op;

/// What is printed beside a sample.
pub struct Context {
    /// The backend's name.
    pub backend: &'static str,
    /// Ranks.
    pub ranks: usize,
    /// The way between the two cores on which the ranks run, if there are two and nothing else lies between them.
    pub pair: Option<CoreToCore>,
    /// Sizes that a model uses, and for what.
    pub uses: Vec<(usize, &'static str)>,
}

impl Context {
    /// The least time that an all-reduce of two ranks can take, µs: a flag goes there and back, and each core reads what
    /// the other has written.
    fn bound_us(&self, sample: &Sample) -> Option<f64> {
        let pair = self.pair.filter(|_| sample.op == Op::AllReduce && self.ranks == 2)?;
        Some(2.0 * pair.latency_ns / 1e3 + sample.bytes as f64 / pair.rate_gb_per_s / 1e3)
    }

    fn used_in(&self, sample: &Sample) -> Option<&'static str> {
        self.uses.iter().find(|(bytes, _)| *bytes == sample.asked).map(|(_, used)| *used)
    }

    /// A row of `rows`.
    pub fn json(&self, sample: &Sample) -> Value {
        let (time, bound) = (sample.quantile_us(0.5), self.bound_us(sample));
        json!({
            "op": sample.op.name(),
            "backend": self.backend,
            "ranks": self.ranks,
            "bytes": sample.bytes,
            "time_us_p50": time,
            "time_us_p90": sample.quantile_us(0.9),
            "time_us_p99": sample.quantile_us(0.99),
            "algbw_gb_s": sample.algorithm_gb_s(),
            "busbw_gb_s": sample.algorithm_gb_s() * sample.op.bus_share(self.ranks),
            "wrong": sample.wrong,
            "bound_us": bound,
            "times_bound": bound.map(|b| time / b),
            "used_in": self.used_in(sample),
        })
    }

    /// What a backend's lines begin with.
    pub fn head(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "# {}, {} ranks", self.backend, self.ranks)?;
        if let Some(pair) = self.pair.filter(|_| self.ranks == 2) {
            let (latency, rate) = (pair.latency_ns, pair.rate_gb_per_s);
            writeln!(
                out,
                "# bound of all_reduce: 2 × {latency:.0} ns + bytes ÷ {rate:.1} GB/s, measured now"
            )?;
        }
        writeln!(
            out,
            "{:>14} {:>11} {:>11} {:>6} {:>6} {:>11} {:>11} {:>8} {:>8} {:>7} {:>9} {:>6}",
            "op",
            "size",
            "count",
            "type",
            "redop",
            "time",
            "p99",
            "algbw",
            "busbw",
            "#wrong",
            "bound",
            "ratio"
        )?;
        writeln!(
            out,
            "{:>14} {:>11} {:>11} {:>6} {:>6} {:>11} {:>11} {:>8} {:>8} {:>7} {:>9} {:>6}",
            "", "(B)", "(elements)", "", "", "(us, p50)", "(us)", "(GB/s)", "(GB/s)", "", "(us)", ""
        )
    }

    /// A sample's line.
    pub fn line(&self, out: &mut impl Write, sample: &Sample) -> std::io::Result<()> {
        let (time, rate) = (sample.quantile_us(0.5), sample.algorithm_gb_s());
        let bound = self.bound_us(sample);
        let or_not = |text: Option<String>| text.unwrap_or_default();
        let line = format!(
            "{:>14} {:>11} {:>11} {:>6} {:>6} {:>11.2} {:>11.2} {:>8.2} {:>8.2} {:>7} {:>9} {:>6}  {}",
            sample.op.name(),
            sample.bytes,
            sample.count,
            sample.op.element(),
            sample.op.reduction(),
            time,
            sample.quantile_us(0.99),
            rate,
            rate * sample.op.bus_share(self.ranks),
            sample.wrong.map_or("N/A".into(), |n| n.to_string()),
            or_not(bound.map(|b| format!("{b:.2}"))),
            or_not(bound.map(|b| format!("{:.2}", time / b))),
            or_not(self.used_in(sample).map(|used| format!("← {used}"))),
        );
        writeln!(out, "{}", line.trim_end())?;
        out.flush()
    }
}

/// What is printed: lines as samples come, or one value at the end.
pub struct Report {
    /// The value's rows.
    rows: Option<Vec<Value>>,
    /// How writing went so far; what cannot be written ends the command, but not in the midst of a measurement.
    written: std::io::Result<()>,
    silent: bool,
    /// Whether the lines of what is measured now have begun: they don't before it is known that it can be.
    has_begun: bool,
}

impl Report {
    pub fn new(json: bool) -> Self {
        Report { rows: json.then(Vec::new), written: Ok(()), silent: false, has_begun: false }
    }

    /// Another process prints.
    pub fn stay_silent(&mut self) {
        self.silent = true;
    }

    /// Something else is measured from now on.
    pub fn begin(&mut self) {
        self.has_begun = false;
    }

    pub fn sample(&mut self, context: &Context, sample: &Sample) {
        match &mut self.rows {
            _ if self.silent || self.written.is_err() => {}
            Some(rows) => rows.push(context.json(sample)),
            None => {
                let mut out = std::io::stdout();
                let head = if self.has_begun { Ok(()) } else { context.head(&mut out) };
                self.has_begun = true;
                self.written = head.and_then(|()| context.line(&mut out, sample));
            }
        }
    }

    pub fn end(self) -> std::io::Result<()> {
        self.written?;
        match self.rows.filter(|_| !self.silent) {
            Some(rows) => writeln!(std::io::stdout(), "{}", json!({ "rows": rows })),
            None => Ok(()),
        }
    }
}
