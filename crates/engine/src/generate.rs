//! Requests on an engine: as one batch, or as they come.

use std::time::Instant;

use model::check_tokens;
use tensor::Part;

use crate::bubble::Fill;
use crate::data_parallel::ToReplica;
use crate::dispatch::Assigned;
use crate::replica::POLL;
use crate::sampling;
use crate::serving::{Event, LoadReport};
use crate::{Completion, Engine, EngineError, FinishReason, GenerateRequest};

impl Engine {
    /// Runs requests as one batch. `on_token(request, token)` is called for each token as it is chosen; `true`
    /// ends that request there.
    ///
    /// # Errors
    /// A request that can't be, which is found before anything runs; a rank that fails.
    pub fn generate(
        &mut self,
        requests: &[GenerateRequest],
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<Vec<Completion>, EngineError> {
        let requests: Vec<GenerateRequest> =
            requests.iter().map(|request| self.checked(request.clone())).collect::<Result<_, _>>()?;
        self.prepare(&requests)?;
        let started = Instant::now();
        let first = self.requests;
        self.requests += requests.len() as u64;
        let empty = Completion { token_ids: Vec::new(), finish_reason: FinishReason::Length };
        let mut completions = vec![empty; requests.len()];
        for (request, id) in requests.into_iter().zip(first..) {
            self.dispatch.submit(id, request);
        }
        let ran = self.run(first, &mut completions, on_token);
        if ran.is_err() {
            self.abort_all()?;
        }
        ran?;
        self.finish(started)?;
        Ok(completions)
    }

    /// Runs what was submitted to its end.
    fn run(
        &mut self,
        first: u64,
        completions: &mut [Completion],
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<(), EngineError> {
        let mut events = Vec::new();
        while !self.dispatch.is_idle() {
            if self.is_stopped() {
                return Err(EngineError::Interrupted);
            }
            self.step(&mut |event| events.push(event))?;
            self.leader.enter(Part::Text);
            let mut unwanted = Vec::new();
            let mut refused = None;
            for event in events.drain(..) {
                let (id, token, end) = match event {
                    Event::Token { id, token, end, .. } => (id, token, end),
                    Event::Refused { message, .. } => {
                        refused = Some(EngineError::Request(message));
                        continue;
                    }
                    _ => continue,
                };
                if unwanted.contains(&id) {
                    continue; // a pipeline may have gone on with it
                }
                let completion = &mut completions[(id - first) as usize];
                completion.token_ids.push(token);
                // The caller hears of every token, also of one that ends the completion.
                if on_token((id - first) as usize, token) {
                    completion.finish_reason = FinishReason::Stop;
                    if end.is_none() {
                        unwanted.push(id);
                    }
                } else if let Some(end) = end {
                    completion.finish_reason = end;
                }
            }
            self.leader.leave();
            unwanted.into_iter().try_for_each(|id| self.abort(id))?;
            refused.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    /// Takes a request, to be run with those that are there: [`Engine::open`] comes before the first. Events name it by `id`,
    /// which no request before has had.
    ///
    /// # Errors
    /// A request that can't be.
    pub fn submit(&mut self, id: u64, request: GenerateRequest) -> Result<(), EngineError> {
        let request = self.checked(request)?;
        self.dispatch.submit(id, request);
        Ok(())
    }

    /// Ends a request before its next step. No event of it follows.
    ///
    /// # Errors
    /// A rank fails.
    pub fn abort(&mut self, id: u64) -> Result<(), EngineError> {
        match self.dispatch.end(id) {
            None => Ok(()),
            Some(0) => {
                self.replica.abort(id);
                Ok(())
            }
            Some(replica) => self.peers.tell(&mut *self.leader, replica, &ToReplica::Abort { id }),
        }
    }

    fn abort_all(&mut self) -> Result<(), EngineError> {
        self.dispatch.ids().into_iter().try_for_each(|id| self.abort(id))?;
        self.replica.settle(&mut *self.leader, &mut |_| {})
    }

    /// Whether there is nothing to do, and [`Engine::load_report`] has no request any more. A step that was on its way when all
    /// its requests were aborted may still be counted later.
    pub fn is_idle(&self) -> bool {
        self.dispatch.is_idle() && self.replica.is_idle() && self.peers.have_read_all()
    }

    /// Goes on by a step, if there is anything to do; `on` hears of what becomes of requests as it happens. Returns at once
    /// if only other replicas are at work and have nothing to tell yet, after a moment.
    ///
    /// # Errors
    /// A rank fails.
    pub fn step(&mut self, on: &mut dyn FnMut(Event)) -> Result<(), EngineError> {
        self.leader.enter(Part::Scheduler);
        let mut refused = Vec::new();
        while let Some(Assigned { replica, id, request }) = self.dispatch.assign(self.max_num_seqs) {
            match replica {
                0 => {
                    if let Err(error) = self.replica.submit(id, request) {
                        refused.push(Event::Refused { id, message: error.to_string() });
                    }
                }
                _ => self.peers.tell(&mut *self.leader, replica, &ToReplica::Submit { id, request })?,
            }
        }
        let dispatch = &mut self.dispatch;
        let mut told = |event: Event| {
            if dispatch.note(&event) {
                on(event);
            }
        };
        std::mem::take(&mut self.unheard).into_iter().chain(refused).for_each(&mut told);
        let was_idle = self.replica.is_idle();
        self.replica.others_decode = self.peers.decode();
        self.leader.leave();
        self.replica.pump(&mut *self.leader, &mut told)?;
        self.peers.note_own(self.replica.load());
        let heard = self.peers.hear(&mut *self.leader, &mut told)?;
        if was_idle && !heard {
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// How busy all replicas are.
    pub fn load_report(&self) -> LoadReport {
        let mut load = self.replica.load();
        load.waiting += self.dispatch.waiting();
        self.peers.beside(load)
    }

    /// What the call came to.
    fn finish(&mut self, started: Instant) -> Result<(), EngineError> {
        self.replica.settle(&mut *self.leader, &mut |_| {})?;
        drop(self.take_steps()); // nobody asks here
        self.timing = self.replica.timing;
        let fill = self.replica.fill;
        self.note_bubble(started, &fill);
        for replica in 1..self.plan.mesh.dp {
            let (_, timing) = self.reports_of(replica)?;
            self.timing = self.timing.beside(timing);
        }
        Ok(())
    }

    pub(crate) fn note_bubble(&mut self, started: Instant, fill: &Fill) {
        let (wall_s, stages) = (started.elapsed().as_secs_f64(), self.plan.mesh.pp);
        self.bubble = (stages > 1).then(|| fill.bubble(wall_s, stages));
    }

    /// A request that can be, with no more tokens to come than there are positions.
    fn checked(&self, request: GenerateRequest) -> Result<GenerateRequest, EngineError> {
        sampling::check(&request, self.config().vocab_size)?;
        if request.max_tokens == 0 {
            return Err(EngineError::Request("max-tokens must be at least 1".into()));
        }
        self.check_prompt(&request.prompt, 1)?;
        let max_tokens = request.max_tokens.min(self.max_model_len - request.prompt.len());
        Ok(GenerateRequest { max_tokens, ..request })
    }

    pub(crate) fn check_prompt(&self, prompt: &[u32], to_come: usize) -> Result<(), EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::Request("the prompt is empty; give at least one token".into()));
        }
        check_tokens(self.config(), prompt)?;
        if prompt.len() + to_come > self.max_model_len {
            return Err(EngineError::Request(format!(
                "the prompt has {} tokens, which leaves no room: a sequence has at most {} positions, {}",
                prompt.len(),
                self.max_model_len,
                match self.max_model_len < self.full_model_len() {
                    true => "for which the KV cache has room",
                    false => "the longest that the model or --max-model-len allows",
                }
            )));
        }
        Ok(())
    }
}
