//! Conversations, and what transformers makes of them with the templates of `families`.
//!
//! The expected texts are those of transformers 5.23 with Jinja 3.1.6, at 2026-11-05 09:07:03.

use super::families::{CHATML, GEMMA, LLAMA2, LLAMA3, MISTRAL, NEWER, PHI3, QWEN3};

/// Template, messages, whether the answer is asked for, arguments, and the text or the words of the refusal.
pub(super) type Case = (&'static str, &'static str, bool, &'static str, Result<&'static str, &'static str>);

pub(super) const CASES: &[Case] = &[
    (
        LLAMA2,
        r#"[{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        false,
        r"{}",
        Ok(r"<s>[INST] <<SYS>>
Be brief.
<</SYS>>

 What is 2 + 2? [/INST]
 4 </s>
<s>[INST] And 3 + 3? [/INST]
"),
    ),
    (
        LLAMA2,
        r#"[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]"#,
        false,
        r"{}",
        Err(r"Conversation roles must alternate user/assistant/user/assistant/..."),
    ),
    (
        LLAMA3,
        r#"[{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        true,
        r"{}",
        Ok(r"<s><|start_header_id|>system<|end_header_id|>

Cutting Knowledge Date: December 2023
Today Date: 05 Nov 2026

Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>

What is 2 + 2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

4<|eot_id|><|start_header_id|>user<|end_header_id|>

And 3 + 3?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

"),
    ),
    (
        LLAMA3,
        r#"[{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "x": [1, 2.5, null, true]}}}]}, {"role": "tool", "content": "{\"t\": 25}"}]"#,
        true,
        r#"{"tools": [{"type": "function", "function": {"name": "get_weather", "description": "Weather in a <city> & 'more', 25 °C", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1, "ratio": 0.5}}, "required": ["city"]}}}]}"#,
        Ok(r#"<s><|start_header_id|>system<|end_header_id|>

Environment: ipython
Cutting Knowledge Date: December 2023
Today Date: 05 Nov 2026

You have access to these functions:

{
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a <city> & 'more', 25 °C",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {
                    "type": "string"
                },
                "days": {
                    "type": "integer",
                    "default": 1,
                    "ratio": 0.5
                }
            },
            "required": [
                "city"
            ]
        }
    }
}

<|eot_id|><|start_header_id|>user<|end_header_id|>

Weather?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

{"name": "get_weather", "parameters": {"city": "Zürich", "days": 2, "x": [1, 2.5, null, true]}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>

"{\"t\": 25}"<|eot_id|><|start_header_id|>assistant<|end_header_id|>

"#),
    ),
    (
        LLAMA3,
        r#"[{"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        false,
        r#"{"date_string": "1 Jan 2025"}"#,
        Ok(r"<s><|start_header_id|>system<|end_header_id|>

Cutting Knowledge Date: December 2023
Today Date: 1 Jan 2025

<|eot_id|><|start_header_id|>user<|end_header_id|>

What is 2 + 2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

4<|eot_id|><|start_header_id|>user<|end_header_id|>

And 3 + 3?<|eot_id|>"),
    ),
    (
        CHATML,
        r#"[{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        true,
        r"{}",
        Ok(r"<|im_start|>system
  Be brief. <|im_end|>
<|im_start|>user
 What is 2 + 2? <|im_end|>
<|im_start|>assistant
 4 <|im_end|>
<|im_start|>user
And 3 + 3?
<|im_end|>
<|im_start|>assistant
"),
    ),
    (
        QWEN3,
        r#"[{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        true,
        r"{}",
        Ok(r"<|im_start|>system
  Be brief. <|im_end|>
<|im_start|>user
 What is 2 + 2? <|im_end|>
<|im_start|>assistant
 4 <|im_end|>
<|im_start|>user
And 3 + 3?
<|im_end|>
<|im_start|>assistant
"),
    ),
    (
        QWEN3,
        r#"[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\nhm, well\n</think>\n\nHello!"}, {"role": "user", "content": "Prove it"}]"#,
        true,
        r#"{"enable_thinking": false}"#,
        Ok(r"<|im_start|>user
Hi<|im_end|>
<|im_start|>assistant
Hello!<|im_end|>
<|im_start|>user
Prove it<|im_end|>
<|im_start|>assistant
<think>

</think>

"),
    ),
    (
        QWEN3,
        r#"[{"role": "system", "content": "Sys"}, {"role": "user", "content": "W?"}, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "x": [1, 2.5, null, true]}}}]}, {"role": "tool", "content": "{\"t\": 25}"}, {"role": "tool", "content": "{\"t\": 25}"}]"#,
        true,
        r#"{"tools": [{"type": "function", "function": {"name": "get_weather", "description": "Weather in a <city> & 'more', 25 °C", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1, "ratio": 0.5}}, "required": ["city"]}}}]}"#,
        Ok(r#"<|im_start|>system
Sys

# Tools

<tools>
{"type": "function", "function": {"name": "get_weather", "description": "Weather in a <city> & 'more', 25 °C", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1, "ratio": 0.5}}, "required": ["city"]}}}
</tools>

{"name": <function-name>}<|im_end|>
<|im_start|>user
W?<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "x": [1, 2.5, null, true]}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
{"t": 25}
</tool_response>
<tool_response>
{"t": 25}
</tool_response><|im_end|>
<|im_start|>assistant
"#),
    ),
    (
        QWEN3,
        r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "r"}]"#,
        false,
        r"{}",
        Ok(r"<|im_start|>user
q<|im_end|>
<|im_start|>assistant
<think>
r
</think>

a<|im_end|>
"),
    ),
    (
        MISTRAL,
        r#"[{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        false,
        r"{}",
        Ok(r"<s>[INST]  What is 2 + 2? [/INST] 4</s>[INST]   Be brief. 

And 3 + 3?
[/INST]"),
    ),
    (
        MISTRAL,
        r#"[{"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        false,
        r#"{"tools": [{"type": "function", "function": {"name": "get_weather", "description": "Weather in a <city> & 'more', 25 °C", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1, "ratio": 0.5}}, "required": ["city"]}}}]}"#,
        Ok(
            r#"<s>[INST]  What is 2 + 2? [/INST] 4</s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "get_weather", "description": "Weather in a <city> & 'more', 25 °C", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1, "ratio": 0.5}}, "required": ["city"]}}}][/AVAILABLE_TOOLS][INST] And 3 + 3?
[/INST]"#,
        ),
    ),
    (
        MISTRAL,
        r#"[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]"#,
        false,
        r"{}",
        Err(
            r"After the optional system message, conversation roles must alternate user/assistant/user/assistant/...",
        ),
    ),
    (
        GEMMA,
        r#"[{"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        true,
        r"{}",
        Ok(r"<s><start_of_turn>user
What is 2 + 2?<end_of_turn>
<start_of_turn>model
4<end_of_turn>
<start_of_turn>user
And 3 + 3?<end_of_turn>
<start_of_turn>model
"),
    ),
    (
        GEMMA,
        r#"[{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        true,
        r"{}",
        Err(r"System role not supported"),
    ),
    (
        PHI3,
        r#"[{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        true,
        r"{}",
        Ok(r"<|system|>
  Be brief. <|end|>
<|user|>
 What is 2 + 2? <|end|>
<|assistant|>
 4 <|end|>
<|user|>
And 3 + 3?
<|end|>
<|assistant|>
"),
    ),
    (
        PHI3,
        r#"[{"role": "user", "content": " What is 2 + 2? "}, {"role": "assistant", "content": " 4 "}, {"role": "user", "content": "And 3 + 3?\n"}]"#,
        false,
        r"{}",
        Ok(r"<|user|>
 What is 2 + 2? <|end|>
<|assistant|>
 4 <|end|>
<|user|>
And 3 + 3?
<|end|>
</s>"),
    ),
    (
        NEWER,
        r#"[{"role": "user", "content": [{"type": "text", "text": "Look:\n at"}, {"type": "image"}]}, {"role": "skip", "content": "x"}, {"role": "assistant", "content": "fine"}, {"role": "user", "content": "end"}, {"role": "stop", "content": "x"}, {"role": "user", "content": "never"}]"#,
        false,
        r#"{"tools": [{"type": "function", "function": {"name": "get_weather", "description": "Weather in a <city> & 'more', 25 °C", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1, "ratio": 0.5}}, "required": ["city"]}}}]}"#,
        Ok(r"U1: [Look:
   at<image>]
A3: [fine]
U4: [end]

- properties
  - city
    - type: string
  - days
    - default = 1
    - ratio = 0.5
    - type: integer
- required: ['city']
- type: object
roles: ['user', 'assistant', 'user'] user,assistant 3 True None 1.0 3 2 ['user']! x"),
    ),
    (NEWER, r#"[{"role": "user", "content": null}]"#, false, r"{}", Err(r"Unexpected content: None")),
];
