//! What a user, a shell and a pipe see besides results.

use std::io::Read;
use std::process::Stdio;

use serde_json::Value;

use crate::checkpoints::golden;
use crate::child::anysplit;

/// Every command, as it is typed.
const COMMANDS: [&str; 10] = [
    "generate",
    "score",
    "serve",
    "tp-plan",
    "quantize",
    "launch",
    "bench limits",
    "bench decode",
    "bench comm",
    "bench serve",
];

#[test]
fn every_command_has_a_help_page_with_an_example() {
    for command in COMMANDS {
        let help = anysplit(command).arg("--help").prints();
        assert!(help.contains("Example") && help.contains(&format!("anysplit {command}")), "{help}");
        assert_eq!(anysplit("help").args(command).prints(), help);
    }
    let help = anysplit("--help").prints();
    for command in COMMANDS {
        let name = command.split(' ').next().unwrap();
        assert!(help.lines().any(|line| line.trim_start().starts_with(name)), "{name} in:\n{help}");
    }
    assert!(help.contains("Examples:"));
}

#[test]
fn help_pages_are_as_they_were() {
    insta::assert_snapshot!("help", anysplit("--help").prints());
    for command in COMMANDS {
        let name = format!("help_{}", command.replace([' ', '-'], "_"));
        insta::assert_snapshot!(name, anysplit(command).arg("--help").prints());
    }
}

#[test]
fn every_flag_has_a_twin_in_the_environment() {
    for command in COMMANDS {
        let help = anysplit(command).arg("--help").prints();
        let (_, options) = help.split_once("\nOptions:\n").expect("there are options");
        // An entry begins with its flags, and its text is further to the right.
        let mut entries: Vec<String> = Vec::new();
        for line in options.lines().take_while(|line| !line.starts_with("Example")) {
            match line.trim_start().starts_with('-') && line.find('-').is_some_and(|column| column < 8) {
                true => entries.push(line.trim().to_owned()),
                false => {
                    *entries.last_mut().expect("an entry begins with its flags") +=
                        &format!(" {}", line.trim())
                }
            }
        }
        assert!(entries.len() > 2, "{help}");
        for entry in entries {
            let (_, flag) = entry.split_once("--").expect("every entry has a long name");
            let name: String = flag.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            let twin = format!("[env: ANYSPLIT_{}", name.to_uppercase().replace('-', "_"));
            // The value of a secret is not shown.
            let has_twin = ["=", "]"].iter().any(|end| entry.contains(&format!("{twin}{end}")));
            assert!(matches!(&*name, "help" | "version") || has_twin, "{command}: no {twin}] in: {entry}");
        }
    }
}

#[test]
fn twins_do_what_their_flags_do() {
    let found = anysplit("generate hello --json")
        .env("ANYSPLIT_TENSOR_PARALLEL_SIZE", "2")
        .env("ANYSPLIT_MAX_TOKENS", "3")
        .env("ANYSPLIT_IGNORE_EOS", "1")
        .env("ANYSPLIT_DTYPE", "float32")
        .env("ANYSPLIT_SEED", "17")
        .env("ANYSPLIT_THREADS_PER_RANK", "1")
        .json();
    assert_eq!(
        (&found["parallel"]["tp"], &found["dtype"], &found["seed"]),
        (&2.into(), &"float32".into(), &17.into())
    );
    assert_eq!(
        (&found["usage"]["completion_tokens"], &found["stats"]["threads_per_rank"]),
        (&3.into(), &1.into())
    );
    let model = golden("llama");
    let found = anysplit("score --json --prompt-ids 1,2,3")
        .env("ANYSPLIT_MODEL", &model)
        .env("ANYSPLIT_RANK_WEIGHTS", "2,1");
    assert_eq!(found.prints(), anysplit("score --json --prompt-ids 1,2,3").model(&model).prints());
    // What is typed wins.
    let found = anysplit("tp-plan --tp 3 --json").env("ANYSPLIT_TENSOR_PARALLEL_SIZE", "2").json();
    assert_eq!(found["tp"], 3);
}

#[test]
fn tp_is_short_for_tensor_parallel_size() {
    let long = anysplit("tp-plan --tensor-parallel-size 2 --json").prints();
    assert_eq!(anysplit("tp-plan --tp 2 --json").prints(), long);
}

#[test]
fn no_command_at_all_shows_what_there_is() {
    let output = anysplit("").command().stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty() && told.contains("Commands:") && told.contains("generate"), "{told}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let child = anysplit("generate hello --ignore-eos --max-tokens 1500");
    let mut child = child.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn a_reader_that_never_looks_is_no_error() {
    for command in ["tp-plan", "score --text hello", "generate hello --json", "generate hello --max-tokens 4"]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = anysplit(command).command().stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{command}: {}", output.status);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{command}");
    }
}

#[test]
fn results_that_cannot_be_written_are_a_failure() {
    // A device on which nothing has room, where there is one.
    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else { return };
    for command in ["tp-plan --json", "generate hello --max-tokens 4"] {
        let child =
            anysplit(command).command().stdout(full.try_clone().unwrap()).stderr(Stdio::piped()).output();
        let output = child.unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}: {told}");
        assert!(told.starts_with("error: cannot write results") && told.lines().count() == 1, "{told}");
    }
}

#[test]
fn score_is_a_table_for_people() {
    let child = anysplit("score --text").arg("the other ranks").model(golden("llama"));
    let table = child.prints();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains('-') && lines.last().unwrap().starts_with("perplexity "), "{table}");
    assert!(table.contains("\" the\"") || table.contains("\"the\""), "{table}");
}

#[test]
fn the_version_is_told() {
    let version = anysplit("--version").prints();
    assert_eq!(version, format!("anysplit {}\n", env!("CARGO_PKG_VERSION")));
    let bench: Value = serde_json::json!(anysplit("bench --version").prints());
    assert!(bench.as_str().unwrap().contains(env!("CARGO_PKG_VERSION")));
}
