//! What is served is what was promised: each answer is, to the bit, what the request alone would have got.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::child::anysplit;
use crate::served::{Api, Served, greedy};

/// Requests of mixed lengths, with and without sampling; several begin the same.
fn requests() -> Vec<Value> {
    let starts =
        ["Once upon a time", "Long ago there was a ship", "The harbor", "A", "In the beginning the king"];
    let request = |i: usize| {
        let prompt = vec![starts[i % starts.len()]; 1 + (i * 7) % 23].join(", and ");
        let temperature = [0.0, 0.7, 1.2][i % 3];
        let mut request = json!({
            "prompt": prompt, "max_tokens": 3 + i * 5 % 40, "temperature": temperature, "seed": i,
            "logprobs": i % 3, "return_token_ids": true,
        });
        if i % 4 == 1 {
            request["top_p"] = json!(0.9);
            request["frequency_penalty"] = json!(0.4);
        }
        request
    };
    (0..64).map(request).collect()
}

/// What of an answer must be the same.
fn told(answer: &Value) -> Value {
    let choice = &answer["choices"][0];
    json!([choice["text"], choice["finish_reason"], choice["logprobs"], answer["usage"]["completion_tokens"]])
}

/// All at once, over a few clients, in a mixed order.
fn at_once(served: &Api, requests: &[Value]) -> Vec<Value> {
    let answers = Mutex::new(vec![Value::Null; requests.len()]);
    let order = Mutex::new((0..requests.len()).map(|i| i * 29 % requests.len()).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                loop {
                    let Some(i) = order.lock().unwrap().pop() else { return };
                    let answer = told(&served.completion(&requests[i]));
                    answers.lock().unwrap()[i] = answer;
                }
            });
        }
    });
    answers.into_inner().unwrap()
}

#[test]
fn sixty_four_requests_at_once_get_what_each_gets_alone_on_any_split() {
    let requests = requests();
    let served = Served::start("--no-enable-prefix-caching --max-num-batched-tokens 2048 --max-num-seqs 1");
    let alone: Vec<Value> = requests.iter().map(|request| told(&served.completion(request))).collect();
    served.ends();
    let texts: BTreeSet<String> = alone.iter().map(Value::to_string).collect();
    assert!(texts.len() > 50, "the requests are different");
    for split in ["--tp 1", "--tp 2", "--tp 3", "--dp 2"] {
        for settings in ["", "--no-enable-prefix-caching --max-num-batched-tokens 33"] {
            let served = Served::start(&format!("{split} {settings} --threads-per-rank 1"));
            let got = at_once(&served, &requests);
            for (i, (got, want)) in got.iter().zip(&alone).enumerate() {
                assert_eq!(got, want, "{split} {settings}: request {i}");
            }
            served
                .until("all blocks are free", |served| served.metric("anysplit:kv_cache_usage_perc") == 0.0);
            assert_eq!(served.metric("anysplit:prefix_cache_hits_total") > 0.0, settings.is_empty());
            served.ends();
        }
    }
}

#[test]
fn a_tiny_cache_gives_the_answers_of_a_large_one_by_preempting() {
    let requests = &requests()[..32];
    let large = Served::start("");
    let want = at_once(&large, requests);
    large.ends();
    // Each token takes 2 × 4 heads × 32 × 2 bytes in each of 5 layers.
    let tiny = Served::start(&format!("--kv-cache-memory-bytes {}", 2560 * 16 * 24));
    assert_eq!(at_once(&tiny, requests), want);
    assert!(tiny.metric("anysplit:num_preemptions_total") > 0.0, "else this proves nothing");
    tiny.ends();
}

#[test]
fn what_is_served_is_what_generate_prints() {
    let served = Served::start("--tp 2");
    for prompt in ["Once upon a time", "The harbor"] {
        let printed = anysplit("generate --max-tokens 30").arg(prompt).prints();
        let answer = served.completion(&greedy(prompt, 30));
        assert_eq!(format!("{}\n", answer["choices"][0]["text"].as_str().unwrap()), printed);
    }
    served.ends();
}

#[test]
fn echoed_log_probabilities_are_those_of_score() {
    let text = "Once upon a time there was a king who had a ship.";
    let scored = anysplit("score --json --text").arg(text).json();
    let served = Served::start("--tp 2");
    let request = json!({ "prompt": text, "max_tokens": 0, "echo": true, "logprobs": 1, "temperature": 0 });
    let answer = served.completion(&request);
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], scored["logprobs"]);
    served.ends();
}

#[test]
fn every_plan_that_threads_and_processes_can_have_serves_the_same() {
    let request = greedy("Once upon a time there was a king", 24);
    let one = Served::start("");
    let want = told(&one.completion(&request));
    one.ends();
    for split in
        ["--pp 2", "--tp 2 --pp 2 --dp 2 --sp", "--quantization none --kv-cache-dtype bfloat16 --tp 4"]
    {
        let served = Served::start(&format!("{split} --threads-per-rank 1"));
        assert_eq!(told(&served.completion(&request)), want, "{split}");
        served.ends();
    }
}

#[test]
fn a_stream_says_what_a_whole_answer_says() {
    let served = Served::start("");
    let mut request = json!({
        "messages": [{"role": "user", "content": "What is a harbor?"}], "temperature": 0.8, "seed": 4, "n": 2,
        "max_tokens": 30, "logprobs": true, "top_logprobs": 2,
    });
    let whole = served.post("/v1/chat/completions", &request).json();
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let answer = served.post("/v1/chat/completions", &request);
    assert!(answer.head.to_ascii_lowercase().contains("content-type: text/event-stream"), "{}", answer.head);
    let mut events = answer.events();
    let usage = events.pop().expect("usage comes last");
    // The second time the prompt was in the cache.
    assert_eq!(usage["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    for index in 0..2 {
        let of = |event: &&Value| event["choices"][0]["index"] == index;
        let pieces = events.iter().filter(of).map(|event| event["choices"][0]["delta"]["content"].as_str());
        let text: String = pieces.flatten().collect();
        assert_eq!(text, whole["choices"][index]["message"]["content"].as_str().unwrap());
        let logprobs =
            events.iter().filter(of).filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array());
        let logprobs: Vec<Value> = logprobs.flatten().cloned().collect();
        assert_eq!(json!(logprobs), whole["choices"][index]["logprobs"]["content"]);
    }
    served.ends();
}
