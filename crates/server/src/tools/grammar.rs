//! What completions that call must conform to.

use engine::text::Tokenizer;
use engine::{Grammar, Opened};
use serde_json::{Value, json};

use super::format::Format;
use super::{ToolChoice, Tools};

/// What a completion conforms to; `answer` is what it would without tools. None if nothing must be.
///
/// Where calls are free to be made or not, text is free until one is opened. Where the answer must be of a schema, it
/// is that or calls.
pub fn of(tools: &Tools, format: &Format, tokenizer: &Tokenizer, answer: Option<&Value>) -> Option<Grammar> {
    let lark = Lark { format, tokenizer };
    let functions: Vec<&Value> = tools.functions().collect();
    match (&tools.choice, answer) {
        (ToolChoice::None, _) => None,
        (ToolChoice::Required, _) => Some(Grammar::Lark(lark.all(&functions, tools.parallel, None))),
        (ToolChoice::Named(name), _) => {
            let named: Vec<&Value> = functions.into_iter().filter(|f| f["name"] == name.as_str()).collect();
            Some(Grammar::Lark(lark.all(&named, false, None)))
        }
        (ToolChoice::Auto, Some(schema)) => {
            Some(Grammar::Lark(lark.all(&functions, tools.parallel, Some(schema))))
        }
        // Calls of its own way are read, and conform to nothing.
        (ToolChoice::Auto, None) if !format.is_held() => None,
        (ToolChoice::Auto, None) => Some(Grammar::Opened(Box::new(Opened {
            openers: vec![format.opener.to_owned()],
            first_openers: format.bare().map(|bare| format!("{bare}\"name\"")).into_iter().collect(),
            grammar: format!("start: block\n{}", lark.block(&functions, tools.parallel)),
            repeats: tools.parallel && format.separator.is_none(),
        }))),
    }
}

/// The schema of a function's arguments: an object, whatever else it says.
pub fn parameters(function: &Value) -> Value {
    let Some(parameters) = function["parameters"].as_object() else {
        return json!({"type": "object", "properties": {}, "additionalProperties": false});
    };
    let mut schema = parameters.clone();
    if !schema.contains_key("$ref") {
        schema.entry("type").or_insert_with(|| "object".into());
    }
    schema.into()
}

struct Lark<'a> {
    format: &'a Format,
    tokenizer: &'a Tokenizer,
}

impl Lark<'_> {
    /// All of a completion: calls, or an answer.
    fn all(&self, functions: &[&Value], several: bool, answer: Option<&Value>) -> String {
        // Calls that have openers of their own can follow each other; others are in one block.
        let calls = match several && self.format.separator.is_none() {
            true => "block (\"\\n\"? block)*",
            false => "block",
        };
        let block = self.block(functions, several);
        match answer {
            None => format!("start: {calls}\n{block}"),
            Some(schema) => {
                let answer = engine::Grammars::spaced(schema.clone());
                format!("start: {calls} | answer\nanswer: %json {answer}\n{block}")
            }
        }
    }

    /// Rules for an opener and what belongs to it.
    fn block(&self, functions: &[&Value], several: bool) -> String {
        let Format { begin, separator, end, is_bare, .. } = self.format;
        let opener = self.opener() + if *is_bare { "?" } else { "" };
        let more = match separator.filter(|_| several) {
            Some(separator) => format!("({} \" \"? call)*", literal(separator)),
            None => String::new(),
        };
        let quoted = |text: &str| if text.is_empty() { String::new() } else { literal(text) };
        let blank = "(\" \" | \"\\n\")?";
        let (begin, closing) = (quoted(begin), if end.is_empty() { "" } else { blank });
        let mut rules =
            format!("block: {opener} {blank} {begin} call {more} {closing} {}\ncall:", quoted(end));
        for i in 0..functions.len() {
            rules += &format!("{} call_{i}", if i > 0 { " |" } else { "" });
        }
        rules.push('\n');
        for (i, function) in functions.iter().enumerate() {
            let arguments = self.format.arguments;
            let head = literal(&format!("{{\"name\": {}, \"{arguments}\": ", function["name"]));
            let schema = engine::Grammars::spaced(parameters(function));
            rules += &format!("call_{i}: {head} args_{i} \"}}\"\nargs_{i}: %json {schema}\n");
        }
        rules
    }

    /// The opener: a special token, where it is one.
    fn opener(&self) -> String {
        let opener = self.format.opener;
        match self.tokenizer.token_to_id(opener).filter(|&id| self.tokenizer.is_special(id)) {
            Some(id) => format!("<[{id}]>"),
            None => literal(opener),
        }
    }
}

fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
