//! A model for simulations. What it keeps of a token is a hash of that and of what it kept of the one before; the next
//! token is a hash of all that a sequence's blocks contain. It reads both back from its paged cache, so a block that two
//! sequences write to, contents of other tokens, a missed copy or a position that was skipped change every token that
//! follows.

use scheduler::{Batch, BatchItem, Request};

use crate::random::Random;

/// What is kept of a token behind what is kept of the one before it. Keys of other salts are other keys here, so that
/// reading them shows.
fn key(before: u64, token: u32) -> u64 {
    Random(before ^ u64::from(token)).next()
}

/// The token after positions with these keys, and whether it ends the text.
fn next_token(keys: impl Iterator<Item = u64>) -> (u32, bool) {
    let seed =
        keys.fold(0, |hash: u64, key| (hash ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23));
    let token = (seed % 1000) as u32;
    (token, token.is_multiple_of(32))
}

/// What a request gets when nobody else is there.
pub fn alone(request: &Request) -> Vec<u32> {
    let (mut keys, mut sampled) = (Vec::new(), Vec::new());
    let push =
        |keys: &mut Vec<u64>, token| keys.push(key(*keys.last().unwrap_or(&request.cache.salt), token));
    request.prompt.iter().for_each(|&token| push(&mut keys, token));
    loop {
        let (token, stop) = next_token(keys.iter().copied());
        sampled.push(token);
        if stop || sampled.len() == request.max_tokens {
            return sampled;
        }
        push(&mut keys, token);
    }
}

/// The cache.
pub struct Model {
    block_size: usize,
    slots: Vec<u64>,
}

impl Model {
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        Model { block_size, slots: vec![u64::MAX; num_blocks * block_size] }
    }

    /// Computes one step: `(id, token, stop)` of each item that samples. A request is told to stop by its token only, so
    /// that `max_tokens` is the scheduler's to keep. `salt` says that of a request.
    pub fn run(&mut self, batch: &Batch, salt: impl Fn(u64) -> u64) -> Vec<(u64, u32, bool)> {
        let size = self.block_size;
        for &(from, to) in &batch.copies {
            let (from, to) = (from as usize * size, to as usize * size);
            self.slots.copy_within(from..from + size, to);
        }
        // All keys are there before the first is read, as in each layer of a model.
        for item in &batch.items {
            let end = item.start + item.tokens.len();
            assert_eq!(item.block_table.len(), end.div_ceil(size), "blocks up to these tokens, and no more");
            for (position, &token) in (item.start..).zip(&item.tokens) {
                let before =
                    position.checked_sub(1).map_or(salt(item.id), |p| self.slots[self.slot(item, p)]);
                let slot = self.slot(item, position);
                self.slots[slot] = key(before, token);
            }
        }
        let sampling = batch.items.iter().filter(|item| item.samples);
        let output = |item: &BatchItem| {
            let end = item.start + item.tokens.len();
            let (token, stop) = next_token((0..end).map(|p| self.slots[self.slot(item, p)]));
            (item.id, token, stop)
        };
        sampling.map(output).collect()
    }

    fn slot(&self, item: &BatchItem, position: usize) -> usize {
        item.block_table[position / self.block_size] as usize * self.block_size + position % self.block_size
    }
}
