//! Bad requests end in errors that name what is wrong, and nobody else notices.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::client::{get, post, post_bytes, send};
use super::engine::{Harness, MAX_MODEL_LEN, ids, says_text};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// What a good request gets, but for its id and time.
fn good(address: SocketAddr) -> Value {
    let body = json!({"prompt": "The harbor is", "max_tokens": 30, "seed": 1, "logprobs": 2});
    let mut answer = post(address, COMPLETIONS, &body).json();
    assert!(answer["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()));
    let fields = answer.as_object_mut().unwrap();
    fields.remove("id");
    fields.remove("created");
    answer
}

/// Sends each, and a good request beside it.
fn all_refused(cases: Vec<(&str, Vec<u8>, u16, &str)>) {
    let server = Harness::new(Default::default(), says_text);
    let address = server.address;
    let before = good(address);
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| (0..cases.len()).map(|_| good(address)).collect::<Vec<_>>());
        for (path, body, status, param) in &cases {
            let start = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            let response = post_bytes(server.address, path, body);
            let (found, _, found_param) = response.error();
            assert_eq!((found, found_param.as_str()), (*status, *param), "{start}: {}", response.text());
        }
        assert!(beside.join().unwrap().iter().all(|answer| *answer == before));
    });
    assert_eq!(get(server.address, "/ready").status, 200);
}

fn chat(fields: Value) -> Vec<u8> {
    let mut body = json!({"messages": [{"role": "user", "content": "a"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

fn completion(fields: Value) -> Vec<u8> {
    let mut body = json!({"prompt": "a"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

#[test]
fn what_is_no_json_or_too_much_of_it() {
    let bomb = format!("{{\"prompt\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let many = format!("{{\"prompt\": [{}1]}}", "1,".repeat(3 << 20));
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        (COMPLETIONS, b"{\"prompt\": ".to_vec(), 400, ""),
        (COMPLETIONS, b"".to_vec(), 400, ""),
        (COMPLETIONS, b"[1]".to_vec(), 400, ""),
        (COMPLETIONS, b"\"a\"".to_vec(), 400, ""),
        (COMPLETIONS, b"{\"prompt\": \"\xff\xfe\"}".to_vec(), 400, ""),
        (COMPLETIONS, b"{\"prompt\": \"\\ud800\"}".to_vec(), 400, ""),
        (COMPLETIONS, b"{\"prompt\": \"a\", \"temperature\": NaN}".to_vec(), 400, ""),
        (COMPLETIONS, b"{\"prompt\": \"a\", \"temperature\": Infinity}".to_vec(), 400, ""),
        (COMPLETIONS, b"{\"prompt\": \"a\", \"temperature\": 1e999}".to_vec(), 400, ""),
        (COMPLETIONS, bomb.into_bytes(), 400, ""),
        (COMPLETIONS, many.into_bytes(), 400, ""),
        (COMPLETIONS, vec![b' '; (16 << 20) + 1], 413, ""),
    ];
    all_refused(cases);
}

#[test]
fn parameters_that_are_wrong_are_named() {
    let c = |fields: Value, param: &'static str| (COMPLETIONS, completion(fields), 400, param);
    let h = |fields: Value, param: &'static str| (CHAT, chat(fields), 400, param);
    let images = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]}]);
    let many_biases: serde_json::Map<String, Value> =
        (0..1025).map(|id| (id.to_string(), 1.into())).collect();
    let audio = json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]);
    all_refused(vec![
        c(json!({"temperature": "hot"}), "temperature"),
        c(json!({"temperature": -1}), "temperature"),
        c(json!({"top_p": 0}), "top_p"),
        c(json!({"top_p": 1.5}), "top_p"),
        c(json!({"n": 1_000_000}), "n"),
        c(json!({"n": 0}), "n"),
        c(json!({"n": -3}), "n"),
        c(json!({"n": 1e300}), "n"),
        c(json!({"n": 1.5}), "n"),
        c(json!({"max_tokens": -1}), "max_tokens"),
        c(json!({"max_tokens": 0}), "max_tokens"),
        c(json!({"max_tokens": 1 << 31}), "max_tokens"),
        c(json!({"max_tokens": u64::MAX}), "max_tokens"),
        c(json!({"max_tokens": MAX_MODEL_LEN}), "max_tokens"),
        c(json!({"min_tokens": 20}), "min_tokens"),
        c(json!({"prompt": "", "add_special_tokens": false}), "prompt"),
        c(json!({"prompt": []}), "prompt"),
        c(json!({"prompt": [[]]}), "prompt"),
        c(json!({"prompt": null}), "prompt"),
        c(json!({"prompt": "a".repeat(10 << 20)}), "prompt"),
        c(json!({"prompt": 7}), "prompt"),
        c(json!({"prompt": [2048]}), "prompt"),
        c(json!({"prompt": [4294967295u32]}), "prompt"),
        c(json!({"prompt": [1, -2]}), "prompt[1]"),
        c(json!({"prompt": vec![5; MAX_MODEL_LEN]}), "prompt"),
        c(json!({"stop": "x".repeat(1 << 20)}), "stop"),
        c(json!({"stop": ""}), "stop"),
        c(json!({"stop": ["a", 1]}), "stop"),
        c(json!({"stop": vec!["a"; 100]}), "stop"),
        c(json!({"stop_token_ids": [99999]}), "stop_token_ids"),
        c(json!({"logit_bias": {"99999": 1}}), "logit_bias"),
        c(json!({"logit_bias": {"a": 1}}), "logit_bias"),
        c(json!({"logit_bias": {"1": 101}}), "logit_bias"),
        c(json!({"logit_bias": {"5": 1, "05": 2}}), "logit_bias"),
        c(json!({"logit_bias": {"+5": 1}}), "logit_bias"),
        c(json!({"logit_bias": many_biases}), "logit_bias"),
        c(json!({"logprobs": 21}), "logprobs"),
        c(json!({"seed": 1.5}), "seed"),
        c(json!({"stream": "yes"}), "stream"),
        c(json!({"stream_options": {"include_usage": true}}), "stream_options"),
        c(json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        c(json!({"stream": true, "prompt_logprobs": 1}), "prompt_logprobs"),
        c(json!({"frobnicate": 1}), "frobnicate"),
        c(json!({"suffix": "b"}), "suffix"),
        c(json!({"best_of": 2}), "best_of"),
        c(json!({"store": true}), "store"),
        c(json!({"messages": []}), "messages"),
        h(json!({"messages": []}), "messages"),
        h(json!({"messages": [{"role": "king", "content": "a"}]}), "messages[0].role"),
        h(json!({"messages": images}), "messages[0].content[0]"),
        h(json!({"messages": audio}), "messages[0].content[0]"),
        h(json!({"messages": [{"role": "user", "content": "harbor ".repeat(MAX_MODEL_LEN)}]}), "messages"),
        h(json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        h(json!({"max_completion_tokens": MAX_MODEL_LEN}), "max_completion_tokens"),
        h(json!({"max_completion_tokens": MAX_MODEL_LEN, "max_tokens": 1}), "max_completion_tokens"),
        h(json!({"max_tokens": MAX_MODEL_LEN}), "max_tokens"),
        h(json!({"top_logprobs": 2}), "top_logprobs"),
        h(json!({"modalities": ["audio"]}), "modalities"),
        h(json!({"tools": [{"type": "x"}]}), "tools[0].type"),
        h(json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function.name"),
        h(json!({"tool_choice": "maybe"}), "tool_choice"),
        h(json!({"functions": []}), "functions"),
        h(json!({"chat_template": "{{ x }}"}), "chat_template"),
        h(json!({"chat_template_kwargs": {"messages": 1}}), "chat_template_kwargs"),
        h(json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message"),
        h(json!({"response_format": {"type": "yaml"}}), "response_format.type"),
        h(json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice"),
        ("/tokenize", b"{}".to_vec(), 400, "prompt"),
        ("/detokenize", b"{\"tokens\": [2048]}".to_vec(), 400, "tokens"),
        ("/detokenize", b"{}".to_vec(), 400, "tokens"),
    ]);
}

#[test]
fn the_empty_text_is_a_prompt_where_the_tokenizer_begins_texts_with_a_token() {
    let server = Harness::new(Default::default(), says_text);
    assert_eq!(post(server.address, COMPLETIONS, &json!({"prompt": "", "max_tokens": 1})).status, 200);
    assert_eq!(server.submitted().1.prompt, ids("<|bos|>"));
}

#[test]
fn what_does_not_exist_is_not_found() {
    let server = Harness::new(Default::default(), says_text);
    let address = server.address;
    let model =
        post(address, CHAT, &json!({"model": "gpt-9", "messages": [{"role": "user", "content": "a"}]}));
    assert_eq!(model.error(), (404, "model_not_found".into(), "model".into()));
    assert_eq!(get(address, "/v1/models/gpt-9").error().0, 404);
    assert_eq!(get(address, "/v1/nothing").error().0, 404);
    for path in ["/v1/models/%ff", "/page/%ff"] {
        assert_eq!(get(address, path).error(), (404, "not_found".into(), String::new()), "{path}");
    }
    assert_eq!(get(address, "/page/..%2f..%2fCargo.toml").error().0, 404);
    assert_eq!(get(address, CHAT).error().0, 405);
    assert_eq!(get(address, CHAT).header("allow"), Some("POST"));
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        let response = send(address, "POST", COMPLETIONS, &[("Content-Type", kind)], b"{\"prompt\": \"a\"}");
        assert_eq!(response.error().0, 415, "{kind}");
    }
    assert_eq!(send(address, "POST", COMPLETIONS, &[], b"{}").error().0, 415);
}

#[test]
fn an_image_is_refused_without_anybody_looking_for_it() {
    let canary = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let server = Harness::new(Default::default(), says_text);
    let url = format!("http://{}/cat.png", canary.local_addr().unwrap());
    let part = json!({"type": "image_url", "image_url": {"url": url}});
    let body = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": format!("![x]({url})")}, part]}]});
    assert_eq!(post(server.address, CHAT, &body).error().0, 400);
    assert!(canary.accept().is_err(), "nobody came");
}

#[test]
fn what_the_engine_refuses_is_an_error_also_of_a_stream() {
    let server = Harness::new(Default::default(), |id, _| {
        vec![engine::serving::Event::Refused { id, message: "the regex is\nbad".into() }]
    });
    for stream in [false, true] {
        let body = json!({"prompt": "a", "guided_regex": "a", "stream": stream});
        let response = post(server.address, COMPLETIONS, &body);
        assert_eq!(response.error().0, 400);
        assert!(response.text().contains("the regex is bad"));
    }
}
