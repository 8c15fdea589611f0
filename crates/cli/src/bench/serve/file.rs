//! Prompts of a file: JSON lines, ShareGPT's conversations, or plain text.

use std::path::Path;

use serde_json::Value;

use super::prompt::{Content, Prompt};
use crate::error::CliError;

/// Reads `count` prompts, in the file's order; one that has fewer begins again. Those that don't say how many tokens their answer
/// may have get `output_len`.
///
/// # Errors
/// The file can't be read, holds no prompt, or something else than its name says.
pub fn prompts(file: &Path, count: usize, output_len: usize) -> Result<Vec<Prompt>, CliError> {
    let refuse = |why: String| CliError::Usage(format!("--dataset-path {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| refuse(e.to_string()))?;
    let text = text.trim_start_matches('\u{feff}');
    let extension = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let all = match extension.as_deref() {
        Some("json") => of_array(text, output_len),
        Some("jsonl" | "ndjson") => of_lines(text, output_len),
        _ => Ok(of_text(text, output_len)),
    };
    let all = all.map_err(refuse)?;
    match all.is_empty() {
        true => Err(refuse("it holds no prompt".into())),
        false => Ok(all.into_iter().cycle().take(count).collect()),
    }
}

/// One JSON array of prompts or conversations.
fn of_array(text: &str, output_len: usize) -> Result<Vec<Prompt>, String> {
    let array: Vec<Value> = serde_json::from_str(text).map_err(|e| format!("no JSON array: {e}"))?;
    let numbered = array.iter().enumerate();
    let read = numbered.map(|(i, value)| prompt(value, output_len).map_err(|e| format!("element {i}: {e}")));
    // Conversations that nobody begins are no mistake: ShareGPT's file has some.
    read.filter_map(Result::transpose).collect()
}

/// A JSON value a line.
fn of_lines(text: &str, output_len: usize) -> Result<Vec<Prompt>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = lines.map(|(i, line)| {
        let value = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))?;
        prompt(&value, output_len).map_err(|e| format!("line {}: {e}", i + 1))
    });
    read.filter_map(Result::transpose).collect()
}

/// A prompt a line.
fn of_text(text: &str, output_len: usize) -> Vec<Prompt> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| Prompt { content: Content::Text(line.to_owned()), output_tokens: output_len }).collect()
}

/// A prompt out of an object; none of a conversation without words.
fn prompt(value: &Value, output_len: usize) -> Result<Option<Prompt>, String> {
    let output_tokens = match value.get("output_tokens") {
        None | Some(Value::Null) => output_len,
        Some(tokens) => match tokens.as_u64() {
            Some(tokens) if tokens > 0 => tokens as usize,
            _ => return Err(format!("\"output_tokens\" is {tokens}; give a whole number from 1 on")),
        },
    };
    let content = match (value.get("prompt"), value.get("conversations")) {
        (Some(Value::String(text)), _) => Content::Text(text.clone()),
        (Some(Value::Array(ids)), _) => Content::Ids(token_ids(ids)?),
        (None, Some(turns)) => match turns.get(0).and_then(|turn| turn.get("value")) {
            Some(Value::String(text)) if !text.is_empty() => Content::Text(text.clone()),
            _ => return Ok(None),
        },
        _ => return Err("no \"prompt\" that is a string or a list of token ids".into()),
    };
    Ok(Some(Prompt { content, output_tokens }))
}

fn token_ids(ids: &[Value]) -> Result<Vec<u32>, String> {
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    ids.iter().map(|value| id(value).ok_or(format!("{value} is no token id"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str, count: usize) -> Result<Vec<Prompt>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        prompts(&file, count, 7).map_err(|e| e.to_string())
    }

    fn text(text: &str, output_tokens: usize) -> Prompt {
        Prompt { content: Content::Text(text.into()), output_tokens }
    }

    #[test]
    fn lines_of_json_are_prompts_with_or_without_a_length() {
        let lines = "{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\",\"output_tokens\":3}\n{\"prompt\":[1,2]}\n";
        let ids = Prompt { content: Content::Ids(vec![1, 2]), output_tokens: 7 };
        assert_eq!(read("a.jsonl", lines, 3).unwrap(), [text("a", 7), text("b", 3), ids]);
    }

    #[test]
    fn a_file_with_too_few_prompts_begins_again() {
        assert_eq!(read("a.txt", "one\ntwo\n", 3).unwrap(), [text("one", 7), text("two", 7), text("one", 7)]);
        assert_eq!(read("a.txt", "\u{feff}one\r\ntwo", 1).unwrap(), [text("one", 7)]);
    }

    #[test]
    fn conversations_give_their_first_turn() {
        let turns = r#"[{"conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"ho"}]},
            {"conversations":[]}, {"prompt":"x","output_tokens":null}]"#;
        assert_eq!(read("a.json", turns, 2).unwrap(), [text("hi", 7), text("x", 7)]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let cases = [
            ("a.jsonl", "{\"prompt\":\"a\"}\n{", "line 2"),
            ("a.jsonl", "{\"prompt\":5}", "line 1: no \"prompt\""),
            ("a.jsonl", "{\"prompt\":[-1]}", "-1 is no token id"),
            ("a.jsonl", "{\"prompt\":\"a\",\"output_tokens\":0}", "from 1 on"),
            ("a.json", "{}", "no JSON array"),
            ("a.json", "[{\"prompt\":\"a\"},{}]", "element 1"),
            ("a.txt", "\n \n", "no prompt"),
        ];
        for (name, text, expected) in cases {
            let told = read(name, text, 1).unwrap_err();
            assert!(told.contains(expected) && told.contains("--dataset-path"), "{told}");
        }
    }
}
