//! `/v1/completions`.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use server::ServerConfig;

use super::client::post;
use super::engine::{EOS, Harness, TEXT, ids, says, says_text, tokenizer};

const PATH: &str = "/v1/completions";

#[test]
fn a_prompt_is_text_or_ids_and_sixteen_tokens_follow() {
    let server = Harness::new(Default::default(), |id, request| says(id, request, &[ids(" a")[0]; 300]));
    let answer = post(server.address, PATH, &json!({"model": "model", "prompt": "The harbor"})).json();
    let (_, request) = server.submitted();
    assert_eq!(request.prompt, tokenizer().encode("The harbor", true).unwrap(), "with the first token");
    assert_eq!(request.max_tokens, 16);
    let choice = &answer["choices"][0];
    assert_eq!(
        (choice["text"].as_str(), &choice["finish_reason"]),
        (Some(" a".repeat(16).as_str()), &json!("length"))
    );
    assert_eq!((&answer["object"], &choice["logprobs"]), (&json!("text_completion"), &Value::Null));
    post(server.address, PATH, &json!({"prompt": [5, 6, 7], "max_tokens": 3}));
    let (_, request) = server.submitted();
    assert_eq!((request.prompt, request.max_tokens), (vec![5, 6, 7], 3));
}

#[test]
fn a_batch_has_its_choices_in_the_order_of_its_prompts() {
    let server = Harness::new(Default::default(), |id, request| {
        let said =
            [vec![*request.prompt.last().unwrap(); 1 + request.sampling.seed as usize % 2], vec![EOS[0]]];
        says(id, request, &said.concat())
    });
    let body = json!({"prompt": ["x a", "x b"], "n": 2, "seed": 4});
    let texts = |answer: Value| -> Vec<String> {
        answer["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
    };
    let whole = post(server.address, PATH, &body).json();
    assert_eq!(texts(whole.clone()), [" a", " a a", " b", " b b"]);
    assert_eq!(whole["choices"][2]["index"], 2);
    assert_eq!(whole["usage"]["completion_tokens"], 2 + 3 + 2 + 3);
    assert_eq!(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 2, "once per prompt");
    let ids = json!({"prompt": [[9, 10], [9, 11]], "max_tokens": 1});
    assert_eq!(post(server.address, PATH, &ids).json()["choices"].as_array().unwrap().len(), 2);
}

#[test]
fn prompts_of_a_batch_have_luck_of_their_own_unless_the_client_gives_a_seed() {
    let seeds = |config: ServerConfig, seed: Value| {
        let server = Harness::new(config, says_text);
        let body = json!({"prompt": ["a", "a", "a"], "n": 2, "seed": seed});
        post(server.address, PATH, &body).json();
        [(); 6].map(|()| server.submitted().1.sampling.seed)
    };
    assert_eq!(seeds(Default::default(), json!(7)), [7, 8, 7, 8, 7, 8], "what each gets alone");
    for config in [ServerConfig::default(), ServerConfig { seed: Some(1), ..Default::default() }] {
        let drawn = seeds(config, Value::Null);
        let different: BTreeSet<u64> = drawn.into_iter().collect();
        assert_eq!(different.len(), drawn.len(), "{drawn:?}");
        assert!(drawn.chunks(2).all(|of_prompt| of_prompt[1] == of_prompt[0].wrapping_add(1)));
    }
    let config = || ServerConfig { seed: Some(1), ..Default::default() };
    assert_eq!(seeds(config(), Value::Null), seeds(config(), Value::Null), "a server's seed repeats itself");
}

#[test]
fn log_probabilities_are_four_lists_and_the_stop_token_is_in_them() {
    let server = Harness::new(Default::default(), says_text);
    let body = json!({"prompt": "a", "logprobs": 2, "max_tokens": 100});
    let choice = post(server.address, PATH, &body).json()["choices"][0].clone();
    let lists = &choice["logprobs"];
    let count = ids(TEXT).len() + 1;
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[name].as_array().unwrap().len(), count, "{name}");
    }
    assert_eq!(lists["text_offset"][0], 0);
    assert_eq!(lists["tokens"][count - 1], "<|eos|>");
    assert_eq!(lists["top_logprobs"][0].as_object().unwrap().len(), 2);
    assert_eq!(choice["text"], TEXT);
}

#[test]
fn echo_gives_the_prompt_back_with_a_null_first_as_harnesses_of_benchmarks_read_it() {
    let server = Harness::new(Default::default(), says_text);
    let prompt = tokenizer().encode("The harbor", true).unwrap();
    for max_tokens in [0, 1] {
        let body = json!({"prompt": prompt, "logprobs": 1, "max_tokens": max_tokens, "echo": true, "temperature": 0});
        let whole = post(server.address, PATH, &body).json();
        let (_, request) = server.submitted();
        assert_eq!((request.prompt_logprobs, request.max_tokens), (Some(1), 1));
        let choice = &whole["choices"][0];
        let said = tokenizer().decode(&ids(TEXT)[..max_tokens], true).unwrap();
        assert_eq!(choice["text"], format!("The harbor{said}"));
        let lists = &choice["logprobs"];
        assert_eq!(lists["token_logprobs"].as_array().unwrap().len(), prompt.len() + max_tokens);
        assert_eq!((&lists["token_logprobs"][0], &lists["top_logprobs"][0]), (&Value::Null, &Value::Null));
        let second = lists["token_logprobs"][1].as_f64().unwrap() as f32;
        assert_eq!(second, -(prompt[1] as f32) / 1024.0);
        assert_eq!(whole["usage"]["completion_tokens"], max_tokens);
        assert_eq!(choice["finish_reason"], "length");

        let mut streamed = body;
        streamed["stream"] = true.into();
        let events = post(server.address, PATH, &streamed).events();
        server.submitted();
        let text: String = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(text, choice["text"].as_str().unwrap());
        let tokens: Vec<Value> = events
            .iter()
            .flat_map(|e| e["choices"][0]["logprobs"]["tokens"].as_array().unwrap().clone())
            .collect();
        assert_eq!(tokens, *lists["tokens"].as_array().unwrap());
    }
    let text = json!({"prompt": "The harbor", "max_tokens": 0, "echo": true});
    assert_eq!(post(server.address, PATH, &text).json()["choices"][0]["text"], "The harbor");
}

#[test]
fn a_stream_ends_with_a_reason_and_has_usage_if_asked_for() {
    let server = Harness::new(Default::default(), says_text);
    let body =
        json!({"prompt": "a", "max_tokens": 100, "stream": true, "stream_options": {"include_usage": true}});
    let events = post(server.address, PATH, &body).events();
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]["completion_tokens"]),
        (&json!([]), &json!(ids(TEXT).len() + 1))
    );
    let text: String = chunks.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, TEXT);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[test]
fn token_ids_come_back_if_asked_for_also_as_names() {
    let server = Harness::new(Default::default(), says_text);
    let fields = json!({
        "prompt": [5, 6], "max_tokens": 2, "return_token_ids": true, "logprobs": 0, "return_tokens_as_token_ids": true,
    });
    let choice = post(server.address, PATH, &fields).json()["choices"][0].clone();
    assert_eq!((&choice["token_ids"], &choice["prompt_token_ids"]), (&json!(ids(TEXT)[..2]), &json!([5, 6])));
    assert_eq!(choice["logprobs"]["tokens"][0], format!("token_id:{}", ids(TEXT)[0]));
}

#[test]
fn special_tokens_have_text_if_asked_for() {
    let server = Harness::new(Default::default(), |id, request| says(id, request, &[4, EOS[0]]));
    let text = |skip: bool| {
        let body = json!({"prompt": "a", "max_tokens": 5, "skip_special_tokens": skip});
        post(server.address, PATH, &body).json()["choices"][0]["text"].clone()
    };
    assert_eq!((text(true), text(false)), (json!(""), json!("<|system|>")));
}
