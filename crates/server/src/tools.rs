//! Functions that a chat's model may call: what a request says about them, and what a template sees.
//!
//! A model's calls come as text. Whoever parses them out of it does so here, and hands content and calls to
//! `routes/chat.rs`, which is where a choice's text becomes a message.

use serde_json::{Value, json};

use crate::wire::errors::{ApiError, kind_of};
use crate::wire::fields::Checked;

const TOOLS_MAX: usize = 512;

/// The tools of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tools {
    tools: Vec<Value>,
    choice: ToolChoice,
}

/// Whether the model may call them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// It sees them, and its answer is text.
    None,
    /// As it likes.
    #[default]
    Auto,
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
                            "name": {"type": "string"}, "description": {"type": ["string", "null"]},
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
        let choice = match fields.get("tool_choice") {
            None => ToolChoice::Auto,
            Some(Value::String(choice)) if choice == "auto" => ToolChoice::Auto,
            Some(Value::String(choice)) if choice == "none" => ToolChoice::None,
            Some(other) => {
                let message = format!("tool_choice is {}; none and auto are supported", kind_of(other));
                return Err(ApiError::param("tool_choice", message).code("unsupported_value"));
            }
        };
        if fields.flag("parallel_tool_calls") == Some(false)
            && !tools.is_empty()
            && choice != ToolChoice::None
        {
            let message = "parallel_tool_calls is false; only true is supported with tools";
            return Err(ApiError::param("parallel_tool_calls", message).code("unsupported_value"));
        }
        Ok(Tools { tools, choice })
    }

    /// What the template gets as `tools`.
    pub fn rendered(&self) -> Option<Value> {
        (!self.tools.is_empty()).then(|| self.tools.clone().into())
    }

    /// Whether the template for tools is the one to take.
    pub fn are_used(&self) -> bool {
        !self.tools.is_empty() && self.choice != ToolChoice::None
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
    match (function.get("name"), function.get("parameters")) {
        (Some(Value::String(_)), None | Some(Value::Null | Value::Object(_))) => Ok(()),
        (Some(Value::String(_)), other) => refuse("function.parameters", "a JSON Schema", other),
        (other, _) => refuse("function.name", "a string", other),
    }
}
