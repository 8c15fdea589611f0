//! Messages for templates that know nothing of calls: tools in the system message, calls and their results as text.

use serde_json::{Value, json};

use super::dialect::Dialect;
use super::format::Format;

/// The messages, with `tools` described if there are any.
pub fn messages(messages: &[Value], tools: &[&Value], dialect: &Dialect) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    for message in messages {
        let text = message["content"].as_str().unwrap_or_default();
        match message["role"].as_str() {
            Some("assistant") if message["tool_calls"].is_array() => {
                let calls = calls(dialect.format, &message["tool_calls"]);
                let text = [text.trim_end(), &calls].join("\n");
                out.push(json!({"role": "assistant", "content": text.trim_start()}));
            }
            Some("tool" | "function") => {
                let text = format!("<tool_response>\n{text}\n</tool_response>");
                // Results of several calls are one turn.
                match out.last_mut().filter(|last| last["is_result"] == true) {
                    Some(last) => {
                        let before = last["content"].as_str().unwrap_or_default();
                        last["content"] = format!("{before}\n{text}").into();
                    }
                    None => out.push(json!({"role": "user", "content": text, "is_result": true})),
                }
            }
            _ => out.push(message.clone()),
        }
    }
    if !tools.is_empty() {
        let tools = description(tools, dialect.format);
        let role = if dialect.takes_system { "system" } else { "user" };
        match out.first_mut().filter(|first| first["role"] == role) {
            Some(first) => {
                let before = first["content"].as_str().unwrap_or_default();
                let (one, other) = if dialect.takes_system { (before, &*tools) } else { (&*tools, before) };
                first["content"] = format!("{one}\n\n{other}").into();
            }
            None => out.insert(0, json!({"role": role, "content": tools})),
        }
    }
    for message in &mut out {
        message.as_object_mut().map(|fields| fields.remove("is_result"));
    }
    out
}

fn description(functions: &[&Value], format: &Format) -> String {
    let mut text = String::from("You can call these functions, one JSON object a line:\n");
    for function in functions {
        text.push_str(&function.to_string());
        text.push('\n');
    }
    let example = call(format, "NAME", &json!({"PARAMETER": "VALUE"}));
    let example = around(format, &[example]);
    text + &format!(
        "To call one, write its name and its parameters like this, and nothing behind it:\n{example}\n\
         What it returns comes between <tool_response> and </tool_response>."
    )
}

/// Calls as the model would have written them.
fn calls(format: &Format, calls: &Value) -> String {
    let calls = calls.as_array().into_iter().flatten().map(|one| {
        let function = &one["function"];
        call(format, function["name"].as_str().unwrap_or_default(), &function["arguments"])
    });
    around(format, &calls.collect::<Vec<_>>())
}

fn call(format: &Format, name: &str, arguments: &Value) -> String {
    json!({"name": name, (format.arguments): arguments}).to_string()
}

fn around(format: &Format, calls: &[String]) -> String {
    let Format { opener, begin, end, .. } = format;
    match format.separator {
        Some(separator) => format!("{opener}{begin}{}{end}", calls.join(&format!("{separator} "))),
        None => {
            let one = |call: &String| format!("{opener}\n{begin}{call}\n{end}");
            calls.iter().map(one).collect::<Vec<_>>().join("\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(tools: &[&Value], takes_system: bool) -> Vec<Value> {
        let dialect = Dialect { format: Format::of_template(""), knows_tools: false, takes_system };
        let call = |name: &str| json!({"id": "1", "type": "function", "function": {"name": name, "arguments": {"a": 1}}});
        let said = [
            json!({"role": "user", "content": "Go"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call("f"), call("g")]}),
            json!({"role": "tool", "content": "1"}),
            json!({"role": "tool", "content": "2"}),
        ];
        messages(&said, tools, &dialect)
    }

    #[test]
    fn calls_and_results_become_text_of_roles_that_every_template_knows() {
        let call = |name: &str| {
            format!("<tool_call>\n{{\"name\":\"{name}\",\"arguments\":{{\"a\":1}}}}\n</tool_call>")
        };
        let results = "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>";
        let expected = [
            json!({"role": "user", "content": "Go"}),
            json!({"role": "assistant", "content": format!("{}\n{}", call("f"), call("g"))}),
            json!({"role": "user", "content": results}),
        ];
        assert_eq!(told(&[], true), expected);
    }

    #[test]
    fn tools_are_described_where_the_template_takes_it() {
        let tool = json!({"name": "f", "parameters": {"type": "object"}});
        let with_system = told(&[&tool], true);
        assert_eq!((with_system.len(), &with_system[0]["role"]), (4, &json!("system")));
        let without = told(&[&tool], false);
        assert_eq!((without.len(), &without[0]["role"]), (3, &json!("user")));
        for text in [&with_system[0]["content"], &without[0]["content"]] {
            let text = text.as_str().unwrap();
            assert!(text.contains(&tool.to_string()) && text.contains("<tool_call>"), "{text}");
        }
        assert!(without[0]["content"].as_str().unwrap().ends_with("\n\nGo"));
    }
}
