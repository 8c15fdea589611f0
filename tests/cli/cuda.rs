//! Models on GPUs, under the real command line: NVIDIA's driver and compiler are libraries that stand for them, and kernels run on
//! the processor.

use serde_json::{Value, json};

use crate::checkpoints::{golden, golden_prompt};
use crate::child::{Anysplit, anysplit};
use crate::served::{Served, greedy};
use crate::stand_ins;

/// The command, where those libraries are found. `None` without a C++ compiler.
fn on_gpu(arguments: &str) -> Option<Anysplit> {
    let folder = stand_ins::libraries()?;
    let command = anysplit(arguments).env("LD_LIBRARY_PATH", stand_ins::search_path(folder));
    let sized = command.env("FAKE_FREE_BYTES", "2000000000").env("FAKE_TOTAL_BYTES", "2000000000");
    Some(sized.env("XDG_CACHE_HOME", folder.join("cache")))
}

/// The same, where it is known that there is a compiler.
fn there(arguments: &str) -> Anysplit {
    on_gpu(arguments).expect("it was there before")
}

/// A completion of a golden checkpoint in f32.
fn completion(command: Anysplit) -> Value {
    let prompt = golden_prompt("llama");
    let command = command.args("generate --max-tokens 9 --json --dtype float32 --prompt-ids").arg(prompt);
    command.model(golden("llama")).json()
}

#[test]
fn a_completion_on_a_gpu_has_the_processors_tokens() {
    let Some(gpu) = on_gpu("") else { return };
    let on_gpu = completion(gpu.env("ANYSPLIT_DEVICE", "cuda"));
    let on_cpu = completion(anysplit("").env("ANYSPLIT_DEVICE", "cpu"));
    assert_eq!(on_gpu["token_ids"], on_cpu["token_ids"]);
    // It is the best there is.
    let automatic = completion(there(""));
    assert_eq!(automatic["token_ids"], on_cpu["token_ids"]);
}
