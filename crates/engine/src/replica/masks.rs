//! Which tokens may be next under a grammar: found out on a thread of its own while the ranks run the step that gives the
//! logits. Only what chooses from those waits for it.

use std::collections::BTreeMap;

use tensor::LogitEdit;

use super::flight::{AskOf, Flight};
use super::running::Running;
use crate::EngineError;
use crate::grammar::{Conforming, Start};
use crate::helper::Helper;
use crate::worker::LateEdits;

/// Which tokens may be next, `None` being all; or why there is none.
type Mask = Result<Option<Vec<u32>>, String>;

type MaskHelper = Helper<(u64, Conforming), (u64, Conforming, Mask)>;

/// What a completion conforms to.
pub struct Held {
    /// How far it has come; `None` while its next mask is found out.
    conforming: Option<Conforming>,
    pub mask: Mask,
}

impl Held {
    pub fn new((conforming, first): Start) -> Self {
        Held { conforming: Some(conforming), mask: Ok(first) }
    }

    /// Takes a token that the mask allowed; whether nothing can follow it.
    ///
    /// # Errors
    /// It costs too much to find out.
    pub fn take(&mut self, token: u32) -> Result<bool, String> {
        self.conforming.as_mut().expect("a token is chosen when its mask is there").take(token)
    }

    pub fn awaits_mask(&self) -> bool {
        self.conforming.is_none()
    }
}

/// The thread, once there is a grammar.
#[derive(Default)]
pub struct Masks {
    helper: Option<MaskHelper>,
}

impl Masks {
    /// Begins to find out a request's next mask.
    ///
    /// # Errors
    /// There is no thread.
    pub fn begin(&mut self, id: u64, running: &mut Running) -> Result<(), EngineError> {
        let Some(held) = &mut running.held else { return Ok(()) };
        if held.conforming.as_ref().is_some_and(Conforming::is_free) {
            held.mask = Ok(None);
        } else if let Some(conforming) = held.conforming.take() {
            let helper = match self.helper.take() {
                Some(helper) => helper,
                None => helper()?,
            };
            self.helper.insert(helper).give((id, conforming));
        }
        Ok(())
    }

    /// Waits until all that are asked for a token have their masks.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn join(&self, running: &mut BTreeMap<u64, Running>, asks: &[AskOf]) -> Result<(), EngineError> {
        for AskOf { id: asked, .. } in asks {
            while running.get(asked).is_some_and(Running::awaits_mask) {
                let helper = self.helper.as_ref().expect("it has begun");
                let (id, conforming, mask) = helper.next()?;
                // Else it was aborted.
                if let Some(held) = running.get_mut(&id).and_then(|running| running.held.as_mut()) {
                    (held.conforming, held.mask) = (Some(conforming), mask);
                }
            }
        }
        Ok(())
    }
}

/// What changes a step's logits, masks among it.
pub struct AfterMasks<'a> {
    pub masks: &'a Masks,
    pub running: &'a mut BTreeMap<u64, Running>,
    pub flight: &'a Flight,
    /// Whether the masks could be had.
    pub joined: Result<(), EngineError>,
}

impl LateEdits for AfterMasks<'_> {
    fn wait(&mut self) {
        self.joined = self.masks.join(self.running, &self.flight.asks);
    }

    fn make(&mut self) -> Vec<LogitEdit> {
        self.flight.edits(self.running)
    }
}

fn helper() -> Result<MaskHelper, EngineError> {
    Helper::start("masks", |(id, mut conforming): (u64, Conforming)| {
        let mask = conforming.mask();
        (id, conforming, mask)
    })
}
