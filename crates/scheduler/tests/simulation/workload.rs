//! Who asks for what: prompts that begin alike, are the same, or go on where an answer ended.

use scheduler::{CacheUse, Request};

use crate::random::Random;

pub struct Workload {
    /// What prompts begin with.
    openings: Vec<Vec<u32>>,
    /// Prompts of before, and conversations.
    history: Vec<Vec<u32>>,
    /// Tokens that the cache has room for.
    capacity: usize,
    /// Requests to come.
    left: usize,
    next_id: u64,
}

impl Workload {
    pub fn new(random: &mut Random, capacity: usize) -> Self {
        let openings = (0..3).map(|_| tokens(random, 1, 40)).collect();
        Workload { openings, history: Vec::new(), capacity, left: random.between(1, 24), next_id: 0 }
    }

    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    pub fn next(&mut self, random: &mut Random) -> Request {
        self.left -= 1;
        self.next_id += 1;
        let mut prompt = match random.between(0, 5) {
            0 => Vec::new(),
            1 | 2 => self.openings[random.between(0, self.openings.len() - 1)].clone(),
            _ if self.history.is_empty() => self.openings[0].clone(),
            _ => self.history[random.between(0, self.history.len() - 1)].clone(),
        };
        // The same again, part of it, or more.
        match random.between(0, 3) {
            0 => prompt.truncate(random.between(1, 60)),
            1 => {}
            _ => prompt.extend(tokens(random, 1, 20)),
        }
        if prompt.is_empty() {
            prompt = tokens(random, 1, 60);
        }
        // Seldom more than there is room for, and sometimes exactly that.
        let room = self.capacity + usize::from(random.one_in(20));
        prompt.truncate((room - random.between(0, room - 1)).max(prompt.len().min(room / 2)).max(1));
        let rest = self.capacity.saturating_sub(prompt.len()).max(1);
        let max_tokens = if random.one_in(6) { rest } else { random.between(1, 30).min(rest) };
        self.history.push(prompt.clone());
        let cache = CacheUse { salt: u64::from(random.one_in(6)), reads: !random.one_in(6) };
        Request { id: self.next_id, prompt, max_tokens, cache }
    }

    /// Its next turn may come.
    pub fn ended(&mut self, random: &mut Random, request: &Request, sampled: &[u32]) {
        if random.one_in(2) {
            self.history.push([&request.prompt[..], sampled].concat());
        }
    }
}

fn tokens(random: &mut Random, low: usize, high: usize) -> Vec<u32> {
    (0..random.between(low, high)).map(|_| random.next() as u32 % 1000).collect()
}
