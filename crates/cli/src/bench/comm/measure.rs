//! The measurement itself, on any group: threads of this process, or the processes of a job.

use std::time::{Duration, Instant};

use collective::{Collective, CollectiveError, Group, WireDType};
use cuda::Reduction;
use tensor::Device;

use super::ops::{Case, Op};

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Operations, in this order.
    pub ops: Vec<Op>,
    /// Sizes in bytes, ascending.
    pub sizes: Vec<usize>,
    /// Calls that are timed.
    pub iters: usize,
    /// Calls before them.
    pub warmup: usize,
    /// Whether results are compared.
    pub check: bool,
    /// What a wait may take.
    pub deadline: Duration,
    /// What sums travel as.
    pub wire: WireDType,
    /// In which order GPUs add up.
    pub reduction: Reduction,
    /// Up to which size GPUs that use each other's memory sum in one shot; `None`: as they found out.
    pub one_shot_bytes: Option<usize>,
}

impl Settings {
    /// The same for ranks that have only tensors on GPUs to exchange.
    pub fn of_tensors(&self) -> Self {
        let ops = self.ops.iter().copied().filter(|op| op.is_of_tensors()).collect();
        Settings { ops, ..self.clone() }
    }

    /// Whether an operation's results have bits to be compared with.
    fn compares(&self, op: Op) -> bool {
        let is_exact = self.wire == WireDType::Float32 && self.reduction == Reduction::Canonical;
        self.check && (is_exact || op.reduction() == "none")
    }
}

/// What a time is of.
#[derive(Clone, Copy, Debug)]
pub enum Timing {
    /// A call, which is done when it returns.
    Each,
    /// As many calls as are handed over together: their time until all are done, divided by their number.
    InBatches(usize),
}

/// One operation at one size.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The operation.
    pub op: Op,
    /// Bytes that were asked for.
    pub asked: usize,
    /// Bytes by nccl-tests' notion of the operation's size.
    pub bytes: usize,
    /// Elements.
    pub count: usize,
    /// Microseconds of each call, ascending. A call's time is the mean of what it took on all ranks.
    pub times_us: Vec<f64>,
    /// Elements with wrong bits, on all ranks together.
    pub wrong: Option<u64>,
}

impl Sample {
    /// The time that a share `q` of all calls stayed within.
    pub fn quantile_us(&self, q: f64) -> f64 {
        let last = self.times_us.len() - 1;
        self.times_us[((last as f64 * q).round() as usize).min(last)]
    }

    /// GB/s of the median.
    pub fn algorithm_gb_s(&self) -> f64 {
        self.bytes as f64 / self.quantile_us(0.5) / 1e3
    }
}

/// Measures everything on one rank of a group; all ranks call it with the same settings. Every rank gets every sample.
///
/// # Errors
/// A rank is missing, or has failed.
pub fn sweep<D: Device>(
    group: &dyn Collective<D>,
    dev: &D,
    settings: &Settings,
    timing: Timing,
    on_sample: &mut dyn FnMut(Sample),
) -> Result<(), CollectiveError> {
    for &op in &settings.ops {
        for &asked in &settings.sizes {
            let case = Case::new(group, dev, op, asked, settings.deadline);
            let own = match timing {
                Timing::Each => each(group, &case, op, settings)?,
                Timing::InBatches(calls) => in_batches(group, &case, op, settings, calls)?,
            };
            let times_us = of_all_ranks(group, op, &own)?;
            let wrong = match settings.compares(op) {
                true => Some(wrong(group, &case)?),
                false => None,
            };
            let (bytes, count) = (case.bytes(), case.count());
            on_sample(Sample { op, asked, bytes, count, times_us, wrong });
        }
    }
    Ok(())
}

/// Microseconds of each call on this rank.
fn each<D: Device>(
    group: &dyn Collective<D>,
    case: &Case<'_, D>,
    op: Op,
    settings: &Settings,
) -> Result<Vec<f32>, CollectiveError> {
    let mut data = case.zeros();
    for _ in 0..settings.warmup {
        data = case.next(case.call(data)?);
    }
    let mut own = Vec::with_capacity(settings.iters);
    group.barrier()?;
    for _ in 0..settings.iters {
        let began = Instant::now();
        let result = case.call(data)?;
        own.push((began.elapsed().as_secs_f64() * 1e6 / op.turns()) as f32);
        data = case.next(result);
    }
    Ok(own)
}

/// Microseconds of a call on this rank, of each batch.
fn in_batches<D: Device>(
    group: &dyn Collective<D>,
    case: &Case<'_, D>,
    op: Op,
    settings: &Settings,
    calls: usize,
) -> Result<Vec<f32>, CollectiveError> {
    (0..settings.warmup).try_for_each(|_| case.calls(calls))?;
    group.barrier()?;
    let batch = |_| {
        let began = Instant::now();
        case.calls(calls)?;
        Ok((began.elapsed().as_secs_f64() * 1e6 / calls as f64 / op.turns()) as f32)
    };
    (0..settings.iters).map(batch).collect()
}

/// The times of all ranks, ascending.
fn of_all_ranks(group: &dyn Group, op: Op, own: &[f32]) -> Result<Vec<f64>, CollectiveError> {
    let all = group.all_gather_host(own)?;
    let of_call = |i: usize| {
        let ranks = all.iter().map(|times| f64::from(times[i]));
        match op {
            // The sender may be done before anything has arrived.
            Op::Broadcast => ranks.fold(0.0, f64::max),
            _ => ranks.sum::<f64>() / all.len() as f64,
        }
    };
    let mut times: Vec<f64> = (0..own.len()).map(of_call).collect();
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Two calls, so that what one leaves behind spoils the other.
fn wrong<D: Device>(group: &dyn Collective<D>, case: &Case<'_, D>) -> Result<u64, CollectiveError> {
    let own = case.wrong(1)? + case.wrong(2)?;
    let all = group.all_gather_host(&[f32::from_bits(own.min(u64::from(u32::MAX)) as u32)])?;
    Ok(all.iter().map(|n| u64::from(n[0].to_bits())).sum())
}
