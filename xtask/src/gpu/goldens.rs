//! Whether it is right: what transformers computes, and what the processor does.

use std::fs;

use serde_json::Value;

use super::command::{Missed, Place};
use super::table::Row;

/// How far log-probabilities in f32 may be from those that transformers computes, which sums in another order.
const NEAR: f64 = 1e-4;
/// The same in the mean, where weights are quantised.
const NEAR_QUANTISED: f64 = 0.05;
/// A form of OPT that is refused, and whose checkpoint shows that.
const REFUSED: &str = "opt_post_norm";

/// Every golden checkpoint: its tokens and its log-probabilities.
pub fn goldens(place: &Place) -> Result<Vec<Row>, String> {
    let folder = place.folder.join("golden");
    let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != REFUSED);
    names.sort();
    let (mut right, mut left, mut farthest, mut wrong) = (0, 0, 0.0f64, Vec::new());
    let results = place.each(&names, |name| (!place.is_over()).then(|| golden(place, name)));
    for (name, result) in names.iter().zip(results) {
        match result {
            Some(Ok(far)) => (right, farthest) = (right + 1, farthest.max(far)),
            Some(Err(missed)) => wrong.push(missed.row(format!("golden {name}"))),
            None => left += 1,
        }
    }
    if left > 0 {
        let why = format!("no time for {left} of {}", names.len());
        wrong.push(Row::skipped("goldens that were left", why));
    }
    let far = Row {
        figure: Some((farthest, "from transformers at most")),
        ..Row::ok("goldens' log-probabilities")
    };
    let all = Row { figure: Some((f64::from(right), "checkpoints")), ..Row::ok("goldens") };
    Ok([all, far].into_iter().chain(wrong).collect())
}

/// How far one is from what transformers computes.
fn golden(place: &Place, name: &str) -> Result<f64, Missed> {
    let golden = read(place, name, "golden.json")?;
    let ids = ids(&golden["prompt_token_ids"]);
    let exact = "--device cuda --dtype float32 --kv-cache-dtype float32";
    let apart = apart(&scored(place, name, &ids, exact)?, &numbers(&golden))?;
    // Weights that files have quantised are multiplied by tensor cores, of activations with fewer digits: tokens may differ then.
    let is_quantised = read(place, name, "config.json")?["quantization_config"].is_object();
    let (far, near) = if is_quantised { (mean(&apart), NEAR_QUANTISED) } else { (largest(&apart), NEAR) };
    if far.is_nan() || far > near {
        return Err(format!("log-probabilities are {far} from what transformers computes").into());
    }
    if is_quantised {
        return Ok(0.0);
    }
    let words = format!("generate --ignore-eos --max-tokens 24 --json {exact} --model golden/{name}");
    let generated = place.json(place.anysplit(&words).args(["--prompt-ids", &ids]))?;
    match generated["token_ids"] == golden["greedy_token_ids"] {
        true => Ok(far),
        false => {
            let (ours, theirs) = (&generated["token_ids"], &golden["greedy_token_ids"]);
            Err(format!("the tokens are {ours}, not {theirs}").into())
        }
    }
}

/// A file of a golden checkpoint.
fn read(place: &Place, name: &str, file: &str) -> Result<Value, String> {
    let file = place.folder.join("golden").join(name).join(file);
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
}

/// Log-probabilities of a golden checkpoint's prompt.
fn scored(place: &Place, name: &str, ids: &str, flags: &str) -> Result<Vec<Option<f64>>, Missed> {
    let words = format!("score --json {flags} --model golden/{name}");
    Ok(numbers(&place.json(place.anysplit(&words).args(["--prompt-ids", ids]))?))
}

fn numbers(of: &Value) -> Vec<Option<f64>> {
    of["logprobs"].as_array().into_iter().flatten().map(Value::as_f64).collect()
}

/// How far each is from the other.
fn apart(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Result<Vec<f64>, String> {
    if ours.len() != theirs.len() || ours.iter().zip(theirs).any(|(a, b)| a.is_some() != b.is_some()) {
        return Err(format!("{} log-probabilities, not {}", ours.len(), theirs.len()));
    }
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    Ok(pairs.map(|(a, b)| (a - b).abs()).collect())
}

/// The largest; NaN if there is one.
fn largest(of: &[f64]) -> f64 {
    of.iter().fold(0.0, |far, &next| if next > far || next.is_nan() { next } else { far })
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len().max(1) as f64
}

/// A name, flags, and a distance.
type Format = (&'static str, &'static str, f64);
/// What weights and caches are kept in, and how far log-probabilities may be from the processor's in the mean: nothing where layers
/// have its bits, else twice what kernels in emulation are. A single one says little: an expert that is chosen otherwise moves it far.
const FORMATS: &[Format] = &[
    ("bf16", "--dtype bfloat16 --kv-cache-dtype bfloat16", 0.1),
    ("f16", "--dtype float16 --kv-cache-dtype float32", 0.02),
    ("caches of fp8", "--dtype bfloat16 --kv-cache-dtype fp8", 0.15),
    ("int8", "--dtype float32 --kv-cache-dtype float32 --quantization int8", 0.0),
    ("int4", "--dtype float32 --kv-cache-dtype float32 --quantization int4", 0.0),
    ("fp8", "--dtype float32 --kv-cache-dtype float32 --quantization fp8", 0.05),
];
/// Those by which formats are compared: dense, with soft caps and windows, with experts, with biases and learned positions.
const OF_FORMATS: [&str; 4] = ["llama31", "gemma2", "qwen3_moe", "opt"];

/// Every format, beside the processor with the same.
pub fn formats(place: &Place) -> Result<Vec<Row>, String> {
    let pairs: Vec<_> = FORMATS.iter().flat_map(|format| OF_FORMATS.map(|name| (*format, name))).collect();
    let compare = |((_, flags, near), name): &(Format, &str)| -> Result<f64, Missed> {
        let ids = ids(&read(place, name, "golden.json")?["prompt_token_ids"]);
        let of = |device: &str| scored(place, name, &ids, &format!("--device {device} {flags}"));
        let far = mean(&apart(&of("cuda")?, &of("cpu")?)?);
        match far <= *near {
            true => Ok(far),
            false => Err(format!("{name}: log-probabilities are {far} from the processor's").into()),
        }
    };
    let results = place.each(&pairs, compare);
    let row = |(&(format, ..), results): (&Format, &[Result<f64, Missed>])| {
        let name = format!("format: {format}");
        let farther = |far: f64, next: Result<f64, Missed>| Ok::<f64, Missed>(far.max(next?));
        match results.iter().cloned().try_fold(0.0, farther) {
            Ok(far) => Row { figure: Some((far, "from the processor in the mean")), ..Row::ok(name) },
            Err(missed) => missed.row(name),
        }
    };
    Ok(FORMATS.iter().zip(results.chunks(OF_FORMATS.len())).map(row).collect())
}

/// Ids as the command line takes them.
fn ids(of: &Value) -> String {
    of.as_array().into_iter().flatten().map(Value::to_string).collect::<Vec<_>>().join(",")
}
