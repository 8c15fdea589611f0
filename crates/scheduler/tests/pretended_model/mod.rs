//! A model for simulations: the next token is a hash of all tokens before it, which it reads back from a paged
//! cache. A block that two sequences share, or a position that was skipped, changes every token that follows.

use scheduler::{BatchItem, Request};

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Both ends included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.between(1, n) == 1
    }
}

/// The token after `tokens`, and whether it ends the text.
fn next_token(tokens: impl Iterator<Item = u32>) -> (u32, bool) {
    let seed = tokens.fold(0, |hash, token| Random(hash ^ u64::from(token)).next());
    let token = (seed % 1000) as u32;
    (token, token.is_multiple_of(32))
}

/// What a request gets when nobody else is there.
pub fn alone(request: &Request) -> Vec<u32> {
    let mut tokens = request.prompt.clone();
    loop {
        let (token, stop) = next_token(tokens.iter().copied());
        tokens.push(token);
        if stop || tokens.len() == request.prompt.len() + request.max_tokens {
            return tokens.split_off(request.prompt.len());
        }
    }
}

/// The cache; the pretended key of a token is the token.
pub struct Model {
    block_size: usize,
    slots: Vec<u32>,
}

impl Model {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        Model { block_size, slots: vec![u32::MAX; num_blocks * block_size] }
    }

    /// Computes one item; its output, if it samples. A request is told to stop by its token only, so that
    /// `max_tokens` is the scheduler's to keep.
    pub fn run(&mut self, item: &BatchItem) -> Option<(u64, u32, bool)> {
        let end = item.start + item.tokens.len();
        assert_eq!(
            item.block_table.len(),
            end.div_ceil(self.block_size),
            "blocks up to these tokens, and no more"
        );
        let slot =
            |p: usize| item.block_table[p / self.block_size] as usize * self.block_size + p % self.block_size;
        for (i, &token) in item.tokens.iter().enumerate() {
            self.slots[slot(item.start + i)] = token;
        }
        let (token, stop) = next_token((0..end).map(|p| self.slots[slot(p)]));
        item.samples.then_some((item.id, token, stop))
    }
}
