//! What lies on a GPU of a program: made once, since a model comes with the same one again and again.

use std::cell::RefCell;
use std::rc::Rc;

use tensor::Program;

use crate::tensor::Queue;

/// What was made of the program that came last.
pub(crate) struct OfProgram<T>(RefCell<Option<Made<T>>>);

struct Made<T> {
    merges: Vec<u32>,
    what: Rc<T>,
}

impl<T> Default for OfProgram<T> {
    fn default() -> Self {
        OfProgram(RefCell::new(None))
    }
}

impl<T> OfProgram<T> {
    /// What is made of a program's merges alone.
    pub fn get(&self, queue: &Queue, program: &Program, make: impl FnOnce() -> T) -> Rc<T> {
        let mut last = self.0.borrow_mut();
        if let Some(made) = &*last
            && made.merges == program.merges
        {
            return made.what.clone();
        }
        let what = Rc::new(make());
        // After a fault nothing may have been written.
        *last = queue.0.is_sound().then(|| Made { merges: program.merges.clone(), what: what.clone() });
        what
    }
}
