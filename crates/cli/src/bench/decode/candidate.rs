//! One of what is compared.

use std::rc::Rc;

use cpu::Isa;
use engine::{Engine, GenerateRequest, Timing, cpus};
use tensor::KV_BLOCK;

use super::machine::Limits;
use super::resident::{Baseline, Resident};
use super::sweep::Point;
use crate::error::CliError;

/// An engine and what was measured on it.
pub struct Candidate {
    pub name: String,
    pub engine: Engine,
    /// The instructions that its kernels use.
    pub isa: Isa,
    /// By point.
    pub measured: Vec<Measured>,
    /// What its GPUs do at best; `None` if it has none.
    pub gpus: Option<Limits>,
    resident: Resident,
    load_peak: u64,
}

/// What was measured at a point.
#[derive(Default)]
pub struct Measured {
    pub runs: Vec<Run>,
    /// The most that it would have taken alone, from loading until its first run here.
    pub peak_rss_bytes: u64,
}

/// One run, beside the limits around it.
pub struct Run {
    pub timing: Timing,
    pub limits: Limits,
}

/// Tokens of each sequence in a warm-up.
const WARM_UP: usize = 4;

impl Candidate {
    /// Loads it. Ranks of a job other than rank 0 have none.
    pub fn load(
        load: impl FnOnce() -> Result<Option<(String, Engine)>, CliError>,
        isa: Isa,
        points: &[Point],
        baseline: &Rc<Baseline>,
    ) -> Result<Option<Candidate>, CliError> {
        let mut resident = Resident::new(baseline.clone());
        let (loaded, load_peak) = resident.during(load);
        let measured = || points.iter().map(|_| Measured::default()).collect();
        let Some((name, engine)) = loaded? else { return Ok(None) };
        let gpus = Limits::of_gpus(&engine)?;
        Ok(Some(Candidate { name, engine, isa, measured: measured(), gpus, resident, load_peak }))
    }

    /// What weights are kept as.
    pub fn kept(&self) -> &'static str {
        self.engine.kept_as().layers(self.engine.config()).unwrap_or(self.engine.dtype().name())
    }

    /// What tells it from the others.
    pub fn what(&self) -> String {
        format!("{}x{}, {}", self.engine.plan().mesh.size(), self.engine.threads_per_rank(), self.kept())
    }

    /// Threads that work at a time, at most one per core.
    pub fn threads(&self) -> usize {
        (self.engine.plan().mesh.size() * self.engine.threads_per_rank()).min(cpus::available().len())
    }

    /// A run that doesn't count and ends early.
    ///
    /// # Errors
    /// The sequences don't fit into memory at a time; a rank fails.
    pub fn warm_up(
        &mut self,
        at: usize,
        point: &Point,
        requests: &[GenerateRequest],
    ) -> Result<(), CliError> {
        let mut tokens = vec![0; requests.len()];
        let (engine, resident) = (&mut self.engine, &mut self.resident);
        let (done, peak) = resident.during(|| {
            engine.generate(requests, &mut |request, _| {
                tokens[request] += 1;
                tokens[request] >= WARM_UP
            })
        });
        done?;
        self.measured[at].peak_rss_bytes = self.load_peak.max(peak);
        self.check_room(point)
    }

    /// A run.
    ///
    /// # Errors
    /// A rank fails.
    pub fn run(&mut self, at: usize, requests: &[GenerateRequest]) -> Result<Timing, CliError> {
        let (engine, resident) = (&mut self.engine, &mut self.resident);
        let (done, peak) = resident.during(|| engine.generate(requests, &mut |_, _| false));
        done?;
        let measured = &mut self.measured[at];
        if measured.runs.is_empty() {
            measured.peak_rss_bytes = measured.peak_rss_bytes.max(peak);
        }
        Ok(self.engine.timing())
    }

    /// With fewer KV blocks than all sequences need, they would take turns, which is another measurement.
    fn check_room(&mut self, point: &Point) -> Result<(), CliError> {
        let context = self.engine.plan().context().ranks as u64;
        let sequences = point.batch.div_ceil(self.engine.plan().mesh.dp) as u64;
        let wanted = sequences * ((point.prompt + point.generate).next_multiple_of(KV_BLOCK)) as u64;
        for report in self.engine.reports()? {
            let has = report.kv_cache_bytes / report.kv_bytes_per_token.max(1) * context;
            if has < wanted && report.kv_bytes_per_token > 0 {
                return Err(CliError::Usage(format!(
                    "--batch-size {}: memory has room for the keys and values of {has} tokens at a time, and {wanted} \
                     are needed; give fewer sequences or shorter ones",
                    point.batch
                )));
            }
        }
        Ok(())
    }
}
