//! Where bytes wait on their way to a GPU.

use std::ops::Range;

/// A ring of parts of one size. Bytes go into a part until it is full; then the next one is entered, once what lay in it has left.
pub(crate) struct Ring {
    parts: usize,
    part_bytes: usize,
    part: usize,
    used: usize,
}

/// Where bytes go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// From the ring's start.
    pub at: Range<usize>,
    /// The part that was left for it, whose bytes are all on their way; and the part that is entered: its own must have arrived.
    pub turn: Option<(usize, usize)>,
}

impl Ring {
    /// So many parts of so many bytes.
    pub fn new(parts: usize, part_bytes: usize) -> Self {
        assert!(parts > 1, "one part is filled while another leaves");
        Ring { parts, part_bytes, part: 0, used: 0 }
    }

    /// Room for the first of so many bytes: for all, unless they are more than a part holds.
    pub fn place(&mut self, bytes: usize) -> Place {
        let bytes = bytes.min(self.part_bytes);
        let mut turn = None;
        if self.used + bytes > self.part_bytes {
            let left = self.part;
            (self.part, self.used) = ((self.part + 1) % self.parts, 0);
            turn = Some((left, self.part));
        }
        let start = self.part * self.part_bytes + self.used;
        self.used += bytes;
        Place { at: start..start + bytes, turn }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_on_behind_others_until_a_part_is_full() {
        let mut ring = Ring::new(2, 10);
        let places = [6, 4, 3, 8, 25].map(|bytes| ring.place(bytes));
        let expected = [
            (0..6, None),
            (6..10, None),
            (10..13, Some((0, 1))),
            (0..8, Some((1, 0))),
            (10..20, Some((0, 1))),
        ];
        assert_eq!(places, expected.map(|(at, turn)| Place { at, turn }));
    }
}
