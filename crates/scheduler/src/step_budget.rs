//! How many rows a step gets, so that it takes neither too long nor too little time.

/// A step of running streams takes so many times what it takes without prompts.
/// More would let a stall of the machine, half a step long, be felt as four times.
const SLOWDOWN: f64 = 2.5;
/// A step without running streams takes so long, so that aborts and arrivals are seen.
const ALONE_S: f64 = 1.0;
/// Prompts have so many rows beside running streams, however long they take.
const MIN_PROMPT_ROWS: usize = 8;
/// And so many without, also before anything was observed.
const MIN_ROWS_ALONE: usize = 64;

/// Chooses how many rows a step has, from the times that steps before it took.
///
/// A step reads all weights once and does work for each row, so its time is about `a + b · rows`, and neither `a` nor `b` is
/// known. What is estimated are two ratios that need neither:
/// - what a step of so many decode rows alone takes: for each power of two of rows, from such steps;
/// - seconds per prompt row *of whole steps that have about as many as there may be*. The more rows a step has, the less
///   each costs, so an estimate from fewer rows promises too little and the next step comes closer, from below.
///
/// Both follow what is observed by bounded factors. Noise makes steps slower, never quicker: so estimates fall quickly and
/// rise slowly, and what one outlier did is gone after a few steps.
#[derive(Clone, Debug, Default)]
pub struct StepBudget {
    /// What decode rows alone take, by the logarithm of their number.
    decode: Vec<Option<DecodeStep>>,
    /// Seconds per prompt row of steps that also decode.
    beside: Option<f64>,
    /// Seconds per row of steps that do not.
    alone: Option<f64>,
}

/// What a step of decode rows takes.
#[derive(Clone, Copy, Debug)]
struct DecodeStep {
    rows: usize,
    seconds: f64,
    /// Seen only in steps that had prompts too.
    is_guess: bool,
}

impl StepBudget {
    /// Notes what a step took. Steps that overlap others count from the end of the one before.
    pub fn observe(&mut self, decode_rows: usize, prompt_rows: usize, seconds: f64) {
        if !(seconds.is_finite() && seconds > 0.0) {
            return; // A clock that stood still says nothing.
        }
        match (decode_rows, prompt_rows) {
            (0, 0) => {}
            (_, 0) => self.observe_decode(decode_rows, seconds),
            (0, _) => {
                let says = representative(prompt_rows, self.rows(0, usize::MAX), seconds > ALONE_S);
                observe_row(&mut self.alone, seconds / prompt_rows as f64, says);
            }
            _ => {
                self.guess_decode(decode_rows, prompt_rows, seconds);
                let slow = self.decode_s(decode_rows).is_some_and(|decode| seconds > SLOWDOWN * decode);
                let says = representative(prompt_rows, self.prompt_rows(decode_rows), slow);
                observe_row(&mut self.beside, seconds / prompt_rows as f64, says);
            }
        }
    }

    /// Rows of the next step, at most `max`: one for each of the sequences that decode now, the rest for prompts. The step
    /// takes about two and a half times what it would without prompts, but has some prompt rows; without streams about a second.
    pub fn rows(&self, decoding_now: usize, max: usize) -> usize {
        match decoding_now {
            0 => self.rows_within(ALONE_S, max),
            _ => decoding_now.saturating_add(self.prompt_rows(decoding_now)).min(max),
        }
    }

    /// Rows of a step of prompts alone that takes about so many seconds: at most `max`, and no fewer than are worth a step.
    pub fn rows_within(&self, seconds: f64, max: usize) -> usize {
        let row = self.alone.or(self.beside);
        row.map_or(0, |row| (seconds / row) as usize).max(MIN_ROWS_ALONE).min(max)
    }

    fn prompt_rows(&self, decode_rows: usize) -> usize {
        // Of a step that takes that much longer because of its prompt rows, these are the difference.
        let row = self.beside.or(self.alone.map(|row| row * SLOWDOWN / (SLOWDOWN - 1.0)));
        let rows = self.decode_s(decode_rows).zip(row).map_or(0.0, |(decode, row)| SLOWDOWN * decode / row);
        (rows as usize).max(MIN_PROMPT_ROWS)
    }

    /// What decode rows alone take, as far as is known: no more than the truth.
    fn decode_s(&self, rows: usize) -> Option<f64> {
        let bucket = rows.ilog2() as usize;
        let (fewer, more) = self.decode.split_at(self.decode.len().min(bucket + 1));
        let fewer = fewer.iter().rev().flatten().next().map(|step| step.seconds);
        // Fewer rows take at least their share.
        fewer.or(more.iter().flatten().next().map(|step| step.seconds * rows as f64 / step.rows as f64))
    }

    fn observe_decode(&mut self, rows: usize, seconds: f64) {
        let step = self.bucket(rows);
        let before = step.filter(|step| !step.is_guess).map(|step| step.seconds);
        let seconds = before.map_or(seconds, |before| follow(before, seconds, 0.125));
        *step = Some(DecodeStep { rows, seconds, is_guess: false });
    }

    /// As long as only steps with prompts were seen: what is left without the prompt rows, between the decode rows' share
    /// and all of it. The least that was seen.
    fn guess_decode(&mut self, rows: usize, prompt_rows: usize, seconds: f64) {
        let bucket = rows.ilog2() as usize;
        let fewer = self.decode.iter().take(bucket).rev().flatten().next().copied();
        let share = seconds * rows as f64 / (rows + prompt_rows) as f64;
        let rest = seconds - self.alone.map_or(seconds, |row| row * prompt_rows as f64);
        let mut guess = rest.max(share);
        if let Some(fewer) = fewer {
            guess = guess.clamp(fewer.seconds, fewer.seconds * rows as f64 / fewer.rows as f64);
        }
        let step = self.bucket(rows);
        match step {
            Some(step) if step.is_guess => step.seconds = step.seconds.min(guess),
            Some(_) => {}
            None => *step = Some(DecodeStep { rows, seconds: guess, is_guess: true }),
        }
    }

    fn bucket(&mut self, rows: usize) -> &mut Option<DecodeStep> {
        let bucket = rows.ilog2() as usize;
        if self.decode.len() <= bucket {
            self.decode.resize(bucket + 1, None);
        }
        &mut self.decode[bucket]
    }
}

/// Whether a step says that a row costs more than was thought: it had about as many as it may, or was too slow with fewer.
fn representative(rows: usize, allowed: usize, is_slow: bool) -> bool {
    is_slow || 2 * rows >= allowed
}

/// A row of a step that had few may seem to cost too much, never too little.
fn observe_row(row: &mut Option<f64>, observed: f64, is_representative: bool) {
    match row {
        None => *row = Some(observed),
        Some(before) if is_representative || observed < *before => *before = follow(*before, observed, 0.35),
        Some(_) => {}
    }
}

/// Goes from an estimate towards an observation: down by half of the way (of logarithms), up by less. Observations beyond
/// twice or a quarter of the estimate count as those.
fn follow(estimate: f64, observed: f64, up: f64) -> f64 {
    let ratio = (observed / estimate).clamp(0.25, 2.0);
    estimate * ratio.powf(if ratio < 1.0 { 0.5 } else { up })
}
