//! The worker's loop.

use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use super::{EngineInfo, Event, FromEngine, LoadReport, ToEngine};
use crate::{Engine, EngineError};

/// Serves what comes in until it is told to stop or nobody is there any more. [`Engine::open`] comes before.
///
/// # Errors
/// A rank fails.
pub fn run(
    engine: &mut Engine,
    inbox: &Receiver<ToEngine>,
    outbox: &Sender<FromEngine>,
) -> Result<(), EngineError> {
    let _ = outbox.send(FromEngine::Ready(info(engine)?));
    let mut told = LoadReport::default();
    loop {
        // Without work it waits for some, else it takes what is there.
        let mut next = match engine.is_idle() {
            true => inbox.recv().map_err(|_| TryRecvError::Disconnected),
            false => inbox.try_recv(),
        };
        loop {
            match next {
                Ok(ToEngine::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                Ok(message) => take(engine, message, outbox)?,
                Err(TryRecvError::Empty) => break,
            }
            next = inbox.try_recv();
        }
        // Who asks needs not wait for a step.
        if let Some(pulses) = engine.take_pulses() {
            let _ = outbox.send(FromEngine::Pulses(pulses));
        }
        if !engine.is_idle() {
            step(engine, outbox)?;
        }
        let load = engine.load_report();
        if load != told {
            told = load;
            let _ = outbox.send(FromEngine::Load(load, engine.take_steps()));
        }
    }
}

fn take(engine: &mut Engine, message: ToEngine, outbox: &Sender<FromEngine>) -> Result<(), EngineError> {
    match message {
        ToEngine::Submit { id, batch } => {
            for (id, request) in (id..).zip(batch.requests()) {
                if let Err(error) = engine.submit(id, request) {
                    let refused = Event::Refused { id, message: error.to_string() };
                    let _ = outbox.send(FromEngine::Events(vec![refused]));
                }
            }
        }
        ToEngine::Abort { id } => engine.abort(id)?,
        ToEngine::Pulse => engine.ask_for_pulses()?,
        ToEngine::Stop => unreachable!("the loop ends with it"),
    }
    Ok(())
}

/// One step. That a request has started is told before it, the rest together behind it.
fn step(engine: &mut Engine, outbox: &Sender<FromEngine>) -> Result<(), EngineError> {
    let mut events = Vec::new();
    engine.step(&mut |event| match event {
        Event::Started { .. } => {
            let _ = outbox.send(FromEngine::Events(vec![event]));
        }
        event => events.push(event),
    })?;
    if !events.is_empty() {
        let _ = outbox.send(FromEngine::Events(events));
    }
    Ok(())
}

fn info(engine: &mut Engine) -> Result<EngineInfo, EngineError> {
    let ranks = engine.reports()?;
    let (mesh, kept) = (engine.plan().mesh, engine.kept_as());
    Ok(EngineInfo {
        max_model_len: engine.max_model_len(),
        full_model_len: engine.full_model_len(),
        vocab_size: engine.config().vocab_size,
        max_num_seqs: engine.max_num_seqs().saturating_mul(mesh.dp),
        kv_cache_tokens: engine.kv_cache_tokens(),
        kv_cache_bytes: ranks.iter().map(|rank| rank.kv_cache_bytes).sum(),
        kv_cache_warnings: engine.kv_cache_warnings().to_vec(),
        parallel: (mesh.tp, mesh.pp, mesh.dp, mesh.ep, engine.plan().layout.sequence_parallel),
        dtype: engine.dtype().name().into(),
        quantization: kept.layers(engine.config()).map(Into::into),
        reduction: engine.reduction().to_string(),
        load_s: engine.load_time().as_secs_f64(),
        ranks,
    })
}
