//! When work that comes again is replayed as a graph.

use std::collections::HashMap;

/// Lists of work that came, by what they are. The first time a list runs piece by piece, the second time it is captured as well,
/// and from then on the graph is replayed: most lists of prompts never come again, and a graph costs more than it saves if it runs
/// once.
pub(crate) struct StepGraphs<G> {
    known: HashMap<u128, Known<G>>,
    /// Graphs of lists that are known no more. They may still be under way.
    left: Vec<G>,
    /// Lists so far.
    clock: u64,
    most: usize,
    /// How many pieces of work make a graph worth it.
    least_work: usize,
}

struct Known<G> {
    last: u64,
    state: State<G>,
}

enum State<G> {
    Seen,
    Graph(G),
    /// It couldn't be captured, and won't be.
    Unfit,
}

/// What is to be done with a list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way<'a, G> {
    /// Piece by piece.
    Eager,
    /// Captured, kept ([`StepGraphs::keep`]) and run.
    Capture,
    /// As the graph that was kept.
    Replay(&'a mut G),
}

impl<G> StepGraphs<G> {
    /// For at most so many lists, of which those that came last are known.
    pub fn new(most: usize, least_work: usize) -> Self {
        assert!(most > 0, "one list at least is known");
        StepGraphs { known: HashMap::new(), left: Vec::new(), clock: 0, most, least_work }
    }

    /// How a list of so many pieces is to run.
    pub fn way(&mut self, list: u128, work: usize) -> Way<'_, G> {
        if work < self.least_work {
            return Way::Eager;
        }
        self.clock += 1;
        if !self.known.contains_key(&list) {
            self.make_room();
            self.known.insert(list, Known { last: self.clock, state: State::Seen });
            return Way::Eager;
        }
        let known = self.known.get_mut(&list).expect("it is known");
        known.last = self.clock;
        match &mut known.state {
            State::Seen => Way::Capture,
            State::Graph(graph) => Way::Replay(graph),
            State::Unfit => Way::Eager,
        }
    }

    /// Keeps what was captured; `None` if that was not possible.
    pub fn keep(&mut self, list: u128, graph: Option<G>) {
        let state = graph.map_or(State::Unfit, State::Graph);
        self.known.insert(list, Known { last: self.clock, state });
    }

    /// Drops the graphs that made room for others, of which none is under way any more.
    pub fn drop_left(&mut self) {
        self.left.clear();
    }

    /// How many made room for others and are not dropped yet.
    pub fn left(&self) -> usize {
        self.left.len()
    }

    /// All graphs that there are.
    pub fn all(&self) -> impl Iterator<Item = &G> {
        let kept = self.known.values().filter_map(|known| match &known.state {
            State::Graph(graph) => Some(graph),
            State::Seen | State::Unfit => None,
        });
        kept.chain(&self.left)
    }

    fn make_room(&mut self) {
        if self.known.len() >= self.most {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last).map(|(list, _)| *list);
            let oldest = oldest.and_then(|list| self.known.remove(&list));
            if let Some(Known { state: State::Graph(graph), .. }) = oldest {
                self.left.push(graph);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(graphs: &mut StepGraphs<u32>, list: u128) -> &'static str {
        let way = match graphs.way(list, 100) {
            Way::Eager => "eager",
            Way::Capture => "capture",
            Way::Replay(_) => "replay",
        };
        if way == "capture" {
            graphs.keep(list, Some(list as u32));
        }
        way
    }

    #[test]
    fn a_list_is_captured_when_it_comes_again_and_replayed_from_then_on() {
        let mut graphs = StepGraphs::new(8, 4);
        let ways = [1, 2, 1, 1, 2, 2, 3].map(|list| run(&mut graphs, list));
        assert_eq!(ways, ["eager", "eager", "capture", "replay", "capture", "replay", "eager"]);
        assert_eq!(graphs.way(2, 100), Way::Replay(&mut 2));
    }

    #[test]
    fn short_lists_are_not_worth_it() {
        let mut graphs = StepGraphs::<u32>::new(8, 4);
        assert!((0..5).all(|_| graphs.way(1, 3) == Way::Eager));
        assert_eq!([graphs.way(1, 4) == Way::Eager, graphs.way(1, 4) == Way::Capture], [true, true]);
    }

    #[test]
    fn what_could_not_be_captured_is_not_tried_again() {
        let mut graphs = StepGraphs::<u32>::new(8, 4);
        graphs.way(1, 9);
        assert_eq!(graphs.way(1, 9), Way::Capture);
        graphs.keep(1, None);
        assert!((0..3).all(|_| graphs.way(1, 9) == Way::Eager));
    }

    #[test]
    fn the_lists_that_came_last_are_known() {
        let mut graphs = StepGraphs::new(2, 4);
        let ways = [1, 1, 2, 1, 3, 1, 2].map(|list| run(&mut graphs, list));
        // 2 made room for 3, and not 1, which came between.
        assert_eq!(ways, ["eager", "capture", "eager", "replay", "eager", "replay", "eager"]);
        assert_eq!(graphs.all().count(), 1);
        // Any number of lists that come once leave no more behind than that.
        (10..1000).for_each(|list| assert_eq!(run(&mut graphs, list), "eager"));
        assert_eq!(graphs.known.len(), 2);
        // That of 1 stays until somebody knows that it is not under way.
        assert_eq!(graphs.all().collect::<Vec<_>>(), [&1]);
        graphs.drop_left();
        assert_eq!(graphs.all().count(), 0);
        run(&mut graphs, 7);
        run(&mut graphs, 7);
        assert_eq!(graphs.all().collect::<Vec<_>>(), [&7]);
    }
}
