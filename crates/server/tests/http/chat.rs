//! `/v1/chat/completions`.

use engine::Grammar;
use serde_json::{Value, json};

use super::client::post;
use super::engine::{EOS, Harness, MAX_MODEL_LEN, TEXT, ids, says, says_text};
#[cfg(target_os = "linux")]
use super::{
    client::{connect, head},
    engine::{never_ends, until},
};

const PATH: &str = "/v1/chat/completions";

fn prompt() -> Vec<u32> {
    ids("<|bos|><|user|>How is the harbor?<|end|><|assistant|>")
}

fn ask(fields: Value) -> Value {
    let mut body = json!({"model": "model", "messages": [{"role": "user", "content": "How is the harbor?"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn a_conversation_is_answered_with_all_that_clients_expect() {
    let server = Harness::new(Default::default(), says_text);
    let answer = post(server.address, PATH, &ask(json!({}))).json();
    let (_, request) = server.submitted();
    let prompt = prompt();
    assert_eq!(request.prompt, prompt, "the template's text, without a second first token");
    assert_eq!(request.max_tokens, MAX_MODEL_LEN - prompt.len(), "all that fits");
    assert_eq!(request.sampling.temperature, 1.0);
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": TEXT, "refusal": null}));
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &Value::Null));
    let completion = ids(TEXT).len() + 1;
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": prompt.len(), "completion_tokens": completion, "total_tokens": prompt.len() + completion,
            "prompt_tokens_details": {"cached_tokens": 1},
        })
    );
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("model")));
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-") && answer["created"].is_u64());
}

#[test]
fn a_stream_has_the_role_first_then_text_then_the_end_then_usage() {
    let server = Harness::new(Default::default(), says_text);
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = post(server.address, PATH, &ask(options)).events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["prompt_tokens"]), (&json!([]), &json!(prompt().len())));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["id"] == usage["id"]));
    let (last, deltas) = chunks.split_last().unwrap();
    assert_eq!(
        (&last["choices"][0]["delta"], &last["choices"][0]["finish_reason"]),
        (&json!({}), &json!("stop"))
    );
    assert!(deltas.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
    let text: String =
        deltas.iter().map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, TEXT);
    let without = post(server.address, PATH, &ask(json!({"stream": true}))).events();
    assert!(without.iter().all(|chunk| chunk.get("usage").is_none()));
    let options =
        json!({"stream": true, "stream_options": {"continuous_usage_stats": true}, "max_tokens": 2});
    let running = post(server.address, PATH, &ask(options)).events();
    assert_eq!(running.last().unwrap()["usage"]["completion_tokens"], 2);
}

#[test]
fn the_prompts_ids_are_of_the_answer_and_a_choices_ids_its_own() {
    let server = Harness::new(Default::default(), says_text);
    let fields = json!({"return_token_ids": true, "n": 2, "max_tokens": 3});
    let whole = post(server.address, PATH, &ask(fields.clone())).json();
    assert_eq!(whole["prompt_token_ids"], json!(prompt()));
    let mut streamed = fields;
    streamed["stream"] = true.into();
    let events = post(server.address, PATH, &ask(streamed)).events();
    assert_eq!(events[0]["prompt_token_ids"], json!(prompt()));
    assert!(events[1..].iter().all(|event| event.get("prompt_token_ids").is_none()), "once is enough");
    for index in 0..2 {
        let choices = events.iter().map(|event| &event["choices"][0]);
        let own = choices.filter(|choice| choice["index"] == index);
        let ids: Vec<Value> =
            own.flat_map(|choice| choice["token_ids"].as_array().cloned().unwrap_or_default()).collect();
        assert_eq!(json!(ids), whole["choices"][index]["token_ids"]);
        assert_eq!(ids.len(), 3);
    }
}

#[test]
fn choices_have_seeds_that_follow_each_other_and_indices() {
    let server = Harness::new(Default::default(), |id, request| {
        // Who has the later seed says more before it ends.
        let said = vec![ids(" a")[0]; (request.sampling.seed - 40) as usize];
        says(id, request, &[said, vec![EOS[0]]].concat())
    });
    let answer = post(server.address, PATH, &ask(json!({"n": 3, "seed": 41}))).json();
    let texts = answer["choices"].as_array().unwrap().iter();
    let texts: Vec<_> =
        texts.map(|choice| (choice["index"].clone(), choice["message"]["content"].clone())).collect();
    assert_eq!(texts, [(json!(0), json!(" a")), (json!(1), json!(" a a")), (json!(2), json!(" a a a"))]);
    assert_eq!(answer["usage"]["completion_tokens"], 2 + 3 + 4);
    let streamed = post(server.address, PATH, &ask(json!({"n": 3, "seed": 41, "stream": true}))).events();
    let options =
        json!({"n": 3, "seed": 41, "stream": true, "stream_options": {"continuous_usage_stats": true}});
    let running = post(server.address, PATH, &ask(options)).events();
    for index in 0..3 {
        // What a chunk tells of usage is its own choice's.
        let of = running.iter().rfind(|event| event["choices"][0]["index"] == index).unwrap();
        assert_eq!(of["usage"]["completion_tokens"], index + 2);
        let of = streamed.iter().filter(|event| event["choices"][0]["index"] == index);
        let text: String = of.filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, " a".repeat(index + 1));
    }
}

#[test]
fn a_request_without_a_seed_gets_one_that_nobody_knows() {
    let server = Harness::new(Default::default(), says_text);
    let seeds = [(); 2].map(|()| {
        post(server.address, PATH, &ask(json!({})));
        server.submitted().1.sampling.seed
    });
    assert_ne!(seeds[0], seeds[1]);
}

#[test]
fn log_probabilities_have_tokens_bytes_and_the_most_probable() {
    let server = Harness::new(Default::default(), says_text);
    let fields = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 2});
    let whole = post(server.address, PATH, &ask(fields.clone())).json();
    let content = &whole["choices"][0]["logprobs"]["content"];
    let first = ids(TEXT)[0];
    assert_eq!(content.as_array().unwrap().len(), 2);
    assert_eq!(content[0]["token"], " quiet"[..content[0]["token"].as_str().unwrap().len()]);
    assert_eq!(content[0]["logprob"].as_f64().unwrap() as f32, -(first as f32) / 1024.0);
    assert_eq!(content[0]["bytes"][0], 32);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let mut streamed = fields;
    streamed["stream"] = true.into();
    let events = post(server.address, PATH, &ask(streamed)).events();
    let entries = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(entries.flatten().cloned().collect::<Vec<_>>(), *content.as_array().unwrap());
}

#[test]
fn stop_strings_end_the_text_across_tokens_and_the_engine_hears_of_it() {
    let server = Harness::new(Default::default(), |id, request| {
        let mut events = says_text(id, request);
        events.pop();
        events
    });
    let whole = post(server.address, PATH, &ask(json!({"stop": ["er was g", "never"]}))).json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], " quiet and the wat");
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!("er was g")));
    let (id, _) = server.submitted();
    server.aborted(id);
    let fields = json!({"stop": "er was g", "include_stop_str_in_output": true, "stream": true});
    let events = post(server.address, PATH, &ask(fields)).events();
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, " quiet and the water was g");
}

#[test]
fn tokens_that_stop_have_no_text_unless_asked_for() {
    let server = Harness::new(Default::default(), says_text);
    let stop = ids(TEXT)[2];
    let before = super::engine::tokenizer().decode(&ids(TEXT)[..2], true).unwrap();
    let choice =
        post(server.address, PATH, &ask(json!({"stop_token_ids": [stop]}))).json()["choices"][0].clone();
    assert_eq!(
        (choice["message"]["content"].as_str(), &choice["stop_reason"]),
        (Some(before.as_str()), &json!(stop))
    );
    let (_, request) = server.submitted();
    assert_eq!(request.stop_token_ids, [stop, EOS[0], EOS[1]]);
    post(server.address, PATH, &ask(json!({"ignore_eos": true, "max_tokens": 5})));
    assert!(server.submitted().1.stop_token_ids.is_empty());
}

#[test]
fn every_parameter_reaches_the_engine() {
    let server = Harness::new(Default::default(), says_text);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let fields = json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 1.5, "frequency_penalty": -0.5,
        "repetition_penalty": 1.25, "seed": -1, "logit_bias": {"7": -100, "8": 1.5}, "min_tokens": 2,
        "max_tokens": 9, "max_completion_tokens": 4, "cache_salt": "mine", "prompt_logprobs": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": true}},
        "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto",
    });
    let answer = post(server.address, PATH, &ask(fields)).json();
    let (_, request) = server.submitted();
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.5, 0.9, 5, 0.1));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (1.5, -0.5));
    assert_eq!((sampling.repetition_penalty, sampling.seed), (1.25, u64::MAX));
    assert_eq!(request.logit_bias, [(7, -100.0), (8, 1.5)]);
    assert_eq!((request.min_tokens, request.max_tokens), (2, 4));
    assert_ne!(request.cache_salt, 0);
    assert_eq!(request.grammar.as_deref(), Some(&Grammar::JsonSchema(schema.to_string())));
    assert_eq!(answer["prompt_logprobs"].as_array().unwrap().len(), request.prompt.len());
    assert_eq!(answer["prompt_logprobs"][0], Value::Null);
    // Also of a token that is not among the most probable ones.
    let second = request.prompt[1];
    assert_eq!(answer["prompt_logprobs"][1][second.to_string()]["rank"], 1 + second % 7);
}

#[test]
fn a_template_that_shows_tools_and_variables_gets_them() {
    let template = "{{ bos_token }}{% for tool in tools %}{{ tool.function.name }}: {{ tool.function.description }}\n{% endfor %}\
        {{ mood }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let server = Harness::of_template(template, says_text);
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "description": "Tides."}});
    let fields = json!({"tools": [tool("f"), tool("g")], "chat_template_kwargs": {"mood": "calm"}});
    assert_eq!(post(server.address, PATH, &ask(fields)).status, 200);
    let text = "<|bos|>f: Tides.\ng: Tides.\ncalm<|user|>How is the harbor?<|end|><|assistant|>";
    assert_eq!(server.submitted().1.prompt, ids(text));
}

#[test]
fn the_final_message_is_gone_on_with_where_it_ends_whatever_stands_behind_it() {
    let server = Harness::new(Default::default(), says_text);
    // Some of these stand in the template's own text behind it too.
    for text in ["The harbor", "e", "|", "", "END_OF_FINAL_MESSAGE"] {
        let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]);
        let body = json!({"messages": messages, "continue_final_message": true});
        assert_eq!(post(server.address, PATH, &body).status, 200);
        let expected = ids(&format!("<|bos|><|user|>a<|end|><|assistant|>{text}"));
        assert_eq!(server.submitted().1.prompt, expected, "{text:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_request_said_is_not_held_until_its_last_token() {
    let resident_mib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.unwrap().parse::<usize>().unwrap() >> 10
    };
    let before = resident_mib();
    let server = Harness::new(Default::default(), never_ends);
    // This takes 70 MiB once it is parsed.
    let list = format!("[{}1]", "1,".repeat(1_000_000));
    let messages = json!([{"role": "user", "content": "a"}]);
    let body = format!("{{\"messages\": {messages}, \"chat_template_kwargs\": {{\"list\": {list}}}}}");
    let request = head("POST", PATH, &[("Content-Type", "application/json")], body.as_bytes());
    let ask = |_| {
        let mut stream = connect(server.address);
        std::io::Write::write_all(&mut stream, &request).unwrap();
        server.submitted();
        stream
    };
    let running: Vec<_> = (0..10).map(ask).collect();
    // Other tests run beside this one, and take some too, but not for long.
    until("half of it is free", || resident_mib() < before + 350);
    drop(running);
}
