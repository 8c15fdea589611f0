//! The worker: all ranks in one process, which the front has started.

use std::io::{stdin, stdout};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use engine::serving::frames::{self, Sending};
use engine::serving::{self, FromEngine, ToEngine};
use engine::{Engine, EngineOptions};

use super::ServeArgs;
use crate::error::{CliError, one_line};
use crate::launch::signals;
use crate::membership::Membership;
use crate::model::OpenModel;

/// Set in the worker's environment.
pub const VARIABLE: &str = "ANYSPLIT_SERVE_WORKER";

/// How long a worker may take to end after its front is gone.
const GRACE: Duration = Duration::from_secs(2);

/// Whether this process is one.
pub fn is_this() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| !value.is_empty())
}

/// The life of a worker. What goes wrong is told to the front, which prints it. Who asks all processes of a service to end means
/// that running requests end first: so the worker ends when its front does, and not before.
pub fn live(args: &ServeArgs, options: &EngineOptions, membership: &Membership) -> Result<(), CliError> {
    signals::leave_the_end_to_another()?;
    let out: Sending<FromEngine> = frames::send(stdout())?;
    let inbox = until_the_front_ends(frames::receive(stdin())?)?;
    let told = out.sender.clone();
    let result = OpenModel::open(&args.model(), &args.split, options, membership).and_then(|model| {
        let progress = |done, total| drop(told.send(FromEngine::Loading { done, total }));
        let options = EngineOptions { grammars: model.grammars(), ..options.clone() };
        let loaded = model.load_with(&options, membership, &args.run, true, &progress)?;
        let mut engine = loaded.expect("a process on its own has the engine");
        engine.open(&args.pool())?;
        Ok(serving::run(&mut engine, &inbox, &told)?)
    });
    if let Err(error) = result {
        let (message, is_usage) = (one_line(&error.to_string()), error.status() == 2);
        let _ = told.send(FromEngine::Failed { message, is_usage });
    }
    drop(told);
    out.finish();
    // Ranks that hang must not keep this process.
    std::process::exit(0);
}

/// Hands messages on. When they end the front is gone: then this process ends, also in the middle of a step.
fn until_the_front_ends(messages: Receiver<ToEngine>) -> Result<Receiver<ToEngine>, CliError> {
    let (sender, receiver) = channel();
    let hand_on = move || {
        messages.iter().for_each(|message| drop(sender.send(message)));
        drop(sender);
        std::thread::sleep(GRACE);
        std::process::exit(1);
    };
    std::thread::Builder::new().name("front".into()).spawn(hand_on)?;
    Ok(receiver)
}

/// The front's end: the worker as a child, and the channels to it.
pub struct Worker {
    /// The process.
    pub child: Child,
    /// To it. It ends when this is dropped, with all its clones.
    pub to_engine: Sender<ToEngine>,
    /// From it.
    pub from_engine: Receiver<FromEngine>,
}

impl Worker {
    /// Starts one, with this process's own command line.
    pub fn start() -> Result<Worker, CliError> {
        use std::os::unix::process::CommandExt;
        let failed = |e: std::io::Error| CliError::failed(format!("cannot start the worker process: {e}"));
        let program = std::env::current_exe().map_err(failed)?;
        // A group of its own: Ctrl-C is for the front, which lets running requests end.
        let mut child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, "1")
            // Only the front asks for keys.
            .env_remove("ANYSPLIT_API_KEY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (stdin, stdout): (Option<ChildStdin>, Option<ChildStdout>) =
            (child.stdin.take(), child.stdout.take());
        let (stdin, stdout) = stdin.zip(stdout).expect("both are piped");
        let to_engine = frames::send(stdin)?.sender;
        Ok(Worker { child, to_engine, from_engine: frames::receive(stdout)? })
    }
}

/// A worker that is a thread of this process, rank 0 of a job.
pub fn serve_here(
    mut engine: Engine,
    args: &ServeArgs,
    inbox: &Receiver<ToEngine>,
    out: &Sender<FromEngine>,
) -> Result<(), CliError> {
    engine.open(&args.pool())?;
    Ok(serving::run(&mut engine, inbox, out)?)
}
