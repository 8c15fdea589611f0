//! What the served model knows of calls.

use engine::text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

use super::format::Format;

/// How a model takes tools and writes calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    /// How it writes calls.
    pub format: &'static Format,
    /// Whether its template shows tools; else [`super::describe`] does.
    pub knows_tools: bool,
    /// Whether its template takes a system message.
    pub takes_system: bool,
}

impl Dialect {
    /// That of a model's template, or the format that whoever runs the server named.
    pub fn of(tokenizer: Option<&Tokenizer>, named: Option<&'static Format>) -> Self {
        let template = tokenizer.and_then(|tokenizer| tokenizer.chat_template(true).ok());
        let own = template.filter(|template| shows_tools(template));
        let format = own.map(|template| Format::of_template(template.source()));
        let user = json!({"role": "user", "content": "a"});
        let system = json!({"role": "system", "content": "b"});
        let takes =
            |template: &ChatTemplate| template.render_json(&[system, user], true, &Map::new()).is_ok();
        Dialect {
            // Of two formats of the name, the template says which.
            format: named
                .filter(|named| format.is_none_or(|format| format.name != named.name))
                .or(format)
                .unwrap_or_else(|| Format::of_template("")),
            knows_tools: own.is_some(),
            takes_system: template.is_some_and(takes),
        }
    }
}

/// Whether a tool changes what a template writes.
fn shows_tools(template: &ChatTemplate) -> bool {
    const NAME: &str = "look_up_tides";
    let function = json!({
        "name": NAME, "description": "Tides of a day.",
        "parameters": {"type": "object", "properties": {"day": {"type": "string", "description": "A date."}}},
    });
    let tools = json!([{"type": "function", "function": function}]);
    let variables = Map::from_iter([("tools".to_owned(), tools)]);
    let messages: [Value; 1] = [json!({"role": "user", "content": "a"})];
    template.render_json(&messages, true, &variables).is_ok_and(|text| text.contains(NAME))
}
