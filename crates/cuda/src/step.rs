//! A step's positions and block tables, on the GPU and, where sizes of grids follow from them, on the host.

use std::iter::repeat_n;
use std::rc::Rc;

use tensor::{KV_BLOCK, SEGMENT, SequenceSpan, StepMeta};

use crate::driver::Address;
use crate::memory::Block;
use crate::tensor::Queue;

/// A sequence with at most so many rows is one whose segments are worked on side by side.
const SHORT_ROWS: usize = 8;
/// The most rows of a step that a block works on.
const MOST_ROWS: usize = 128;
/// No row.
const NONE: u32 = u32::MAX;

/// A step's positions and block tables. All goes to the GPU at once. Rows and short sequences are filled up to as many as
/// [`Queue::filled_up`] says; what is not there has u32::MAX where its block table or number would be.
pub struct CudaStep {
    /// All that follows, one behind the other.
    _block: Rc<Block>,
    pub(crate) rows: usize,
    pub(crate) sequences: Vec<SequenceSpan>,
    /// One per row.
    pub(crate) positions: Address,
    /// Where in `tables` that of each row's sequence begins.
    pub(crate) table_of_row: Address,
    /// Of each sequence its first row, rows, the position of the first, and where in `tables` its own begins.
    pub(crate) spans: Address,
    /// Sequences with few rows, and those with many.
    pub(crate) short: Group,
    pub(crate) long: Group,
    pub(crate) tables: Address,
    /// The highest number of a block that rows of this step are written to.
    pub(crate) highest_block: Option<u32>,
    /// As many segments as any of its sequences has, or some more.
    segments: usize,
}

/// Lists of rows that a step comes with and that operations will ask for: they are on the GPU already.
#[derive(Default)]
pub(crate) struct KnownLists {
    lists: Vec<(Vec<u32>, Address)>,
    /// How many rows there are, and where that lies.
    rows: Option<(usize, Address)>,
    /// Where they lie.
    block: Option<Rc<Block>>,
}

/// A list on the GPU, filled up with zeros.
pub(crate) struct List {
    pub at: Address,
    _own: Option<Block>,
}

impl KnownLists {
    pub fn list(&self, queue: &Queue, numbers: &[u32]) -> List {
        if let Some((_, at)) = self.lists.iter().find(|(list, _)| list == numbers) {
            return List { at: *at, _own: None };
        }
        let more = queue.filled_up(numbers.len()) - numbers.len();
        let own = queue.numbers(numbers.iter().copied().chain(repeat_n(0, more)));
        List { at: own.at, _own: Some(own) }
    }

    /// A number of rows, for kernels that work on rows that are not there too.
    pub fn count(&self, queue: &Queue, rows: usize) -> List {
        match self.rows {
            Some((known, at)) if known == rows => List { at, _own: None },
            _ => {
                let own = queue.numbers([number(rows)]);
                List { at: own.at, _own: Some(own) }
            }
        }
    }
}

/// Some of a step's sequences.
pub(crate) struct Group {
    /// How many, filled up.
    pub count: usize,
    /// The most rows that one of them has.
    pub most_rows: usize,
    /// Which.
    pub list: Address,
    /// Of each as many rows as the one with most has; those that are not there are u32::MAX.
    pub rows: Address,
}

/// Numbers that go to the GPU together; each part's place among them.
#[derive(Default)]
struct Numbers(Vec<u32>);

impl Numbers {
    fn put(&mut self, part: impl IntoIterator<Item = u32>) -> usize {
        let at = self.0.len();
        self.0.extend(part);
        at
    }
}

fn number(x: usize) -> u32 {
    u32::try_from(x).expect("rows, positions and tables have fewer than 2^32")
}

impl CudaStep {
    /// Of what the step before left in `known` nothing is needed any more.
    pub(crate) fn new(queue: &Queue, meta: &StepMeta, known: &mut KnownLists) -> Self {
        *known = KnownLists::default();
        let sequences: Vec<SequenceSpan> =
            meta.sequences.iter().filter(|sequence| !sequence.rows.is_empty()).cloned().collect();
        let filled_up = |rows: usize| queue.filled_up(rows);
        let mut numbers = Numbers::default();
        let lengths = sequences.iter().map(|sequence| sequence.block_table.len());
        let ends = lengths.scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let tables: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let of_rows = sequences.iter().zip(&tables);
        let rows = numbers.put([number(meta.num_rows())]);
        let more = filled_up(meta.num_rows()) - meta.num_rows();
        let positions = numbers.put(meta.positions().into_iter().chain(repeat_n(0, more)));
        let table_of_row = numbers.put(
            of_rows
                .clone()
                .flat_map(|(s, &table)| s.rows.clone().map(move |_| number(table)))
                .chain(repeat_n(NONE, more)),
        );
        let lists = [&meta.tokens, &meta.logit_rows].map(|list| {
            let more = filled_up(list.len()) - list.len();
            (list, numbers.put(list.iter().copied().chain(repeat_n(0, more))))
        });
        let spans = numbers
            .put(of_rows.flat_map(|(s, &table)| [s.rows.start, s.rows.len(), s.start, table]).map(number));
        numbers.put(repeat_n(0, 4 * (filled_up(sequences.len()) - sequences.len())));
        let mut group = |is_short: bool| {
            let is_in = |s: &SequenceSpan| (s.rows.len() <= SHORT_ROWS) == is_short;
            let members = || sequences.iter().enumerate().filter(|(_, s)| is_in(s));
            let most_rows = members().map(|(_, s)| s.rows.len()).max().unwrap_or(0);
            let row_of = |s: &SequenceSpan, i| if i < s.rows.len() { number(s.rows.start + i) } else { NONE };
            let count = members().count();
            // Those that are long are never the same again.
            let more = if is_short { filled_up(count) - count } else { 0 };
            let list = numbers.put(members().map(|(i, _)| number(i)).chain(repeat_n(NONE, more)));
            let rows = members().flat_map(|(_, s)| (0..most_rows).map(move |i| row_of(s, i)));
            let rows = numbers.put(rows.chain(repeat_n(NONE, more * most_rows)));
            (count + more, most_rows, list, rows)
        };
        let (short, long) = (group(true), group(false));
        // Behind all else, so that the rest stays where it is when tables grow.
        let tables = numbers.put(sequences.iter().flat_map(|s| s.block_table.iter().copied()));

        // The next steps' tables, which are a little longer, are to have the same address and as many bytes.
        numbers.0.resize(numbers.0.len().next_power_of_two(), 0);
        let block = Rc::new(queue.numbers(numbers.0));
        let at = |index: usize| block.at + 4 * index as u64;
        known.rows = Some((meta.num_rows(), at(rows)));
        known.lists = lists.map(|(list, place)| (list.clone(), at(place))).into();
        known.block = Some(block.clone());
        let group =
            |(count, most_rows, list, rows)| Group { count, most_rows, list: at(list), rows: at(rows) };
        let written = |s: &SequenceSpan| {
            let end = s.start + s.rows.len();
            s.block_table[s.start / KV_BLOCK..end.div_ceil(KV_BLOCK)].iter().copied().max()
        };
        let longest = sequences.iter().map(|s| s.start + s.rows.len()).max().unwrap_or(0);
        CudaStep {
            rows: meta.num_rows(),
            positions: at(positions),
            table_of_row: at(table_of_row),
            spans: at(spans),
            short: group(short),
            long: group(long),
            tables: at(tables),
            highest_block: sequences.iter().filter_map(written).max(),
            segments: longest.div_ceil(SEGMENT).next_power_of_two(),
            sequences,
            _block: block,
        }
    }

    /// How many segments at most the rows see that a block works on. It changes rarely from step to step.
    pub(crate) fn segments(&self, window: Option<usize>) -> usize {
        let in_window = |window: usize| (window + MOST_ROWS) / SEGMENT + 2;
        window.map_or(self.segments, |window| self.segments.min(in_window(window)))
    }
}
