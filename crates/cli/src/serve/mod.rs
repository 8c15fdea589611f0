//! `anysplit serve`: OpenAI's API in front of a model.
//!
//! This process is the front: HTTP, text, metrics. Its child, the same command with [`worker::VARIABLE`] set, is the worker:
//! all ranks and their schedulers. They talk through the child's standard input and output. Under a launcher rank 0's
//! process is both, and the ranks are the launcher's.

mod args;
mod front;
mod start_up;
mod worker;

use std::time::Duration;

use engine::EngineOptions;

use crate::args::engine_options;
use crate::error::CliError;
use crate::interrupt::leave_to_rank_0;
use crate::membership::Membership;
use crate::model::OpenModel;
pub use args::ServeArgs;
pub use worker::is_this as is_worker;

/// What rank 0 may need beyond its limit to end.
const FLUSH: Duration = Duration::from_secs(3);

pub fn run(args: &ServeArgs, membership: &Membership) -> Result<(), CliError> {
    args.check()?;
    let options = engine_options(&args.model(), &args.split, &args.run, membership)?;
    if worker::is_this() {
        return worker::live(args, &options, membership);
    }
    let model = OpenModel::open(&args.model(), &args.split, &options, membership)?;
    if membership.ranks().is_none() {
        return front::with_child(args, &model);
    }
    let options = EngineOptions { grammars: model.grammars(), ..options };
    match membership.leads() {
        true => front::with_rank_0(args, &options, membership, model),
        false => {
            leave_to_rank_0(args.shutdown_timeout() + FLUSH)?;
            model.load(&options, membership, &args.run, true).map(drop)
        }
    }
}
