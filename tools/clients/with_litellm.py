"""litellm: completion, stream, structured output, tools, errors, through its provider for any server of this API."""

import json
import os

# Its list of prices is asked for elsewhere otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from report import Checks, equal
from server import MODEL, Server

HARBOR = [{"role": "user", "content": "What is a harbor?"}]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["word"],
    "properties": {"word": {"type": "string", "maxLength": 12}},
}
NOW = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}


def complete(url: str, **asked):
    asked = {"model": f"openai/{MODEL}", "messages": HARBOR, "temperature": 0, "max_tokens": 60, **asked}
    return litellm.completion(api_base=f"{url}/v1", api_key="none", num_retries=0, **asked)


def a_completion_answers_and_counts(url: str) -> None:
    answer = complete(url)
    assert "harbor" in answer.choices[0].message.content, answer
    equal(answer.choices[0].finish_reason, "stop")
    equal(answer.usage.prompt_tokens + answer.usage.completion_tokens, answer.usage.total_tokens)


def a_stream_has_the_text_and_usage_of_the_whole(url: str) -> None:
    asked = dict(temperature=0.8, seed=3)
    whole = complete(url, **asked)
    chunks = list(complete(url, **asked, stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks, messages=HARBOR)
    equal(built.choices[0].message.content, whole.choices[0].message.content)
    equal(built.choices[0].finish_reason, whole.choices[0].finish_reason)
    equal(built.usage.total_tokens, whole.usage.total_tokens)


def a_text_completion_answers(url: str) -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="A harbor is", api_base=f"{url}/v1", api_key="none",
        max_tokens=8, temperature=0,
    )  # fmt: skip
    assert answer.choices[0].text, answer


def a_json_schema_is_conformed_to(url: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "word", "strict": True, "schema": SCHEMA}}
    answer = complete(url, response_format=wanted, max_tokens=200)
    equal(list(json.loads(answer.choices[0].message.content)), ["word"])


def a_required_tool_is_called(url: str) -> None:
    asked = dict(tools=[NOW], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    (call,) = complete(url, **asked).choices[0].message.tool_calls
    equal((call.function.name, json.loads(call.function.arguments)), ("now", {}))
    built = litellm.stream_chunk_builder(list(complete(url, **asked, stream=True)), messages=HARBOR)
    equal([one.function.name for one in built.choices[0].message.tool_calls], ["now"])


def errors_are_of_their_classes(url: str) -> None:
    for kind, asked in [
        (litellm.BadRequestError, {"temperature": -1}),
        (litellm.NotFoundError, {"model": "openai/nobody"}),
        (litellm.ContextWindowExceededError, {"messages": [{"role": "user", "content": "harbor " * 5000}]}),
    ]:
        try:
            complete(url, **asked)
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__}")


CHECKS = [
    a_completion_answers_and_counts, a_stream_has_the_text_and_usage_of_the_whole, a_text_completion_answers,
    a_json_schema_is_conformed_to, a_required_tool_is_called, errors_are_of_their_classes,
]  # fmt: skip

if __name__ == "__main__":
    litellm.suppress_debug_info = True
    checks = Checks("litellm")
    with Server("--tp", "2") as server:
        for check in CHECKS:
            checks.run(check, server.url)
    checks.end()
