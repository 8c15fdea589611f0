//! A server on the GPU, and clients that come at the same time: each gets what it would get alone.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::command::{Missed, Place};
use super::table::Row;

/// Clients at a time.
const CLIENTS: usize = 8;
/// Tokens that each asks for.
const TOKENS: usize = 24;
/// The server, and what its answers are compared with, run alike.
const MODEL: &str = "--device cuda --dtype bfloat16";

/// Texts of clients that come together, beside those of `generate`.
pub fn serve(place: &Place) -> Result<Vec<Row>, String> {
    let prompts: Vec<String> =
        (0..CLIENTS).map(|i| format!("The {} of them saw {} ships and", i + 2, 7 * i * i + 3)).collect();
    let began = Instant::now();
    let mut server = place.start(&mut place.anysplit(&format!("serve --port 0 {MODEL}")))?;
    let address: SocketAddr = server.until(place, listens_at)?;
    let ready = Row { figure: Some((began.elapsed().as_secs_f64(), "s")), ..Row::ok("serve: ready") };
    let answers: Vec<Result<String, String>> = thread::scope(|scope| {
        let ask = |prompt| move || completion(place, address, prompt);
        let clients: Vec<_> = prompts.iter().map(|prompt| scope.spawn(ask(prompt))).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    server.ask_to_end();
    let ended = match server.ends(place) {
        Ok(_) => Row::ok("serve: ends when it is asked to"),
        Err(missed) => missed.row("serve: ends when it is asked to"),
    };
    let alone = texts(place, &prompts)?;
    let wrong = answers.iter().zip(&alone).position(|(answer, alone)| answer.as_ref() != Ok(alone));
    let name = format!("serve: {CLIENTS} clients at a time");
    let same = match wrong {
        None => Row { figure: Some((CLIENTS as f64, "texts as generate's")), ..Row::ok(name) },
        Some(at) => Row::failed(
            name,
            match &answers[at] {
                Ok(text) => format!("client {at} got {text:?}, generate gives {:?}", alone[at]),
                Err(why) => format!("client {at}: {why}"),
            },
        ),
    };
    Ok(vec![same, ready, ended])
}

/// What the command line gives for these prompts.
fn texts(place: &Place, prompts: &[String]) -> Result<Vec<String>, Missed> {
    let file = place.folder.join("logs").join("clients.txt");
    fs::write(&file, prompts.join("\n") + "\n").map_err(|error| format!("{}: {error}", file.display()))?;
    let words = format!("generate --json --ignore-eos --max-tokens {TOKENS} {MODEL}");
    let told = place.json(place.anysplit(&words).arg("--prompt-file").arg(&file))?;
    let text = |at: usize| told[at]["text"].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let all: Option<Vec<String>> = (0..prompts.len()).map(text).collect();
    Ok(all.ok_or_else(|| "generate told no texts".to_owned())?)
}

/// The address in what a server says when it is ready.
fn listens_at(said: &str) -> Option<SocketAddr> {
    let (_, rest) = said.split_once("listening on http://")?;
    // The whole line is there once something follows it.
    let (address, _) = rest.split_once(|c: char| c.is_whitespace())?;
    address.parse().ok()
}

/// A client's completion.
fn completion(place: &Place, address: SocketAddr, prompt: &str) -> Result<String, String> {
    let body =
        json!({ "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true }).to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let left = place.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let exchanged = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, left)?;
        stream.set_read_timeout(Some(left))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = exchanged().map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or("no answer");
    let told: Value = serde_json::from_str(body).map_err(|error| format!("{status}: {error}"))?;
    let text = told["choices"][0]["text"].as_str();
    text.map(str::to_owned).ok_or_else(|| format!("{status}: {}", told["error"]["message"]))
}
