//! Stop strings over a stream of text.

use std::sync::Arc;

/// The text up to a stop string, and which one it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Text before the stop string that had not been given out yet.
    pub text: String,
    /// The stop string that was found; it is not part of `text`.
    pub stop: String,
}

/// Finds stop strings in text that comes in pieces, across the pieces' borders.
///
/// Only what can still become a stop string is held back. Where one piece completes several of them, the one that
/// begins first wins, and of those the longest. A stop string that is complete is never passed over because a longer
/// one could follow with the next piece: generation ends as soon as any is there.
///
/// One automaton of Knuth, Morris and Pratt per stop string, so that a piece costs its length times their number. Clones
/// share them.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    held: String,
}

#[derive(Debug, Clone)]
struct Pattern {
    text: Arc<str>,
    /// `fallback[i]`: the length of the longest proper prefix that ends `text[..=i]`.
    fallback: Arc<[usize]>,
    /// How many bytes of the pattern end the text seen so far.
    matched: usize,
}

impl StopMatcher {
    /// A matcher of these stop strings; with none, text passes through.
    ///
    /// # Panics
    /// If a stop string is empty: whoever takes them from a user refuses that.
    pub fn new<S: Into<String>>(stops: impl IntoIterator<Item = S>) -> Self {
        let patterns = stops.into_iter().map(|stop| Pattern::new(stop.into())).collect();
        Self { patterns, held: String::new() }
    }

    /// Takes the next piece. `Ok` is text to give out, perhaps empty; `Err` is the end of the text.
    ///
    /// # Errors
    /// [`Stopped`] once a stop string is complete. The matcher is then as new.
    pub fn push(&mut self, piece: &str) -> Result<String, Stopped> {
        let text_start = self.held.len();
        self.held.push_str(piece);
        let found = self
            .patterns
            .iter_mut()
            .filter_map(|pattern| {
                let end = text_start + pattern.advance(piece.as_bytes())?;
                Some((end - pattern.text.len(), &*pattern.text))
            })
            .min_by_key(|&(start, stop)| (start, std::cmp::Reverse(stop.len())));
        if let Some((start, stop)) = found {
            let stop = stop.to_string();
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            self.patterns.iter_mut().for_each(|pattern| pattern.matched = 0);
            return Err(Stopped { text, stop });
        }
        // A stop string's first byte begins a character, so what precedes it ends with a whole one.
        let held_len = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - held_len);
        Ok(std::mem::replace(&mut self.held, held))
    }

    /// The text is over: gives out what was held back.
    pub fn finish(&mut self) -> String {
        self.patterns.iter_mut().for_each(|pattern| pattern.matched = 0);
        std::mem::take(&mut self.held)
    }
}

impl Pattern {
    fn new(text: String) -> Self {
        assert!(!text.is_empty(), "a stop string is empty");
        let mut fallback = vec![0; text.len()];
        let mut matched = 0;
        for (index, &byte) in text.as_bytes().iter().enumerate().skip(1) {
            matched = step(text.as_bytes(), &fallback, matched, byte);
            fallback[index] = matched;
        }
        Self { text: text.into(), fallback: fallback.into(), matched: 0 }
    }

    /// Takes bytes up to the first place where the pattern is complete; returns how many those were.
    fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, &byte) in bytes.iter().enumerate() {
            self.matched = step(self.text.as_bytes(), &self.fallback, self.matched, byte);
            if self.matched == self.text.len() {
                return Some(index + 1);
            }
        }
        None
    }
}

/// How much of a pattern is there with one more byte; `matched` is what was, less than all of it.
fn step(text: &[u8], fallback: &[usize], mut matched: usize, byte: u8) -> usize {
    while matched > 0 && text[matched] != byte {
        matched = fallback[matched - 1];
    }
    matched + usize::from(text[matched] == byte)
}
