//! Whether it is right: what transformers computes, and the same bits however it is split.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::command::Place;
use super::table::Row;

/// How far log-probabilities in f32 may be from those that transformers computes, which sums in another order.
const NEAR: f64 = 1e-4;

/// Tokens of the prompts by which splits are compared: of several blocks and chunks.
const PROMPT: usize = 150;
/// Prompts of a batch.
const BATCH: usize = 33;

/// Every golden checkpoint: its tokens and its log-probabilities.
pub fn goldens(place: &Place) -> Result<Vec<Row>, String> {
    let folder = place.folder.join("golden");
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let (mut right, mut farthest, mut wrong) = (0, 0.0f64, Vec::new());
    for (at, name) in names.iter().enumerate() {
        if place.is_over() {
            let left = names.len() - at;
            wrong.push(Row::failed(
                "goldens that were left",
                format!("no time for {left} of {}", names.len()),
            ));
            break;
        }
        match golden(place, name) {
            Ok(far) => (right, farthest) = (right + 1, farthest.max(far)),
            Err(why) => wrong.push(Row::failed(format!("golden {name}"), why)),
        }
    }
    let far = Row {
        figure: Some((farthest, "from transformers at most")),
        ..Row::ok("goldens' log-probabilities")
    };
    let all = Row { figure: Some((f64::from(right), "checkpoints")), ..Row::ok("goldens") };
    Ok([all, far].into_iter().chain(wrong).collect())
}

/// How far one is from what transformers computes.
fn golden(place: &Place, name: &str) -> Result<f64, String> {
    let file = place.folder.join("golden").join(name).join("golden.json");
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let golden: Value =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    let ids = ids(&golden["prompt_token_ids"]);
    let run = |words: &str| {
        let exact = "--json --device cuda --dtype float32 --kv-cache-dtype float32 --model";
        let mut command = place.anysplit(&format!("{words} {exact} golden/{name} --prompt-ids {ids}"));
        place.json(&mut command)
    };
    let scored = run("score")?;
    let numbers = |of: &Value| -> Vec<Option<f64>> {
        of["logprobs"].as_array().into_iter().flatten().map(Value::as_f64).collect()
    };
    let (ours, theirs) = (numbers(&scored), numbers(&golden));
    if ours.len() != theirs.len() || ours.iter().zip(&theirs).any(|(a, b)| a.is_some() != b.is_some()) {
        return Err(format!("{} log-probabilities, not {}", ours.len(), theirs.len()));
    }
    let pairs = ours.into_iter().flatten().zip(theirs.into_iter().flatten());
    let far = pairs
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |far, next| if next > far || next.is_nan() { next } else { far });
    if far.is_nan() || far > NEAR {
        return Err(format!("log-probabilities are {far} from what transformers computes"));
    }
    let generated = run("generate --ignore-eos --max-tokens 24")?;
    match generated["token_ids"] == golden["greedy_token_ids"] {
        true => Ok(far),
        false => {
            Err(format!("the tokens are {}, not {}", generated["token_ids"], golden["greedy_token_ids"]))
        }
    }
}

/// Ids as the command line takes them.
fn ids(of: &Value) -> String {
    of.as_array().into_iter().flatten().map(Value::to_string).collect::<Vec<_>>().join(",")
}

/// A prompt of the built-in model, whose vocabulary is larger than that.
fn prompt(which: usize) -> String {
    (0..PROMPT).map(|i| (5 + (i * 7919 + which * 31 + i * i) % 400).to_string()).collect::<Vec<_>>().join(",")
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
    let ids = prompt(0);
    let told = |way: &str| -> Result<BTreeMap<&str, Value>, String> {
        let run = |words: &str| {
            place.json(&mut place.anysplit(&format!("{words} --json --device cuda --prompt-ids {ids} {way}")))
        };
        let scored = run("score")?["logprobs"].take();
        let generated = run("generate --ignore-eos --max-tokens 40")?["token_ids"].take();
        Ok(BTreeMap::from([("log-probabilities", scored), ("tokens", generated)]))
    };
    let one = told("")?;
    let way = |(name, way): &(&str, &str)| {
        let name = format!("bits: {name}");
        if place.is_over() {
            return Row::failed(name, "no time was left");
        }
        match told(way) {
            Ok(other) => same(&name, &one, &other),
            Err(why) => Row::failed(name, why),
        }
    };
    let mut rows: Vec<Row> = ways.iter().map(way).collect();
    rows.push(batch(place).unwrap_or_else(|why| Row::failed("bits: batch 33", why)));
    Ok(rows)
}

fn same(name: &str, one: &BTreeMap<&str, Value>, other: &BTreeMap<&str, Value>) -> Row {
    // Numbers are printed so that they come back exactly.
    match one.iter().find(|(what, value)| other.get(*what) != Some(value)) {
        None => Row::ok(name),
        Some((what, _)) => Row::failed(name, format!("other {what} than tp 1 has")),
    }
}

/// Prompts of a batch get the tokens that they get alone.
fn batch(place: &Place) -> Result<Row, String> {
    let texts: Vec<String> =
        (0..BATCH).map(|i| format!("In year {i} there was a {} of", i * i + 3)).collect();
    let file = place.folder.join("logs").join("prompts.txt");
    fs::write(&file, texts.join("\n") + "\n").map_err(|error| format!("{}: {error}", file.display()))?;
    let generate = "generate --json --device cuda --ignore-eos --max-tokens 24";
    let together = place.json(place.anysplit(generate).arg("--prompt-file").arg(&file))?;
    let name = format!("bits: batch {BATCH}");
    for at in [0, BATCH / 2, BATCH - 1] {
        let alone = place.json(place.anysplit(generate).arg(&texts[at]))?;
        if alone["token_ids"] != together[at]["token_ids"]
            || alone["token_ids"].as_array().is_none_or(Vec::is_empty)
        {
            return Ok(Row::failed(name, format!("prompt {at} has other tokens than alone")));
        }
    }
    Ok(Row::ok(name))
}
