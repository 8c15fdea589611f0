//! Functions that a chat's model may call.
//!
//! ```text
//!  mod.rs       what a request says about them
//!  dialect.rs   what the served model knows of calls, and how it writes them: a row of format.rs
//!  describe.rs  messages for templates that know nothing of calls
//!  grammar.rs   what a completion that calls must conform to
//!  parse.rs     a completion's text ─▶ content and calls, by scan.rs (JSON), xml.rs and python.rs
//!  answer.rs    those as messages and deltas have them
//! ```

pub mod answer;
pub mod describe;
pub mod dialect;
pub mod format;
pub mod grammar;
pub mod parse;
mod python;
mod scan;
mod xml;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::wire::errors::{ApiError, kind_of};
use crate::wire::fields::{Checked, shortened};

const TOOLS_MAX: usize = 512;
const NAME_CHARS_MAX: usize = 64;

/// The tools of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    tools: Vec<Value>,
    /// Whether they are called.
    pub choice: ToolChoice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
}

/// Whether the model may call them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// It sees them, and its answer is text.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// It calls one of them at least.
    Required,
    /// It calls the one of this name, once.
    Named(String),
}

impl Tools {
    /// The JSON Schema of the list.
    pub fn schema() -> Value {
        json!({
            "type": ["array", "null"], "maxItems": TOOLS_MAX,
            "items": {
                "type": "object", "required": ["type", "function"],
                "properties": {
                    "type": {"enum": ["function"]},
                    "function": {
                        "type": "object", "required": ["name"],
                        "properties": {
                            "name": {"type": "string", "pattern": format!("^[a-zA-Z0-9_-]{{1,{NAME_CHARS_MAX}}}$")}, "description": {"type": ["string", "null"]},
                            "parameters": {"type": ["object", "null"]}, "strict": {"type": ["boolean", "null"]},
                        },
                    },
                },
            },
        })
    }

    /// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
    ///
    /// # Errors
    /// 400 that names the parameter.
    pub fn read(fields: &mut Checked) -> Result<Self, ApiError> {
        let tools = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) if tools.len() <= TOOLS_MAX => tools,
            Some(other) => {
                return Err(ApiError::wrong_type("tools", &format!("a list of {TOOLS_MAX} at most"), &other));
            }
        };
        for (i, tool) in tools.iter().enumerate() {
            check(&format!("tools[{i}]"), tool)?;
        }
        let choice = choice(fields.get("tool_choice"))?;
        let parallel = fields.flag("parallel_tool_calls").unwrap_or(true);
        let tools = Tools { tools, choice, parallel };
        let names: BTreeSet<&str> = tools.names().collect();
        if names.len() < tools.tools.len() {
            let message = "two of the tools have the same name";
            return Err(ApiError::param("tools", message).code("invalid_value"));
        }
        let missing = match &tools.choice {
            ToolChoice::None | ToolChoice::Auto => None,
            ToolChoice::Required => tools.tools.is_empty().then(|| "a tool must be called".to_owned()),
            ToolChoice::Named(name) => (!names.contains(name.as_str()))
                .then(|| format!("the tool {:?} must be called", shortened(name))),
        };
        match missing {
            None => Ok(tools),
            Some(what) => {
                let message = format!("tool_choice says that {what}, but tools does not have it");
                Err(ApiError::param("tool_choice", message).code("invalid_value"))
            }
        }
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.functions().filter_map(|function| function["name"].as_str())
    }

    /// What is said of each: name, description, parameters.
    pub fn functions(&self) -> impl Iterator<Item = &Value> {
        self.tools.iter().map(|tool| &tool["function"])
    }

    /// What the template gets as `tools`.
    pub fn rendered(&self) -> Option<Value> {
        (!self.tools.is_empty()).then(|| self.tools.clone().into())
    }

    /// Whether calls must conform to a schema, or the request fails.
    pub fn is_strict(&self) -> bool {
        self.functions().any(|function| function["strict"] == true)
    }

    /// Whether the template for tools is the one to take.
    pub fn are_used(&self) -> bool {
        !self.tools.is_empty() && self.choice != ToolChoice::None
    }
}

fn choice(value: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let named = |choice: &Value| {
        let is_function = choice["type"] == "function";
        choice["function"]["name"].as_str().filter(|_| is_function).map(str::to_owned)
    };
    match value {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(choice)) if choice == "auto" => Ok(ToolChoice::Auto),
        Some(Value::String(choice)) if choice == "none" => Ok(ToolChoice::None),
        Some(Value::String(choice)) if choice == "required" => Ok(ToolChoice::Required),
        Some(choice) => named(choice).map(ToolChoice::Named).ok_or_else(|| {
            let message = format!(
                "tool_choice is {}; it must be none, auto, required or {{\"type\": \"function\", \"function\": {{\"name\": …}}}}",
                kind_of(choice)
            );
            ApiError::param("tool_choice", message).code("invalid_value")
        }),
    }
}

fn check(at: &str, tool: &Value) -> Result<(), ApiError> {
    let refuse = |field: &str, expected: &str, found: Option<&Value>| {
        let found = found.map_or("missing".into(), kind_of);
        let param = format!("{at}.{field}");
        let message = format!("{param} must be {expected}, but is {found}");
        Err(ApiError::param(param, message).code("invalid_type"))
    };
    if !tool.is_object() {
        return Err(ApiError::wrong_type(at, "an object", tool));
    }
    match tool.get("type") {
        Some(Value::String(kind)) if kind == "function" => {}
        other => return refuse("type", "\"function\"", other),
    }
    let Some(function) = tool.get("function").filter(|function| function.is_object()) else {
        return refuse("function", "an object", tool.get("function"));
    };
    let is_name = |name: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_plain)
    };
    match (function.get("name"), function.get("parameters")) {
        (Some(Value::String(name)), _) if !is_name(name) => {
            let param = format!("{at}.function.name");
            let message =
                format!("{param} must have 1 to {NAME_CHARS_MAX} characters of a-z, A-Z, 0-9, _ and -");
            Err(ApiError::param(param, message).code("invalid_value"))
        }
        (Some(Value::String(_)), None | Some(Value::Null | Value::Object(_))) => Ok(()),
        (Some(Value::String(_)), other) => refuse("function.parameters", "a JSON Schema", other),
        (other, _) => refuse("function.name", "a string", other),
    }
}
