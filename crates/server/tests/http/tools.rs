//! Tools: what the engine is held to, and what comes of calls.

use std::sync::Arc;

use engine::{Grammar, Opened};
use serde_json::{Value, json};

use super::client::post;
use super::engine::{EOS, Harness, ids, says, tokenizer};

const PATH: &str = "/v1/chat/completions";
const TWO: &str = "I'll look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Møn\", \"days\": [1, 2]}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";

fn tools() -> Value {
    let parameters = json!({
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "array"}}, "required": ["city"],
    });
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "Weather of days.", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn ask(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "How is the harbor?"}], "tools": tools()});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn says_two(id: u64, request: &engine::GenerateRequest) -> Vec<engine::serving::Event> {
    says(id, request, &[ids(TWO), vec![EOS[0]]].concat())
}

/// A stream's deltas, put together as clients do.
fn joined(events: &[Value]) -> Value {
    let (mut content, mut calls) = (String::new(), Vec::<Value>::new());
    for delta in events.iter().map(|event| &event["choices"][0]["delta"]) {
        content.push_str(delta["content"].as_str().unwrap_or_default());
        for part in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = part["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert!(
                    part["id"].as_str().unwrap().starts_with("call_") && part["type"] == "function",
                    "{part}"
                );
                assert_eq!(part["function"]["arguments"], "");
                calls.push(part.clone());
                continue;
            }
            assert_eq!(index + 1, calls.len(), "a call's parts come before the next one's");
            assert!(part.get("id").is_none() && part["function"].get("name").is_none(), "{part}");
            let arguments = &mut calls[index]["function"]["arguments"];
            let more = part["function"]["arguments"].as_str().unwrap();
            *arguments = (arguments.as_str().unwrap().to_owned() + more).into();
        }
    }
    json!({"content": content, "calls": calls})
}

#[test]
fn calls_are_parsed_and_a_stream_has_the_same_in_pieces() {
    let server = Harness::new(Default::default(), says_two);
    let fields = json!({"logprobs": true, "top_logprobs": 0});
    let answer = post(server.address, PATH, &ask(fields.clone())).json();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("I'll look."), &json!("tool_calls"))
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    let functions: Vec<&Value> = calls.iter().map(|call| &call["function"]).collect();
    let expected = [
        json!({"name": "get_weather", "arguments": "{\"city\": \"Møn\", \"days\": [1, 2]}"}),
        json!({"name": "now", "arguments": "{}"}),
    ];
    assert_eq!(functions, expected.iter().collect::<Vec<_>>());
    assert!(
        calls
            .iter()
            .all(|call| call["type"] == "function" && call["id"].as_str().unwrap().starts_with("call_"))
    );
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let tokens = ids(TWO).len() + 1;
    assert_eq!(answer["usage"]["completion_tokens"], tokens);
    let logprobs = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(logprobs.len(), tokens);

    let mut streamed = fields;
    streamed["stream"] = true.into();
    let events = post(server.address, PATH, &ask(streamed)).events();
    let same = joined(&events);
    assert_eq!(same["content"], "I'll look.");
    let streamed: Vec<Value> =
        same["calls"].as_array().unwrap().iter().map(|call| call["function"].clone()).collect();
    assert_eq!(streamed, expected);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    let pieces = events.iter().filter(|event| event["choices"][0]["delta"]["tool_calls"].is_array());
    assert!(pieces.count() > 6, "arguments come as they are written");
    let entries = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(entries.flatten().cloned().collect::<Vec<_>>(), *logprobs);
}

#[test]
fn an_answer_of_calls_only_has_no_content_and_one_of_text_no_calls() {
    let server = Harness::new(Default::default(), |id, request| {
        let text = if request.sampling.seed == 1 { &TWO[11..] } else { "No <tool_call> here: {}\n" };
        says(id, request, &[ids(text), vec![EOS[0]]].concat())
    });
    let message =
        |seed: u64| post(server.address, PATH, &ask(json!({"seed": seed}))).json()["choices"][0].clone();
    let (calls, text) = (message(1), message(2));
    assert_eq!(calls["message"]["content"], Value::Null);
    assert_eq!(calls["message"]["tool_calls"].as_array().unwrap().len(), 2);
    assert_eq!(
        text["message"],
        json!({"role": "assistant", "content": "No <tool_call> here: {}\n", "refusal": null})
    );
    assert_eq!(text["finish_reason"], "stop");
    // Without tools nothing is parsed.
    let body = json!({"messages": [{"role": "user", "content": "a"}], "seed": 1});
    let plain = post(server.address, PATH, &body).json()["choices"][0]["message"].clone();
    assert_eq!((&plain["content"], plain.get("tool_calls")), (&json!(&TWO[11..]), None));
    let none = post(server.address, PATH, &ask(json!({"seed": 1, "tool_choice": "none"}))).json();
    assert_eq!(none["choices"][0]["message"]["content"], TWO[11..]);
}

#[test]
fn a_forced_call_that_is_cut_off_is_as_much_of_a_call_as_there_is_and_never_content() {
    let server = Harness::new(Default::default(), |id, request| says(id, request, &ids(&TWO[11..])));
    let all = ids(&TWO[11..]).len();
    let choices = [json!("required"), json!({"type": "function", "function": {"name": "get_weather"}})];
    for choice in choices {
        let mut lengths = Vec::new();
        for max_tokens in 1..all {
            let fields = json!({"tool_choice": choice, "max_tokens": max_tokens});
            let whole = post(server.address, PATH, &ask(fields.clone())).json()["choices"][0].clone();
            assert_eq!(whole["finish_reason"], "length");
            let content = whole["message"]["content"].as_str().unwrap_or_default();
            assert_eq!(content, "", "{max_tokens} tokens");
            let functions: Vec<Value> = whole["message"]["tool_calls"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|call| call["function"].clone())
                .collect();
            lengths.push(functions.len());

            let mut streamed = fields;
            streamed["stream"] = true.into();
            let same = joined(&post(server.address, PATH, &ask(streamed)).events());
            assert_eq!(same["content"], "");
            let same = same["calls"].as_array().unwrap().iter().map(|call| call["function"].clone());
            assert_eq!(same.collect::<Vec<_>>(), functions, "{max_tokens} tokens");
        }
        assert!(lengths.is_sorted() && lengths.contains(&0) && lengths.contains(&1), "{lengths:?}");
    }
}

#[test]
fn the_choice_of_tools_is_what_the_engine_is_held_to() {
    let server = Harness::new(Default::default(), says_two);
    let grammar = |fields: Value| {
        let answer = post(server.address, PATH, &ask(fields)).json();
        let grammar = server.submitted().1.grammar.map(Arc::unwrap_or_clone);
        (grammar, answer["choices"][0]["finish_reason"].clone())
    };
    let opened = |repeats: bool, found: Option<Grammar>| match found {
        Some(Grammar::Opened(opened)) => {
            let Opened { openers, repeats: found, .. } = *opened;
            assert_eq!((openers, found), (vec!["<tool_call>".to_owned()], repeats));
        }
        other => panic!("{other:?}"),
    };
    opened(true, grammar(json!({})).0);
    opened(false, grammar(json!({"parallel_tool_calls": false})).0);
    assert_eq!(grammar(json!({"tool_choice": "none"})).0, None);
    let lark = |(found, reason): (Option<Grammar>, Value)| match found {
        Some(Grammar::Lark(text)) => (text, reason),
        other => panic!("{other:?}"),
    };
    let (required, reason) = lark(grammar(json!({"tool_choice": "required"})));
    assert!(required.contains("get_weather") && required.contains("now"), "{required}");
    assert_eq!(reason, "tool_calls");
    let named = json!({"tool_choice": {"type": "function", "function": {"name": "now"}}});
    let (named, reason) = lark(grammar(named));
    assert!(!named.contains("get_weather") && named.contains("now"), "{named}");
    assert_eq!(reason, "stop");
    // With a schema the answer is that, or calls.
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}});
    assert!(lark(grammar(json!({"response_format": format}))).0.contains("| answer"));
}

#[test]
fn a_format_of_its_own_is_read_and_what_must_be_a_call_is_held_to_json() {
    const XML: &str = "<tool_call>\n<function=get_weather>\n<parameter=city>\nMøn\n</parameter>\n<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>";
    let config = server::ServerConfig { tool_call_parser: Some("qwen3_coder".into()), ..Default::default() };
    let server = Harness::new(config, |id, request| {
        let text = if request.grammar.is_some() { &TWO[11..] } else { XML };
        says(id, request, &[ids(text), vec![EOS[0]]].concat())
    });
    let call = |fields: Value| {
        let answer = post(server.address, PATH, &ask(fields)).json();
        let call = answer["choices"][0]["message"]["tool_calls"][0]["function"].clone();
        (call["arguments"].clone(), server.submitted().1.grammar)
    };
    assert_eq!(call(json!({})), (json!("{\"city\": \"Møn\", \"days\": [1,2]}"), None));
    let (arguments, grammar) = call(json!({"tool_choice": "required"}));
    assert_eq!(arguments, "{\"city\": \"Møn\", \"days\": [1, 2]}");
    assert!(matches!(grammar.as_deref(), Some(Grammar::Lark(text)) if text.contains("<tool_call>")));
    let mut strict = tools();
    strict[0]["function"]["strict"] = true.into();
    let (status, _, param) = post(server.address, PATH, &ask(json!({"tools": strict}))).error();
    assert_eq!((status, param.as_str()), (400, "tools"));
}

#[test]
fn an_answer_has_one_call_where_no_more_are_wanted_however_calls_are_written() {
    const XML: &str = "Two:\n<tool_call>\n<function=get_weather>\n<parameter=city>\nMøn\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>";
    let config = server::ServerConfig { tool_call_parser: Some("qwen3_coder".into()), ..Default::default() };
    let xml = Harness::new(config, |id, request| says(id, request, &[ids(XML), vec![EOS[0]]].concat()));
    let json = Harness::new(Default::default(), says_two);
    // Nothing can be held to it.
    let far = json!({"type": "object", "properties": {"city": {"$ref": "http://127.0.0.1:9/a.json"}}});
    let mut tools = tools();
    tools[0]["function"]["parameters"] = far;
    for (server, several) in [(&xml, true), (&xml, false), (&json, true), (&json, false)] {
        let fields = json!({"parallel_tool_calls": several, "tools": tools, "stream": false});
        let answer = post(server.address, PATH, &ask(fields.clone())).json();
        assert_eq!(server.submitted().1.grammar, None);
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().iter();
        let calls: Vec<Value> = calls.map(|call| call["function"].clone()).collect();
        let names: Vec<&Value> = calls.iter().map(|call| &call["name"]).collect();
        assert_eq!(names, if several { vec!["get_weather", "now"] } else { vec!["get_weather"] });
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        let mut streamed = fields;
        streamed["stream"] = true.into();
        let events = post(server.address, PATH, &ask(streamed)).events();
        server.submitted();
        let same = joined(&events);
        assert_eq!(same["content"], answer["choices"][0]["message"]["content"]);
        let same = same["calls"].as_array().unwrap().iter().map(|call| call["function"].clone());
        assert_eq!(same.collect::<Vec<_>>(), calls);
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[test]
fn a_template_that_knows_no_tools_gets_them_and_their_results_as_text() {
    let server = Harness::new(Default::default(), says_two);
    let call =
        json!({"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{\"a\": 1}"}});
    let messages = json!([
        {"role": "user", "content": "How late is it?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]);
    assert_eq!(post(server.address, PATH, &ask(json!({"messages": messages}))).status, 200);
    let text = tokenizer().decode(&server.submitted().1.prompt, false).unwrap();
    for part in [
        "<|bos|><|system|>",
        "\"name\":\"get_weather\"",
        "<|assistant|><tool_call>\n{\"name\":\"now\",\"arguments\":{\"a\":1}}\n</tool_call><|end|>",
        "<|user|><tool_response>\nnoon\n</tool_response><|end|><|assistant|>",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn what_cannot_be_held_to_is_refused_by_name_before_the_engine_sees_it() {
    let server = Harness::new(Default::default(), says_two);
    let chat = |fields: Value| post(server.address, PATH, &ask(fields)).error();
    let schema =
        |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    let tool = |parameters: Value| json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    let far = json!({"$ref": "http://127.0.0.1:9/a.json"});
    let steep = json!({"type": "integer", "multipleOf": 999_983});
    for (fields, param) in [
        (json!({"tools": [], "response_format": schema(far.clone())}), "response_format"),
        (json!({"tools": [], "response_format": schema(json!({"type": "strange"}))}), "response_format"),
        (
            json!({"tools": [], "response_format": schema(json!({"pattern": "(a", "type": "string"}))}),
            "response_format",
        ),
        (json!({"tools": [], "response_format": schema(steep)}), "response_format"),
        (json!({"tools": [], "guided_regex": "[a"}), "guided_regex"),
        (json!({"tools": [], "guided_grammar": "start: missing"}), "guided_grammar"),
        (json!({"tools": tool(far.clone()), "tool_choice": "required"}), "tools[0].function.parameters"),
        (json!({"tool_choice": "required", "guided_regex": "a"}), "guided_regex"),
        (json!({"tool_choice": "required", "tools": []}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}), "tool_choice"),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
        (json!({"tools": [tools()[0], tools()[0]]}), "tools"),
        (json!({"tools": [{"type": "function", "function": {"name": ""}}]}), "tools[0].function.name"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name"),
    ] {
        let (status, _, found) = chat(fields.clone());
        assert_eq!((status, found.as_str()), (400, param), "{fields}");
    }
    let (status, _, param) =
        post(server.address, "/v1/completions", &json!({"prompt": "a", "guided_regex": "[a"})).error();
    assert_eq!((status, param.as_str()), (400, "guided_regex"));
    assert!(server.seen.try_recv().is_err(), "the engine saw nothing");
    // Free calls are parsed, even if they can't be held to their schema.
    assert_eq!(post(server.address, PATH, &ask(json!({"tools": tool(far)}))).status, 200);
    assert_eq!(server.submitted().1.grammar, None);
}
