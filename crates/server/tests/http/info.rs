//! Routes that tell of the server.

use serde_json::{Value, json};
use server::ServerConfig;

use super::client::{get, post};
use super::engine::{Harness, ids, says_text, tokenizer, until};

#[test]
fn texts_and_conversations_become_tokens_and_back() {
    let server = Harness::new(Default::default(), says_text);
    let text = "The harbor — héron";
    let answer =
        post(server.address, "/tokenize", &json!({"prompt": text, "return_token_strs": true})).json();
    let expected = tokenizer().encode(text, true).unwrap();
    assert_eq!((&answer["tokens"], &answer["count"]), (&json!(expected), &json!(expected.len())));
    assert_eq!(
        (&answer["max_model_len"], &answer["token_strs"][0]),
        (&json!(super::engine::MAX_MODEL_LEN), &json!("<|bos|>"))
    );
    let plain =
        post(server.address, "/tokenize", &json!({"prompt": text, "add_special_tokens": false})).json();
    assert_eq!(plain["tokens"], json!(ids(text)));
    let back = post(server.address, "/detokenize", &json!({"tokens": ids(text)})).json();
    assert_eq!(back, json!({"prompt": text}));
    let chat =
        post(server.address, "/tokenize", &json!({"messages": [{"role": "user", "content": "a"}]})).json();
    assert_eq!(chat["tokens"], json!(ids("<|bos|><|user|>a<|end|><|assistant|>")));
}

#[test]
fn models_are_the_names_that_are_served() {
    let config =
        ServerConfig { served_model_names: vec!["demo".into(), "alias/of it".into()], ..Default::default() };
    let server = Harness::new(config, says_text);
    let list = get(server.address, "/v1/models").json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("demo")));
    assert_eq!(
        (&list["data"][1]["id"], &list["data"][1]["max_model_len"]),
        (&json!("alias/of it"), &json!(super::engine::MAX_MODEL_LEN))
    );
    assert_eq!(get(server.address, "/v1/models/demo").json()["object"], "model");
    for path in ["alias%2Fof%20it", "alias/of%20it"] {
        assert_eq!(get(server.address, &format!("/v1/models/{path}")).json()["root"], "demo", "{path}");
    }
    let answer =
        post(server.address, "/v1/completions", &json!({"model": "alias/of it", "prompt": "a"})).json();
    assert_eq!(answer["model"], "alias/of it", "as it was asked for");
    let answer = get(server.address, "/version").json();
    assert!(answer["version"].is_string());
}

#[test]
fn metrics_have_vllms_names_and_count() {
    let server = Harness::new(Default::default(), says_text);
    post(server.address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 3}));
    let text = || get(server.address, "/metrics").text();
    // The load comes behind the tokens.
    until("metrics tell of the request", || {
        let text = text();
        text.contains("generation_tokens_total{model_name=\"model\"} 3")
            && text.contains("rank_busy_seconds_total{model_name=\"model\",rank=\"1\"} 1.5")
    });
    let text = text();
    assert!(text.ends_with("# EOF\n"));
    for line in [
        "anysplit:num_requests_running{model_name=\"model\"} 0",
        "anysplit:num_requests_waiting{model_name=\"model\"} 0",
        "anysplit:kv_cache_usage_perc{model_name=\"model\"} 0",
        "anysplit:prefix_cache_queries_total{",
        "anysplit:prefix_cache_hits_total{",
        "anysplit:num_preemptions_total{",
        // All of it, one of whose tokens was cached.
        "anysplit:prompt_tokens_total{model_name=\"model\"} 2",
        "anysplit:computed_prompt_tokens_total{",
        "anysplit:num_requests_waiting_by_reason{model_name=\"model\",reason=\"capacity\"} 0",
        "anysplit:request_params_n_count{model_name=\"model\"} 1",
        "anysplit:request_params_max_tokens_sum{model_name=\"model\"} 3.0",
        "anysplit:request_max_num_generation_tokens_sum{model_name=\"model\"} 3.0",
        "anysplit:rank_memory_bytes{model_name=\"model\",rank=\"1\",kind=\"free\"} 7",
        "anysplit:request_success_total{model_name=\"model\",finished_reason=\"length\"} 1",
        "anysplit:iteration_tokens_total_bucket{",
        "anysplit:time_to_first_token_seconds_count{model_name=\"model\"} 1",
        "anysplit:inter_token_latency_seconds_count{model_name=\"model\"} 2",
        "anysplit:request_time_per_output_token_seconds_count{model_name=\"model\"} 1",
        "anysplit:e2e_request_latency_seconds_count{model_name=\"model\"} 1",
        "anysplit:request_queue_time_seconds_count{",
        "anysplit:request_prefill_time_seconds_count{",
        "anysplit:request_decode_time_seconds_count{",
        "anysplit:request_inference_time_seconds_count{",
        "anysplit:cache_config_info{",
        "anysplit:rank_memory_bytes{",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn answers_are_counted_by_route_and_status_and_no_client_can_make_up_a_label() {
    let server = Harness::new(Default::default(), says_text);
    post(server.address, "/v1/completions", &json!({"prompt": "a"}));
    post(server.address, "/v1/completions", &json!({"prompt": 1.5}));
    get(server.address, "/v1/completions");
    get(server.address, "/v1/models/some%2Fmodel");
    for (method, path) in [("GET", "/some/path"), ("GET", "/another"), ("BREW", "/coffee")] {
        super::client::send(server.address, method, path, &[], b"");
    }
    let text = get(server.address, "/metrics").text();
    for line in [
        "method=\"POST\",status=\"200\",handler=\"/v1/completions\"} 1",
        "method=\"POST\",status=\"400\",handler=\"/v1/completions\"} 1",
        "method=\"GET\",status=\"405\",handler=\"/v1/completions\"} 1",
        "method=\"GET\",status=\"404\",handler=\"/v1/models/{id}\"} 1",
        "method=\"GET\",status=\"404\",handler=\"none\"} 2",
        "method=\"other\",status=\"404\",handler=\"none\"} 1",
    ] {
        let line = format!("http_requests_total{{model_name=\"model\",{line}");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("BREW") && !text.contains("coffee"));
}

#[test]
fn all_reasons_are_there_before_the_first_request() {
    let server = Harness::new(Default::default(), says_text);
    let text = get(server.address, "/metrics").text();
    for reason in ["stop", "length", "abort", "error"] {
        let line = format!("request_success_total{{model_name=\"model\",finished_reason=\"{reason}\"}} 0\n");
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[test]
fn ranks_are_told_of_as_they_are_now() {
    let server = Harness::new(Default::default(), says_text);
    for n in 1..4 {
        post(server.address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 3}));
        until("the step is told of", || get(server.address, "/status").json()["load"]["steps"] == n);
        // The load comes behind the tokens; with it there, who asks hears what the ranks have done by then.
        let status = get(server.address, "/status").json();
        assert_eq!(status["ranks"][1]["steps"], n, "{status}");
        let line = format!("rank_steps_total{{model_name=\"model\",rank=\"1\"}} {n}");
        assert!(get(server.address, "/metrics").text().contains(&line));
    }
}

#[test]
fn status_tells_of_requests_and_never_what_they_say() {
    let config = ServerConfig { api_keys: vec!["k-secret".into()], ..Default::default() };
    let server = Harness::new(config, says_text);
    let headers = [("Authorization", "Bearer k-secret"), ("Content-Type", "application/json")];
    let body = json!({"prompt": "a harbor secret", "max_tokens": 4}).to_string();
    super::client::send(server.address, "POST", "/v1/completions", &headers, body.as_bytes());
    let response = super::client::send(server.address, "GET", "/status", &headers, b"");
    let status = response.json();
    assert_eq!((&status["state"], &status["model"]), (&json!("ready"), &json!("model")));
    assert_eq!(status["engine"]["parallel"]["tp"], 2);
    assert_eq!(status["ranks"].as_array().unwrap().len(), 2);
    let entry = &status["requests"][0];
    assert_eq!((&entry["state"], &entry["finish_reason"]), (&json!("ended"), &json!("length")));
    assert_eq!((&entry["completion_tokens"], &entry["cached_tokens"]), (&json!(4), &json!(1)));
    let times =
        ["arrived_s", "started_s", "first_token_s", "ended_s"].map(|name| entry[name].as_f64().unwrap());
    assert!(times.is_sorted(), "{times:?}");
    assert!(status["rates"]["ttft_ms_p50"].is_number() && status["load"]["steps"].is_number());
    assert!(!response.text().contains("secret"));
}

#[test]
fn pages_ask_at_addresses_without_the_key_that_their_own_may_have() {
    let server = Harness::new(Default::default(), says_text);
    for script in ["api", "app", "docs"] {
        let text = get(server.address, &format!("/page/{script}.js")).text();
        let asks = text.matches("fetch(").count();
        assert_eq!(
            text.matches("fetch(at(").count(),
            asks,
            "{script}: a browser refuses http://name:key@host"
        );
        assert!(!text.contains("baseURI") && !text.contains("location.href"), "{script}");
    }
}

#[test]
fn the_document_has_every_route_and_parameter_and_a_page() {
    let server = Harness::new(Default::default(), says_text);
    let document = get(server.address, "/openapi.json").json();
    for (method, path) in server::routes() {
        assert!(document["paths"][path][method.to_lowercase()].is_object(), "{method} {path}");
    }
    let schema = |path: &str| -> Value {
        document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"].clone()
    };
    let chat = schema("/v1/chat/completions");
    assert_eq!(chat["properties"]["n"]["maximum"], 128);
    assert_eq!(chat["required"], json!(["messages"]));
    assert_eq!(chat["properties"]["top_p"]["exclusiveMinimum"], 0.0);
    assert_eq!(schema("/v1/completions")["additionalProperties"], false);
    // What must be there must not be null.
    assert_eq!(schema("/detokenize")["properties"]["tokens"]["type"], json!(["array"]));
    assert_eq!(document["security"], json!([]), "this server asks for no key");
    let config = ServerConfig { api_keys: vec!["k".into()], ..Default::default() };
    let keyed = Harness::new(config, says_text);
    let response =
        super::client::send(keyed.address, "GET", "/openapi.json", &[("Authorization", "Bearer k")], b"");
    let keyed = response.json();
    assert_eq!(keyed["security"], json!([{"key": []}]));
    assert_eq!(keyed["paths"]["/health"]["get"]["security"], json!([]));
    for page in ["/", "/docs", "/page/docs.js", "/page/style.css"] {
        let response = get(server.address, page);
        assert_eq!(response.status, 200, "{page}");
        assert!(
            !response.text().contains("http://") && !response.text().contains("https://"),
            "{page} loads nothing from elsewhere"
        );
        assert!(response.header("content-security-policy").unwrap().contains("default-src 'self'"));
    }
}
