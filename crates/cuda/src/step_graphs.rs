//! When work that comes again is replayed as a graph.

use std::collections::HashMap;
use std::mem;

/// Lists of work that came, by what they are. A list runs piece by piece the first two times. It is remembered the second time, and made
/// a graph when its rank next waits for its stream; from then on the graph is replayed: most lists of prompts never come again, and a
/// graph costs more than it saves if it runs once. Where it could not be made then, because other ranks had work under way, it is made
/// at a later wait at which they happen to have none; time for them to end theirs is taken only when the list comes for the 4th, the 8th,
/// the 16th time, so trying costs little, however often it is in vain.
///
/// `L` is what is remembered of a list.
pub(crate) struct StepGraphs<G, L> {
    known: HashMap<u128, Known<G>>,
    /// Graphs of lists that are known no more. They may still be under way.
    left: Vec<G>,
    /// Lists that are to be graphs, and whether it is worth to wait for one.
    wanted: Vec<(u128, L)>,
    is_worth_a_wait: bool,
    /// Lists so far, and how many there were when the stream was last waited for.
    clock: u64,
    waited: u64,
    /// Pieces of work of all that are known, and how many there may be.
    work: usize,
    most_work: usize,
    /// How many pieces of work make a graph worth it.
    least_work: usize,
}

struct Known<G> {
    /// Pieces of work.
    work: usize,
    /// When it came, and when before that.
    last: u64,
    before: u64,
    state: State<G>,
}

enum State<G> {
    /// It came so many times.
    Seen(u64),
    Graph(G),
}

/// What is to be done with a list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way<'a, G> {
    /// Piece by piece.
    Eager,
    /// The same, and then it is to be remembered ([`StepGraphs::remember`]).
    Remember,
    /// As the graph that was kept.
    Replay(&'a mut G),
}

/// The most lists that are remembered at a time; others are at their 4th, 8th, 16th time.
const MOST_WANTED: usize = 64;

impl<G, L> StepGraphs<G, L> {
    /// For lists of at most so many pieces of work in all, of which those that came last are known: a model between whose layers ranks
    /// exchange outside of graphs has many short ones.
    pub fn new(most_work: usize, least_work: usize) -> Self {
        let (known, left, wanted) = Default::default();
        let (is_worth_a_wait, clock, waited, work) = Default::default();
        StepGraphs { known, left, wanted, is_worth_a_wait, clock, waited, work, most_work, least_work }
    }

    /// How a list of so many pieces is to run.
    pub fn way(&mut self, list: u128, work: usize) -> Way<'_, G> {
        if work < self.least_work {
            return Way::Eager;
        }
        self.clock += 1;
        if !self.known.contains_key(&list) {
            self.make_room(work);
            self.work += work;
            self.known.insert(list, Known { work, last: self.clock, before: 0, state: State::Seen(1) });
            return Way::Eager;
        }
        let known = self.known.get_mut(&list).expect("it is known");
        known.before = mem::replace(&mut known.last, self.clock);
        match &mut known.state {
            State::Seen(times) => {
                *times += 1;
                let (is_time, has_room) = (times.is_power_of_two(), self.wanted.len() < MOST_WANTED);
                let is_wanted = self.wanted.iter().any(|(wanted, _)| *wanted == list);
                self.is_worth_a_wait |= is_time && is_wanted;
                if is_time && has_room && !is_wanted { Way::Remember } else { Way::Eager }
            }
            State::Graph(graph) => Way::Replay(graph),
        }
    }

    /// A list that is to be a graph.
    pub fn remember(&mut self, list: u128, what: L) {
        self.is_worth_a_wait = true;
        self.wanted.push((list, what));
    }

    /// Whether a list is to be a graph for which the stream would have to be waited for: between the last two times that it came it was
    /// not.
    pub fn is_never_waited_for(&self) -> bool {
        let before = |list| self.known.get(list).map_or(0, |known| known.before);
        self.is_worth_a_wait && self.wanted.iter().any(|(list, _)| before(list) > self.waited)
    }

    /// The stream was waited for: lists that are to be graphs now, and whether it is worth to wait for others.
    pub fn waited(&mut self) -> (Vec<(u128, L)>, bool) {
        self.waited = self.clock;
        (mem::take(&mut self.wanted), mem::take(&mut self.is_worth_a_wait))
    }

    /// Those lists could not be graphs yet.
    pub fn put_back(&mut self, wanted: Vec<(u128, L)>) {
        self.wanted = wanted;
    }

    /// Keeps what was captured. A list that could not be is remembered again at its 4th, 8th, 16th time.
    pub fn keep(&mut self, list: u128, graph: G) {
        if let Some(known) = self.known.get_mut(&list) {
            known.state = State::Graph(graph);
        }
    }

    /// Drops the graphs that made room for others, of which none is under way any more.
    pub fn drop_left(&mut self) {
        self.left.clear();
    }

    /// Whether some made room for others and are not dropped yet.
    pub fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// All graphs that there are.
    pub fn all(&self) -> impl Iterator<Item = &G> {
        let kept = self.known.values().filter_map(|known| match &known.state {
            State::Graph(graph) => Some(graph),
            State::Seen(_) => None,
        });
        kept.chain(&self.left)
    }

    /// The same, of which nothing more is known.
    pub fn into_all(self) -> impl Iterator<Item = G> {
        let kept = self.known.into_values().filter_map(|known| match known.state {
            State::Graph(graph) => Some(graph),
            State::Seen(_) => None,
        });
        kept.chain(self.left)
    }

    /// Forgets lists until there is room for one of so many pieces, or none is left.
    fn make_room(&mut self, work: usize) {
        while self.work + work > self.most_work {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.last).map(|(list, _)| *list);
            let Some((list, known)) = oldest.and_then(|list| Some((list, self.known.remove(&list)?))) else {
                return;
            };
            self.work -= known.work;
            self.wanted.retain(|(wanted, _)| *wanted != list);
            if let State::Graph(graph) = known.state {
                self.left.push(graph);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Graphs = StepGraphs<u32, ()>;

    /// How a list runs.
    fn run(graphs: &mut Graphs, list: u128) -> &'static str {
        match graphs.way(list, 100) {
            Way::Eager => "eager",
            Way::Replay(_) => "replay",
            Way::Remember => {
                graphs.remember(list, ());
                "remember"
            }
        }
    }

    /// Waits for the stream, and makes graphs if nobody else has work under way.
    fn wait(graphs: &mut Graphs, is_alone: bool) {
        let (mut wanted, _) = graphs.waited();
        if is_alone {
            wanted.drain(..).for_each(|(list, ())| graphs.keep(list, list as u32));
        }
        graphs.put_back(wanted);
    }

    /// Steps of one list each, behind which the rank reads.
    fn steps<const N: usize>(graphs: &mut Graphs, lists: [u128; N], is_alone: bool) -> [&'static str; N] {
        lists.map(|list| {
            let ran = run(graphs, list);
            assert!(!graphs.is_never_waited_for(), "it is after each step");
            wait(graphs, is_alone);
            ran
        })
    }

    #[test]
    fn a_list_that_came_twice_is_replayed_from_the_third_time_on() {
        let mut graphs = Graphs::new(800, 4);
        let ways = steps(&mut graphs, [1, 2, 1, 1, 2, 2, 3], true);
        assert_eq!(ways, ["eager", "eager", "remember", "replay", "remember", "replay", "eager"]);
        assert_eq!(graphs.way(2, 100), Way::Replay(&mut 2));
    }

    #[test]
    fn where_others_are_at_work_time_is_taken_less_and_less_often_and_the_first_chance_is_used() {
        let mut graphs = Graphs::new(800, 4);
        let takes_time = |times: &usize| {
            assert_eq!(run(&mut graphs, 1), if *times == 2 { "remember" } else { "eager" });
            let (wanted, is_worth_a_wait) = graphs.waited();
            graphs.put_back(wanted);
            is_worth_a_wait
        };
        let taken: Vec<usize> = (1..=40).filter(takes_time).collect();
        assert_eq!(taken, [2, 4, 8, 16, 32]);
        assert_eq!(steps(&mut graphs, [1; 2], true), ["eager", "replay"]);
    }

    #[test]
    fn who_never_waits_has_to_for_a_graph() {
        let mut graphs = Graphs::new(800, 4);
        assert_eq!([1, 2, 2].map(|list| run(&mut graphs, list)), ["eager", "eager", "remember"]);
        assert!(graphs.is_never_waited_for());
        wait(&mut graphs, false);
        // Who waited once goes on not to.
        assert_eq!(run(&mut graphs, 2), "eager");
        assert!(!graphs.is_never_waited_for(), "it is not worth it each time");
        assert_eq!(run(&mut graphs, 2), "eager");
        assert!(graphs.is_never_waited_for());
        wait(&mut graphs, true);
        assert!(!graphs.is_never_waited_for());
        // It is remembered once, however often it comes until somebody waits; and who waited in between will again.
        assert_eq!([2, 1, 1, 1].map(|list| run(&mut graphs, list)), ["replay", "remember", "eager", "eager"]);
        let mut graphs = Graphs::new(800, 4);
        run(&mut graphs, 1);
        wait(&mut graphs, true);
        assert_eq!(run(&mut graphs, 1), "remember");
        assert!(!graphs.is_never_waited_for());
    }

    #[test]
    fn short_lists_are_not_worth_it() {
        let mut graphs = Graphs::new(800, 4);
        assert!((0..5).all(|_| graphs.way(1, 3) == Way::Eager));
        assert_eq!([graphs.way(1, 4) == Way::Eager, graphs.way(1, 4) == Way::Remember], [true, true]);
    }

    #[test]
    fn what_could_not_be_captured_is_tried_less_and_less() {
        let mut graphs = Graphs::new(800, 4);
        let tried = |_: &usize| {
            let ran = run(&mut graphs, 1);
            drop(graphs.waited());
            ran == "remember"
        };
        assert_eq!((1..=40).filter(tried).collect::<Vec<_>>(), [2, 4, 8, 16, 32]);
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let mut graphs = Graphs::new(100000, 4);
        let all = 0..2 * MOST_WANTED as u128;
        all.clone().for_each(|list| assert_eq!(run(&mut graphs, list), "eager"));
        let remembered =
            |graphs: &mut Graphs| all.clone().filter(|list| run(graphs, *list) == "remember").count();
        assert_eq!(remembered(&mut graphs), MOST_WANTED);
        wait(&mut graphs, true);
        assert_eq!(remembered(&mut graphs), 0);
        assert_eq!(remembered(&mut graphs), MOST_WANTED);
    }

    #[test]
    fn the_lists_that_came_last_are_known() {
        let mut graphs = Graphs::new(200, 4);
        let ways = steps(&mut graphs, [1, 1, 2, 1, 3, 1, 2], true);
        // 2 made room for 3, and not 1, which came between.
        assert_eq!(ways, ["eager", "remember", "eager", "replay", "eager", "replay", "eager"]);
        assert_eq!(graphs.all().count(), 1);
        // Any number of lists that come once leave no more behind than that.
        (10..1000).for_each(|list| assert_eq!(run(&mut graphs, list), "eager"));
        assert_eq!(graphs.known.len(), 2);
        // That of 1 stays until somebody knows that it is not under way.
        assert_eq!((graphs.all().collect::<Vec<_>>(), graphs.has_left()), (vec![&1], true));
        graphs.drop_left();
        assert_eq!((graphs.all().count(), graphs.has_left()), (0, false));
        steps(&mut graphs, [7, 7], true);
        assert_eq!(graphs.into_all().collect::<Vec<_>>(), [7]);
        // Nor is what made room made a graph.
        let mut graphs = Graphs::new(200, 4);
        assert_eq!([1, 1, 2, 3].map(|list| run(&mut graphs, list)), ["eager", "remember", "eager", "eager"]);
        assert!(graphs.waited().0.is_empty());
    }
}
