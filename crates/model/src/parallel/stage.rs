//! Pipeline stages: consecutive layers of a model, and what travels between them.

use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

use collective::Collective;
use tensor::{Device, Part};

use super::exchange::Calls;
use super::layout::{Layout, Module};
use super::sequence::even_rows;
use super::{Rank, Stream};
use crate::ModelError;
use crate::config::ModelConfig;

/// One stage: some consecutive layers, with the embedding before the first and the head behind the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its layers.
    pub layers: Range<usize>,
    /// Layers of the whole model.
    pub of: usize,
}

impl Stage {
    /// All of a model.
    pub fn whole(config: &ModelConfig) -> Self {
        Stage { layers: 0..config.num_layers(), of: config.num_layers() }
    }

    /// Whether it has the embedding.
    pub fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether it has the head.
    pub fn is_last(&self) -> bool {
        self.layers.end == self.of
    }

    /// Cuts a model into `stages` stages: with so many layers each, or such that the slowest and fullest stage has as
    /// little as possible. A stage's time goes with the weights that a token reads in it, its memory with those it
    /// holds; both count alike, as shares of the whole model's. Embedding and head count where they are.
    ///
    /// # Errors
    /// More stages than layers, or numbers of layers that don't add up.
    pub fn cut(
        config: &ModelConfig,
        stages: usize,
        layers: Option<&[usize]>,
    ) -> Result<Vec<Stage>, ModelError> {
        let of = config.num_layers();
        if stages == 0 || stages > of {
            return Err(ModelError::Split(format!(
                "pipeline parallel size {stages} must be from 1 to the model's {of} layers"
            )));
        }
        let counts = match layers {
            Some(counts) => given(counts, stages, of)?,
            None => balanced(&Weights::of_layers(config), stages),
        };
        let mut start = 0;
        let cut = |count: usize| {
            let layers = start..start + count;
            start = layers.end;
            Stage { layers, of }
        };
        Ok(counts.into_iter().map(cut).collect())
    }
}

fn given(counts: &[usize], stages: usize, of: usize) -> Result<Vec<usize>, ModelError> {
    let wrong = if counts.len() != stages {
        format!("has {} numbers for {stages} stages", counts.len())
    } else if counts.contains(&0) {
        "has a stage without layers".to_owned()
    } else if counts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(of) {
        format!("must add up to the model's {of} layers")
    } else {
        return Ok(counts.to_vec());
    };
    let even: Vec<String> =
        (0..stages).map(|s| ((s + 1) * of / stages - s * of / stages).to_string()).collect();
    Err(ModelError::Split(format!("pp-layers {wrong}; {} would work", even.join(","))))
}

/// What each layer, the embedding and the head weigh, in elements.
struct Weights {
    /// Per layer: read by a token, held.
    layers: Vec<(f64, f64)>,
    /// The first stage's more, the last one's more.
    ends: [(f64, f64); 2],
}

impl Weights {
    fn of_layers(config: &ModelConfig) -> Self {
        let moe = config.moe.map_or((0, 1), |m| (m.top_k, m.num_experts));
        let elements = |module| super::layout::shape(config, module).iter().product::<usize>() as f64;
        let of_layer = |layer| {
            super::layout::layer_modules(config, layer).into_iter().fold(
                (0.0, 0.0),
                |(read, held), module| {
                    let n = elements(module);
                    let share = match module {
                        Module::ExpertGate(_) | Module::ExpertUp(_) | Module::ExpertDown(_) => {
                            moe.0 as f64 / moe.1 as f64
                        }
                        _ => 1.0,
                    };
                    (read + share * n, held + n)
                },
            )
        };
        let layers = (0..config.num_layers()).map(of_layer).collect();
        let (embed, head) = (elements(Module::Embed), elements(Module::Head));
        Weights { layers, ends: [(0.0, embed), (head, head)] }
    }

    /// The mean of a stage's shares of time and memory.
    fn share(&self, layers: Range<usize>) -> f64 {
        let all = self.layers.iter().chain(&self.ends);
        let (read, held) = all.fold((0.0, 0.0), |(r, h), w| (r + w.0, h + w.1));
        let first = (layers.start == 0).then_some(&self.ends[0]);
        let last = (layers.end == self.layers.len()).then_some(&self.ends[1]);
        let own = self.layers[layers].iter().chain(first).chain(last);
        let (own_read, own_held) = own.fold((0.0, 0.0), |(r, h), w| (r + w.0, h + w.1));
        own_read / read + own_held / held
    }
}

/// How many layers each stage gets so that the largest share is smallest.
fn balanced(weights: &Weights, stages: usize) -> Vec<usize> {
    let layers = weights.layers.len();
    // best[end]: the smallest largest share of the stages so far over layers 0..end, and where the last begins.
    let mut best: Vec<Vec<(f64, usize)>> = Vec::new();
    for stage in 0..stages {
        let from = |end: usize| -> (f64, usize) {
            let starts = if stage == 0 { 0..1 } else { stage..end };
            let way = |start: usize| {
                let before = if stage == 0 { 0.0 } else { best[stage - 1][start].0 };
                (before.max(weights.share(start..end)), start)
            };
            starts.map(way).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0))
        };
        let row = (0..=layers).map(|end| if end > stage { from(end) } else { (f64::INFINITY, 0) }).collect();
        best.push(row);
    }
    let mut end = layers;
    let mut counts: Vec<usize> = (0..stages)
        .rev()
        .map(|stage| {
            let start = best[stage][end].1;
            let count = end - start;
            end = start;
            count
        })
        .collect();
    counts.reverse();
    counts
}

/// A rank's neighbours in the pipeline, as ranks of its replica's group.
pub struct Pipeline<'a, D: Device> {
    /// The replica's group.
    pub group: &'a dyn Collective<D>,
    /// The same place of the tensor-parallel group one stage before.
    pub previous: Option<usize>,
    /// The same place one stage later.
    pub next: Option<usize>,
    /// How long this rank has waited for the stage before.
    pub waited: Cell<Duration>,
}

impl<'a, D: Device> Pipeline<'a, D> {
    /// A rank's place between its neighbours.
    pub fn new(group: &'a dyn Collective<D>, previous: Option<usize>, next: Option<usize>) -> Self {
        Pipeline { group, previous, next, waited: Cell::default() }
    }

    /// Hands the residual stream on. Each rank of a stage sends only its share of the rows, so that an activation
    /// travels once.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn send(&self, rank: Rank<D>, x: &D::Tensor, tokens: usize) -> Result<(), ModelError> {
        let next = self.next.expect("the last stage hands nothing on");
        let rows = even_rows(tokens, rank.group.size());
        let calls = Calls { dev: rank.dev, group: self.group, part: Part::Send };
        Ok(match rank.stream {
            _ if rows[rank.group.rank()] == 0 => Ok(()),
            Stream::Split(_) => calls.send(x, next),
            Stream::Replicated if rank.group.size() == 1 => calls.send(x, next),
            Stream::Replicated => calls.send(&rank.own_rows(x, &rows), next),
        }?)
    }

    /// Takes the residual stream over from the stage before, however long that takes.
    ///
    /// # Shapes
    /// → `[tokens, hidden_size]`, or this rank's rows of it under sequence parallelism
    ///
    /// # Errors
    /// A rank is lost.
    pub fn receive(&self, rank: Rank<D>, layout: &Layout, tokens: usize) -> Result<D::Tensor, ModelError> {
        const AS_LONG_AS_IT_TAKES: Option<Duration> = None;
        let previous = self.previous.expect("the first stage takes nothing over");
        let rows = even_rows(tokens, rank.group.size());
        let (own, hidden_size) = (rows[rank.group.rank()], layout.config.hidden_size);
        let began = Instant::now();
        let part = match own {
            0 => rank.dev.alloc(0, hidden_size),
            own => Calls { dev: rank.dev, group: self.group, part: Part::Receive }.recv(
                previous,
                [own, hidden_size],
                AS_LONG_AS_IT_TAKES,
            )?,
        };
        self.waited.set(self.waited.get() + began.elapsed());
        match rank.stream {
            Stream::Replicated if rank.group.size() > 1 => {
                Ok(rank.calls(Part::Exchange).all_gather(&part, &rows)?)
            }
            _ => Ok(part),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(layers: usize, layer: f64, embed: f64) -> Weights {
        Weights { layers: vec![(layer, layer); layers], ends: [(0.0, embed), (embed, embed)] }
    }

    #[test]
    fn embedding_and_head_take_the_place_of_layers() {
        assert_eq!(balanced(&weights(8, 1.0, 0.0), 4), [2, 2, 2, 2]);
        assert_eq!(balanced(&weights(8, 1.0, 0.0), 3).iter().sum::<usize>(), 8);
        let heavy = balanced(&weights(16, 1.0, 4.0), 2);
        assert!(heavy[0] > heavy[1], "the head counts: {heavy:?}");
        assert_eq!(balanced(&weights(3, 1.0, 100.0), 3), [1, 1, 1]);
    }

    #[test]
    fn no_other_cut_has_a_smaller_largest_share() {
        let w = Weights {
            layers: (0..9).map(|i| (1.0 + f64::from(i % 3), 2.0)).collect(),
            ends: [(0.0, 3.0), (2.0, 3.0)],
        };
        let largest = |counts: &[usize]| {
            let mut at = 0;
            let of = |&n: &usize| {
                at += n;
                w.share(at - n..at)
            };
            counts.iter().map(of).fold(0.0, f64::max)
        };
        let best = largest(&balanced(&w, 3));
        for a in 1..8 {
            for b in 1..9 - a {
                assert!(largest(&[a, b, 9 - a - b]) >= best);
            }
        }
    }
}
