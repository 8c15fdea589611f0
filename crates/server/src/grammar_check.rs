//! Grammars are tried before the engine sees them: what can't be used is an answer with a status, and costs the engine nothing.

use std::time::{Duration, Instant};

use engine::serving::EngineInfo;
use engine::{Grammar, Grammars};
use serde_json::Value;

use crate::app::App;
use crate::tools::dialect::Dialect;
use crate::tools::format::Format;
use crate::tools::{ToolChoice, Tools, grammar};
use crate::wire::chat::ChatRequest;
use crate::wire::errors::ApiError;
use crate::wire::grammar::Asked;

/// For finding out which of several tools is the one that can't be used.
const SEARCH: Duration = Duration::from_millis(200);

impl App {
    /// Tries a grammar. For threads that may compute: one that is large takes some hundred milliseconds.
    ///
    /// # Errors
    /// 400: it can't be used, or the model has no tokenizer.
    pub fn check_grammar(&self, info: &EngineInfo, asked: &Asked) -> Result<(), ApiError> {
        self.grammars(info, asked.param)?.check(&asked.grammar).map_err(|error| {
            ApiError::param(asked.param, format!("{}: {error}", asked.param)).code("invalid_grammar")
        })
    }

    fn grammars(&self, info: &EngineInfo, param: &str) -> Result<&Grammars, ApiError> {
        let tokenizer = self.tokenizer(param)?;
        let eos = &self.text.eos_token_ids;
        Ok(self.grammars.get_or_init(|| Grammars::new(tokenizer.clone(), info.vocab_size, eos.clone())))
    }

    /// What the served model knows of calls.
    pub fn dialect(&self) -> &Dialect {
        self.dialect.get_or_init(|| {
            let named = self.config.tool_call_parser.as_deref().and_then(Format::named);
            Dialect::of(self.text.tokenizer.as_deref(), named)
        })
    }

    /// Makes what a chat's completion must conform to, and tries it.
    ///
    /// # Errors
    /// 400: it can't be used, or tools and an answer's form exclude each other.
    pub fn settle_grammar(&self, info: &EngineInfo, request: &mut ChatRequest) -> Result<(), ApiError> {
        let tools = &request.tools;
        let format = request.common.grammar.as_ref();
        if !tools.are_used() {
            return format.map_or(Ok(()), |asked| self.check_grammar(info, asked));
        }
        let schema: Option<Value> = match (format, &tools.choice) {
            (None, _) => None,
            (Some(Asked { grammar: Grammar::JsonSchema(text), .. }), ToolChoice::Auto) => {
                serde_json::from_str(text).ok()
            }
            (Some(Asked { param, .. }), _) => {
                let message = format!(
                    "{param} says what the answer is, and so does tool_choice or a call; with tools, a JSON schema and tool_choice auto are supported"
                );
                return Err(ApiError::param(*param, message).code("unsupported_value"));
            }
        };
        if let Some(asked) = format {
            self.check_grammar(info, asked)?;
        }
        let tokenizer = self.tokenizer("tools")?;
        let made = grammar::of(tools, self.dialect().format, tokenizer, schema.as_ref());
        let Some(grammar) = made else {
            if tools.choice == ToolChoice::Auto && tools.is_strict() {
                let message = format!(
                    "strict: true is not supported with tool_choice auto where calls are written as {}; use required, or leave strict out",
                    self.dialect().format.name
                );
                return Err(ApiError::param("tools", message).code("unsupported_value"));
            }
            return Ok(());
        };
        let asked = Asked { param: "tools", grammar };
        match self.check_grammar(info, &asked) {
            Ok(()) => request.common.grammar = Some(asked),
            // Calls are parsed all the same.
            Err(_) if tools.choice == ToolChoice::Auto && schema.is_none() && !tools.is_strict() => {}
            Err(error) => return Err(self.culprit(info, tools).unwrap_or(error)),
        }
        Ok(())
    }

    /// The error of the tool that can't be used.
    fn culprit(&self, info: &EngineInfo, tools: &Tools) -> Option<ApiError> {
        let until = Instant::now() + SEARCH;
        let functions = tools.functions().enumerate().take_while(|_| Instant::now() < until);
        let mut errors = functions.filter_map(|(i, function)| {
            let grammar = Grammar::JsonSchema(grammar::parameters(function).to_string());
            let error = self.check_grammar(info, &Asked { param: "tools", grammar }).err()?;
            let param = format!("tools[{i}].function.parameters");
            let message = error.message.trim_start_matches("tools: ");
            Some(ApiError::param(&param, format!("{param}: {message}")).code("invalid_grammar"))
        });
        errors.next()
    }
}
