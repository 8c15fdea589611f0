//! What steps are asked is answered alike on any split, and as `score` would.

use std::path::Path;

use checkpoint::{Checkpoint, WeightSource, config_file};
use model::ModelConfig;
use tensor::{KvDType, SequenceSpan};

use super::*;
use crate::Logprobs;
use crate::cpu_ranks::MakeCpu;
use crate::launch::launch;
use crate::leader::Leader;
use crate::plan::context_parallel;
use crate::prepared::Planned;
use crate::sampling::Choice;
use crate::{Engine, EngineError, EngineOptions};

const PROMPT: usize = 41;
const COMPLETION: usize = 6;

fn checkpoint(name: &str) -> (ModelConfig, WeightSource) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    let config = ModelConfig::parse(&config_file(&dir).unwrap(), None).unwrap();
    (config, WeightSource::Files(Checkpoint::open(&dir).unwrap()))
}

fn options(tp: usize, pp: usize) -> EngineOptions {
    EngineOptions {
        rank_weights: vec![1.0; tp],
        pipeline_parallel_size: pp,
        threads_per_rank: Some(1),
        ..Default::default()
    }
}

/// Ranks that hold a model, and a sequence that they run.
struct Running {
    leader: Box<dyn Leader>,
    vocab_size: u32,
    tokens: Vec<u32>,
    block_table: Vec<u32>,
}

impl Running {
    fn new(name: &str, options: &EngineOptions) -> Self {
        let (config, source) = checkpoint(name);
        let vocab_size = config.vocab_size as u32;
        let planned = Planned::<MakeCpu>::new(config, &source, options, None).unwrap();
        let prepared = planned.with(source, options, None);
        let mut leader = launch(prepared.setup, &|_| {}).unwrap();
        leader.issue(&Command::AllocateKv { blocks: 32 }).unwrap();
        let tokens = (0..PROMPT as u32).map(|i| (i * i * 7 + 3 * i + 1) % vocab_size).collect();
        let block_table = context_parallel(options.decode_context_parallel_size).table_alone(4);
        Running { leader: Box::new(leader), vocab_size, tokens, block_table }
    }

    /// The step that runs the tokens from `start` on, and is asked as much of the last rows as there are asks.
    fn command(&self, start: usize, rows: usize, edits: &[LogitEdit], asks: &[Ask]) -> Command {
        let sequences = vec![SequenceSpan { rows: 0..rows, start, block_table: self.block_table.clone() }];
        let meta = StepMeta {
            tokens: self.tokens[start..start + rows].to_vec(),
            sequences,
            logit_rows: (rows as u32 - asks.len() as u32..rows as u32).collect(),
        };
        Command::Generate { copies: Vec::new(), meta, edits: Some(edits.to_vec()), asks: asks.to_vec() }
    }

    fn run(&mut self, command: &Command) -> Result<Vec<Sampled>, EngineError> {
        self.leader.issue(command)?;
        match self.leader.collect()? {
            Reply::Tokens(tokens) => Ok(tokens),
            Reply::Pulse(_) => unreachable!("none was asked for"),
        }
    }

    fn step(
        &mut self,
        start: usize,
        rows: usize,
        edits: &[LogitEdit],
        asks: &[Ask],
    ) -> Result<Vec<Sampled>, EngineError> {
        self.run(&self.command(start, rows, edits, asks))
    }

    /// The last token alone, again and again if need be.
    fn last(&mut self, edits: &[LogitEdit], ask: Ask) -> Sampled {
        self.step(self.tokens.len() - 1, 1, edits, &[ask]).unwrap().remove(0)
    }

    /// Runs the prompt in chunks, all of which is scored, and some tokens that are edited in every way.
    fn answers(&mut self, chunk: usize) -> Vec<Sampled> {
        let mut answers = Vec::new();
        for start in (0..PROMPT).step_by(chunk) {
            let rows = chunk.min(PROMPT - start);
            let score = |at: usize| Ask::Score { target: self.tokens[at + 1], top: at % 4 };
            let mut asks: Vec<Ask> = (start..start + rows).filter(|&at| at + 1 < PROMPT).map(score).collect();
            let mut edits = Vec::new();
            if start + rows == PROMPT {
                edits = self.edits(asks.len());
                asks.push(Ask::Sample { choice: sampled(0.7), logprobs: Some(5) });
            }
            answers.extend(self.step(start, rows, &edits, &asks).unwrap());
        }
        for i in 1..COMPLETION {
            self.tokens.push(answers.last().unwrap().token);
            let choice = sampled(i as f64 / COMPLETION as f64);
            answers.push(self.last(&self.edits(0), Ask::Sample { choice, logprobs: Some(i) }));
        }
        answers
    }

    fn edits(&self, row: usize) -> Vec<LogitEdit> {
        let seen = self.tokens.last().copied().unwrap();
        vec![
            LogitEdit::Add { row, col: 5, by: 1.5 },
            LogitEdit::Add { row, col: 0, by: f32::NEG_INFINITY },
            LogitEdit::Allow { row, words: allowed(self.vocab_size, |id| id % 3 == 1) },
            LogitEdit::Repetition { row, cols: vec![seen, 9], by: 1.3 },
            LogitEdit::Divide { row, by: 0.8 },
        ]
    }
}

fn sampled(uniform: f64) -> Choice {
    Choice { greedy: false, top_k: 0, top_p: 1.0, min_p: 0.0, uniform }
}

fn allowed(vocab_size: u32, is: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut words = vec![0; vocab_size.div_ceil(32) as usize];
    (0..vocab_size).filter(|&id| is(id)).for_each(|id| words[id as usize / 32] |= 1 << (id % 32));
    words
}

#[test]
fn tokens_and_log_probabilities_are_those_of_score_on_any_split_and_in_any_chunks() {
    for name in ["llama", "mixtral", "gemma2"] {
        let mut one = Running::new(name, &options(1, 1));
        let want = one.answers(PROMPT);
        assert!(want[PROMPT - 1..].iter().all(|sampled| sampled.token % 3 == 1));
        let (config, source) = checkpoint(name);
        let mut engine = Engine::load(config, source, &options(1, 1), &|_, _| {}).unwrap();
        one.tokens.push(want.last().unwrap().token);
        let scores = engine.score(&one.tokens).unwrap();
        for (at, (found, score)) in want.iter().zip(&scores[1..]).enumerate() {
            let Logprobs { logprob, rank, top } = found.logprobs.as_ref().unwrap();
            assert_eq!(Some(logprob.to_bits()), score.map(f32::to_bits), "{name}: position {}", at + 1);
            let ordered = |w: &[(u32, f32)]| w[0].1 > w[1].1 || w[0].1 == w[1].1 && w[0].0 < w[1].0;
            assert!(top.windows(2).all(ordered), "{top:?}");
            let same = top.iter().find(|(id, _)| *id == found.token).is_none_or(|of| of.1 == *logprob);
            let place = top.iter().position(|(id, _)| *id == found.token);
            let is_ranked = place.map_or(*rank as usize > top.len(), |at| *rank as usize == at + 1);
            assert!(is_ranked, "{name}: {found:?}");
            assert!(same && top.first().is_none_or(|most| most.1 >= *logprob), "{name}: {found:?}");
        }
        let context = EngineOptions { decode_context_parallel_size: 2, ..options(4, 1) };
        let unequal = EngineOptions { rank_weights: vec![3.0, 1.0], ..options(1, 2) };
        let mut splits =
            vec![options(1, 1), options(2, 1), options(3, 1), options(1, 2), options(3, 2), unequal];
        if name == "mixtral" {
            splits.push(context);
        }
        for (options, chunk) in splits.iter().zip([7, PROMPT, 1, 20].into_iter().cycle()) {
            let got = Running::new(name, options).answers(chunk);
            assert!(got == want, "{name}, {options:?}, chunks of {chunk}: {got:?}, should be {want:?}");
        }
    }
}

/// Of all ids, by a log-probability for each.
fn distribution(running: &mut Running) -> Vec<f64> {
    let top = running.vocab_size as usize;
    let found = running.last(&[], Ask::Score { target: 0, top }).logprobs.unwrap();
    let mut all = vec![f64::NAN; top];
    found.top.iter().for_each(|&(id, logprob)| all[id as usize] = f64::from(logprob));
    all
}

#[test]
fn what_is_not_allowed_is_never_chosen_and_the_rest_shares_all() {
    for options in [options(1, 1), options(3, 1)] {
        let mut running = Running::new("llama", &options);
        running.step(0, PROMPT, &[], &[]).unwrap();
        let all = distribution(&mut running);
        assert!((all.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-4);
        // One that is likely and one that is not, at both ends of the vocabulary.
        let ids = [3u32, 276];
        let words = allowed(running.vocab_size, |id| ids.contains(&id));
        let [a, b] = ids.map(|id| all[id as usize].exp());
        let (first, second) = if a >= b { (ids[0], ids[1]) } else { (ids[1], ids[0]) };
        let share = a.max(b) / (a + b);
        for uniform in [0.0, share - 1e-4, share + 1e-4, 1.0 - f64::EPSILON] {
            let edits = [LogitEdit::Allow { row: 0, words: words.clone() }];
            let choose = |choice| Ask::Sample { choice, logprobs: None };
            let found = running.last(&edits, choose(sampled(uniform)));
            assert_eq!(found.token, if uniform < share { first } else { second }, "{uniform} of {share}");
            let greedy = Choice { greedy: true, ..sampled(uniform) };
            assert_eq!(running.last(&edits, choose(greedy)).token, first);
            let cut = Choice { top_k: 9, top_p: 0.999_999, min_p: 1e-30, ..sampled(uniform) };
            assert!(ids.contains(&running.last(&edits, choose(cut)).token));
        }
    }
}

#[test]
fn a_row_in_which_nothing_is_allowed_is_an_error_that_says_so() {
    for greedy in [true, false] {
        let mut running = Running::new("llama", &options(2, 1));
        let asks = [Ask::Sample { choice: Choice { greedy, ..sampled(0.5) }, logprobs: Some(1) }; 2];
        let edits = [LogitEdit::Allow { row: 1, words: Vec::new() }];
        let error = running.step(0, PROMPT, &edits, &asks).unwrap_err().to_string();
        assert!(error.contains("row 1 of the logits has no token that is allowed"), "{error}");
    }
}

#[test]
fn rows_that_only_sample_need_no_more_exchanges_than_ever() {
    let mut running = Running::new("llama", &options(2, 1));
    let mut calls = |edits: &[LogitEdit], asks: &[Ask]| {
        running.step(0, PROMPT, edits, asks).unwrap();
        running.leader.reports().unwrap()[1].vocab_collective_calls
    };
    let greedy = Choice { greedy: true, ..sampled(0.0) };
    let plain = calls(&[], &[Ask::Sample { choice: greedy, logprobs: None }]);
    // Embedding, candidates.
    assert_eq!(plain, 2);
    let edits = [LogitEdit::Divide { row: 0, by: 0.9 }];
    let choice = Choice { top_k: 9, ..sampled(0.5) };
    assert_eq!(calls(&edits, &[Ask::Sample { choice, logprobs: None }; 3]), plain);
    // What is drawn from everything, and not from a cut, needs the sum.
    assert_eq!(calls(&edits, &[Ask::Sample { choice: sampled(0.5), logprobs: None }; 3]), plain + 1);
    // Log-probabilities come with a rank, for which one exchange counts.
    assert_eq!(calls(&edits, &[Ask::Sample { choice, logprobs: Some(0) }; 3]), plain + 4);
    assert_eq!(calls(&edits, &[Ask::Sample { choice, logprobs: Some(2) }; 3]), plain + 4);
    assert_eq!(calls(&[], &[Ask::Score { target: 7, top: 0 }; 3]), plain + 3);
}

#[test]
fn a_sequence_goes_on_from_copied_blocks_as_from_its_own() {
    let context = EngineOptions { decode_context_parallel_size: 2, ..options(4, 1) };
    for options in [options(1, 1), options(2, 2), context] {
        for kv_dtype in KvDType::ALL {
            let options = EngineOptions { kv_cache_dtype: Some(kv_dtype), ..options.clone() };
            let mut running = Running::new("mixtral", &options);
            running.step(0, PROMPT, &[], &[]).unwrap();
            let ask = Ask::Score { target: 5, top: 9 };
            let want = running.last(&[], ask);
            let own = running.block_table.clone();
            running.block_table.iter_mut().for_each(|block| *block += 16);
            let Command::Generate { meta, edits, asks, .. } = running.command(PROMPT - 1, 1, &[], &[ask])
            else {
                unreachable!("a step")
            };
            let copies = own.iter().copied().zip(running.block_table.iter().copied()).collect();
            let found = running.run(&Command::Generate { copies, meta, edits, asks }).unwrap();
            assert!(found == [want.clone()], "{options:?}: {found:?}, should be {want:?}");
            // And what the copy does then is its own affair.
            let token = running.tokens[PROMPT - 1];
            running.tokens[PROMPT - 1] = token + 1;
            assert!(running.last(&[], ask) != want);
            (running.tokens[PROMPT - 1], running.block_table) = (token, own);
            assert!(running.last(&[], ask) == want);
        }
    }
}

#[test]
fn a_pulse_counts_all_steps_even_while_some_are_on_their_way() {
    for options in [options(1, 1), options(3, 1), options(2, 2)] {
        let mut running = Running::new("llama", &options);
        let all = options.rank_weights.len() * options.pipeline_parallel_size;
        let ask = Ask::Score { target: 5, top: 0 };
        let mut last = vec![RankPulse::default(); all];
        let mut replies = Vec::new();
        for round in 1..4 {
            for start in [0, 20] {
                let command = running.command(start, 20, &[], &[ask]);
                running.leader.issue(&command).unwrap();
            }
            running.leader.issue(&Command::Mark).unwrap();
            let pulses = running.leader.pulses().unwrap();
            for (rank, (pulse, last)) in pulses.iter().zip(&last).enumerate() {
                assert_eq!((pulse.rank, pulse.steps), (rank, 2 * round));
                assert!(pulse.busy_s > last.busy_s && pulse.waiting_s >= last.waiting_s);
                assert!(
                    pulse.last_step_s > 0.0
                        && pulse.last_step_s < pulse.busy_s + pulse.waiting_s + pulse.communication_s
                );
                assert!(pulse.weight_bytes > 0 && pulse.kv_cache_bytes > 0 && pulse.activation_bytes > 0);
                assert_eq!(pulse.communication_s + pulse.waiting_s > 0.0, all > 1);
                assert_eq!(pulse.sent_bytes > last.sent_bytes, all > 1, "{pulse:?}");
                assert_eq!(pulse.received_bytes > 0, pulse.coordinates().pp > 0);
            }
            assert_eq!(pulses.len(), all);
            last = pulses;
            for _ in 0..2 {
                let Reply::Tokens(found) = running.leader.collect().unwrap() else {
                    unreachable!("a step's reply")
                };
                replies.push(found);
            }
        }
        assert!(replies.chunks(2).all(|pair| pair == &replies[..2]) && replies[0] != replies[1]);
    }
}

#[test]
fn waiting_for_edits_is_no_work() {
    struct Slow(Duration);
    impl LateEdits for Slow {
        fn wait(&mut self) {
            let since = Instant::now();
            while since.elapsed() < Duration::from_millis(2) {}
            self.0 = since.elapsed();
        }

        fn make(&mut self) -> Vec<LogitEdit> {
            Vec::new()
        }
    }
    let mut ranks = Running::new("llama", &options(1, 1));
    let mut command = ranks.command(0, PROMPT, &[], &[Ask::Sample { choice: sampled(0.5), logprobs: None }]);
    let Command::Generate { edits, .. } = &mut command else { unreachable!("it is a step") };
    *edits = None;
    let mut slow = Slow(Duration::ZERO);
    ranks.leader.issue_step(&command, &mut slow).unwrap();
    ranks.leader.collect().unwrap();
    let pulse = ranks.leader.pulses().unwrap().remove(0);
    assert!(pulse.waiting_s >= slow.0.as_secs_f64(), "{pulse:?}");
}
