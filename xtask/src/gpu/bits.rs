//! The same bits, however a model is split and run.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;

use serde_json::Value;

use super::command::{Missed, Place};
use super::table::Row;

/// Tokens of the prompt by which ways are compared: of several blocks and chunks.
const PROMPT: usize = 150;
/// Prompts of a batch.
const BATCH: usize = 33;

/// Log-probabilities and tokens.
type Results = BTreeMap<&'static str, Value>;

/// What became of one way to run a model.
enum Way {
    Same,
    /// What is not as it should be.
    Other(String),
    /// Nobody knows.
    Missed(Missed),
}

/// The same bits on any split, as graphs or not, whole or in chunks, alone or in a batch.
pub fn equality(place: &Place) -> Result<Vec<Row>, String> {
    let ways = [
        ("tp 2", "--tp 2"),
        ("tp 3", "--tp 3"),
        ("tp 4", "--tp 4"),
        ("without graphs", "--enforce-eager"),
        ("in chunks of 64", "--max-num-batched-tokens 64"),
        ("in chunks of 64, tp 2, without graphs", "--max-num-batched-tokens 64 --tp 2 --enforce-eager"),
    ];
    let one = results(place, "");
    let mut all: Vec<(String, Way)> =
        ways.iter().map(|(name, flags)| (format!("bits: {name}"), way(place, &one, flags))).collect();
    all.push((format!("bits: batch {BATCH}"), batch(place).unwrap_or_else(Way::Missed)));
    Ok(rows("bits", all))
}

/// A model in its formats, and ways to run it.
struct Group {
    name: &'static str,
    model: &'static str,
    ways: &'static [(&'static str, &'static str)],
}

/// A flag of ours: the ranks are two processes of a job.
const PROCESSES: &str = "--processes";

/// Splits besides those of layers, and formats besides bf16.
const GROUPS: &[Group] = &[
    Group {
        name: "stages and replicas",
        model: "",
        ways: &[("pp 2", "--pp 2"), ("dp 2", "--dp 2"), ("tp 2, pp 2", "--tp 2 --pp 2")],
    },
    Group {
        name: "rows, positions",
        model: "",
        ways: &[("tp 2, sp", "--tp 2 --sp"), ("tp 8, dcp 2", "--tp 8 --dcp 2"), ("two processes", PROCESSES)],
    },
    Group {
        name: "experts",
        model: "--model golden/qwen3_moe --dtype bfloat16",
        ways: &[
            ("tp 2, ep", "--tp 2 --ep"),
            ("tp 2", "--tp 2 --ep=false"),
            ("without graphs", "--enforce-eager"),
        ],
    },
    Group { name: "int4", model: "--quantization int4", ways: &[("tp 2", "--tp 2"), ("tp 3", "--tp 3")] },
    Group { name: "int8", model: "--quantization int8", ways: &[("tp 2", "--tp 2")] },
    Group { name: "fp8", model: "--quantization fp8", ways: &[("tp 2", "--tp 2")] },
    Group { name: "fp8 of a checkpoint", model: "--model golden/llama_fp8", ways: &[("tp 2", "--tp 2")] },
    Group { name: "caches of fp8", model: "--kv-cache-dtype fp8", ways: &[("tp 2", "--tp 2")] },
    Group {
        name: "100 layers",
        model: DEEP_MODEL,
        // Some thousand launches are under way, of ranks that wait for each other.
        ways: &[("tp 2, without graphs", "--tp 2 --enforce-eager")],
    },
];
const DEEP_MODEL: &str = "--model shapes/deep --load-format random --dtype bfloat16";

/// The same bits of what is less usual: each group has one way that the others are compared with.
pub fn splits(place: &Place) -> Result<Vec<Row>, String> {
    let compared = |group: &Group| -> Vec<(String, Way)> {
        let one = results(place, group.model);
        let compare = |(name, flags): &(&str, &str)| {
            let way = way(place, &one, &format!("{} {flags}", group.model));
            (format!("splits: {}: {name}", group.name), way)
        };
        group.ways.iter().map(compare).collect()
    };
    Ok(rows("splits", place.each(GROUPS, compared).into_iter().flatten().collect()))
}

/// What a model gives with these flags.
fn results(place: &Place, flags: &str) -> Result<Results, Missed> {
    let ids = (0..PROMPT).map(|i| (5 + (i * 7919 + i * i) % 100).to_string()).collect::<Vec<_>>().join(",");
    let run = |words: &str| {
        let words = format!("{words} --json --device cuda --prompt-ids {ids} {flags}");
        match words.strip_suffix(PROCESSES) {
            None => place.json(&mut place.anysplit(&words)),
            Some(words) => {
                let port = free_port()?;
                let launch =
                    format!("launch --nproc-per-node 2 --master-port {port} -- anysplit {words} --tp 2");
                place.json(&mut place.anysplit(&launch))
            }
        }
    };
    let scored = run("score")?["logprobs"].take();
    let generated = run("generate --ignore-eos --max-tokens 40")?["token_ids"].take();
    Ok(BTreeMap::from([("log-probabilities", scored), ("tokens", generated)]))
}

/// A port that nobody has at this moment.
fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

/// Compares what flags give with what there is without.
fn way(place: &Place, one: &Result<Results, Missed>, flags: &str) -> Way {
    let one = match one {
        Ok(one) => one,
        Err(why) => return Way::Missed(why.clone()),
    };
    if place.is_over() {
        return Way::Missed(Missed::Late("no time was left".into()));
    }
    // Numbers are printed so that they come back exactly.
    match results(place, flags) {
        Err(why) => Way::Missed(why),
        Ok(other) => match one.iter().find(|(what, value)| other.get(*what) != Some(value)) {
            None => Way::Same,
            Some((what, _)) => Way::Other(format!("other {what} than tp 1 has")),
        },
    }
}

/// How many ways give other bits, unless nobody knows, and each of them.
fn rows(name: &str, ways: Vec<(String, Way)>) -> Vec<Row> {
    let count = |is_one: &dyn Fn(&Way) -> bool| ways.iter().filter(|(_, way)| is_one(way)).count();
    let others = count(&|way| matches!(way, Way::Other(_)));
    let late = count(&|way| matches!(way, Way::Missed(Missed::Late(_))));
    let failed = count(&|way| matches!(way, Way::Missed(_))) - late;
    let head = match others {
        0 if late + failed > 0 => {
            let had = if failed > 0 { format!(", and {failed} failed") } else { String::new() };
            let why = format!("not measured: {late} of {} ways had no time{had}", ways.len());
            Row::skipped(name, why)
        }
        _ => Row { figure: Some((others as f64, "ways with other bits")), ..Row::ok(name) },
    };
    let row = |(name, way)| match way {
        Way::Same => Row::ok(name),
        Way::Other(why) => Row::failed(name, why),
        Way::Missed(why) => why.row(name),
    };
    [head].into_iter().chain(ways.into_iter().map(row)).collect()
}

/// Prompts of a batch get the tokens that they get alone.
fn batch(place: &Place) -> Result<Way, Missed> {
    let texts: Vec<String> =
        (0..BATCH).map(|i| format!("In year {i} there was a {} of", i * i + 3)).collect();
    let file = place.folder.join("logs").join("prompts.txt");
    fs::write(&file, texts.join("\n") + "\n").map_err(|error| format!("{}: {error}", file.display()))?;
    let generate = "generate --json --device cuda --ignore-eos --max-tokens 24";
    let together = place.json(place.anysplit(generate).arg("--prompt-file").arg(&file))?;
    for at in [0, BATCH / 2, BATCH - 1] {
        let alone = place.json(place.anysplit(generate).arg(&texts[at]))?;
        if alone["token_ids"] != together[at]["token_ids"]
            || alone["token_ids"].as_array().is_none_or(Vec::is_empty)
        {
            return Ok(Way::Other(format!("prompt {at} has other tokens than alone")));
        }
    }
    Ok(Way::Same)
}
