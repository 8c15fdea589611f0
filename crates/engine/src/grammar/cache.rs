//! Grammars that were made ready lately. Completions of one request, and requests of one program, have the same.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::conforming::Held;
use crate::Grammar;

/// So many are kept: each may take some MB.
const KEPT: usize = 8;

/// A grammar that is ready: before the first token, and which may be first. One line where it can't be used.
pub(super) type Compiled = Result<(Held, Vec<u32>), String>;

/// A place for one that is ready, or on its way there.
type Slot = Arc<Mutex<Option<Compiled>>>;

/// Grammars by their texts, the last used first.
#[derive(Default)]
pub(super) struct Cache {
    slots: Mutex<VecDeque<(Grammar, Slot)>>,
}

impl Cache {
    /// Uses a grammar. If none of its text is kept it is compiled; whoever wants the same one meanwhile waits.
    pub fn with<T>(
        &self,
        grammar: &Grammar,
        compile: impl FnOnce() -> Compiled,
        with: impl FnOnce(&Compiled) -> T,
    ) -> T {
        let slot = self.slot(grammar);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        with(slot.get_or_insert_with(compile))
    }

    fn slot(&self, grammar: &Grammar) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let known = slots.iter().position(|(kept, _)| kept == grammar).and_then(|at| slots.remove(at));
        let entry = known.unwrap_or_else(|| (grammar.clone(), Slot::default()));
        let slot = entry.1.clone();
        slots.push_front(entry);
        slots.truncate(KEPT);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_compiled_once_while_it_is_among_the_last_used() {
        let cache = Cache::default();
        let mut compiled = Vec::new();
        let mut used = |n: usize| {
            let compile = || {
                compiled.push(n);
                Err(n.to_string())
            };
            let found =
                cache.with(&Grammar::Regex(n.to_string()), compile, |found| found.as_ref().err().cloned());
            assert_eq!(found, Some(n.to_string()));
        };
        (0..KEPT).for_each(&mut used);
        used(0);
        used(KEPT); // 1 goes
        used(0);
        used(1);
        let want: Vec<usize> = (0..=KEPT).chain([1]).collect();
        assert_eq!(compiled, want);
    }
}
