//! A model named by its hub id is downloaded once, and then there.

#[allow(dead_code)] // its other half is for the tests of the checkpoint crate
#[path = "../../crates/checkpoint/tests/common/hub_server.rs"]
pub mod hub_server;

use std::net::TcpListener;

use hub_server::{Hub, Server};

use crate::checkpoints::{Copy, golden};
use crate::child::{Anysplit, anysplit};

const ID: &str = "org/tiny";

/// A hub with a golden checkpoint.
pub fn hub_of(name: &str) -> Hub {
    let entries = std::fs::read_dir(golden(name)).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: std::path::PathBuf| {
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
    };
    Hub { id: ID, files: entries.map(file).collect(), ..Hub::default() }
}

/// `anysplit` with a cache of its own and this hub.
pub fn with_hub(arguments: &str, endpoint: &str, home: &Copy) -> Anysplit {
    anysplit(arguments).env("HF_ENDPOINT", endpoint).env("HF_HOME", home.path()).env("HOME", home.path())
}

#[test]
fn a_model_is_downloaded_once_and_works_offline_then() {
    let (server, home) = (Server::start(hub_of("llama")), Copy::empty());
    let arguments = "score --json --tp 2 --prompt-ids 1,2,3 --model org/tiny";
    let want = anysplit("score --json --prompt-ids 1,2,3").model(golden("llama")).prints();
    assert_eq!(with_hub(arguments, &server.endpoint(), &home).prints(), want);
    let downloads = server.requests_of("model.safetensors").len();
    assert!(downloads > 0);
    assert_eq!(with_hub(arguments, &server.endpoint(), &home).prints(), want);
    assert_eq!(server.requests_of("model.safetensors").len(), downloads, "it is not fetched again");

    let before = server.requests.lock().unwrap().len();
    let offline = with_hub(arguments, &server.endpoint(), &home).env("HF_HUB_OFFLINE", "1");
    assert_eq!(offline.prints(), want);
    assert_eq!(server.requests.lock().unwrap().len(), before, "offline is offline");
    // Its tokenizer has come along.
    let text = with_hub("generate hello --max-tokens 2 --model org/tiny", &server.endpoint(), &home);
    assert!(!text.env("HF_HUB_OFFLINE", "1").prints().is_empty());
}

#[test]
fn a_plan_needs_no_weights_of_the_hub() {
    let (server, home) = (Server::start(hub_of("qwen3_old_config")), Copy::empty());
    let want = anysplit("tp-plan --tp 3 --json").model(golden("qwen3_old_config")).prints();
    assert_eq!(with_hub("tp-plan --tp 3 --json --model org/tiny", &server.endpoint(), &home).prints(), want);
    assert!(server.requests_of(".safetensors").is_empty(), "no weights are fetched");
    let random = "score --json --load-format random --prompt-ids 1,2 --model org/tiny";
    with_hub(random, &server.endpoint(), &home).prints();
    assert!(server.requests_of(".safetensors").is_empty(), "nor for random ones");
}

#[test]
fn a_broken_download_is_taken_up_where_it_broke() {
    let mut hub = hub_of("qwen2");
    hub.breaks.insert("model.safetensors".into(), 40_000);
    let (server, home) = (Server::start(hub), Copy::empty());
    let found =
        with_hub("score --json --prompt-ids 1,2,3 --model org/tiny", &server.endpoint(), &home).prints();
    assert_eq!(found, anysplit("score --json --prompt-ids 1,2,3").model(golden("qwen2")).prints());
    let ranges: Vec<_> =
        server.requests_of("model.safetensors").into_iter().filter_map(|r| r.range).collect();
    assert!(ranges.contains(&"bytes=40000-".to_owned()), "{ranges:?}");
}

#[test]
fn a_hub_that_refuses_says_so_in_one_line() {
    let mut hub = hub_of("qwen2");
    hub.token = Some("right");
    let (server, home) = (Server::start(hub), Copy::empty());
    let run = || with_hub("score --json --prompt-ids 1,2,3 --model org/tiny", &server.endpoint(), &home);
    run().refused(&["org/tiny", "401", "HF_TOKEN"]);
    let line = run().env("HF_TOKEN", "wrong-secret").refused(&["org/tiny", "401", "HF_TOKEN"]);
    assert!(!line.contains("wrong-secret"), "a token is not printed");
    run().env("HF_TOKEN", "right").prints();
}

#[test]
fn a_model_that_the_hub_does_not_have_is_named() {
    let (server, home) = (Server::start(hub_of("qwen2")), Copy::empty());
    let run = |model: &str| with_hub("tp-plan --model", &server.endpoint(), &home).arg(model);
    run("org/tinny").refused(&["org/tinny", "404", &server.endpoint()]);
    run("org/tiny@v9").refused(&["org/tiny", "v9"]);
    for wrong in ["tiny", "org/", "/org/tiny", "org/tiny/more", "or g/tiny", "org/..", "org/tiny@"] {
        run(wrong).refused(&[wrong]);
    }
}

#[test]
fn offline_without_a_download_says_what_is_missing() {
    let home = Copy::empty();
    let child = with_hub("score --prompt-ids 1 --model org/tiny", "http://127.0.0.1:9", &home);
    child.env("HF_HUB_OFFLINE", "1").refused(&["org/tiny", "HF_HUB_OFFLINE"]);
}

#[test]
fn an_endpoint_that_is_none_is_named() {
    let home = Copy::empty();
    with_hub("tp-plan --model org/tiny", "not a url", &home).refused(&["HF_ENDPOINT", "not a url"]);
}

#[test]
fn a_hub_that_is_not_there_is_a_failure_not_a_wrong_use() {
    // A port of this machine on which nobody listens.
    let endpoint = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let ended = with_hub("tp-plan --model org/tiny", &endpoint, &Copy::empty()).run();
    let line = ended.fails_with(1);
    assert!(line.contains(&endpoint) && line.contains("org/tiny"), "{line}");
}
