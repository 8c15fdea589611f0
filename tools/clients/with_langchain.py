"""langchain-openai: invoke, stream, structured output, tools."""

import asyncio

import langchain_openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, ConfigDict, Field

from report import Checks, equal
from server import MODEL, Server

HARBOR = "What is a harbor?"


class Word(BaseModel):
    """A word and what is known of it."""

    # A model this small would not find the end of a text of any length, or of fields of any name.
    model_config = ConfigDict(extra="forbid")
    word: str = Field(max_length=12)
    common: bool


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def model_of(url: str, **options) -> langchain_openai.ChatOpenAI:
    options = {"temperature": 0, "max_tokens": 60, **options}
    return langchain_openai.ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", max_retries=0, **options)


def invoke_answers_and_counts(url: str) -> None:
    answer = model_of(url).invoke(HARBOR)
    assert "harbor" in answer.content, answer
    usage = answer.usage_metadata
    equal(usage["input_tokens"] + usage["output_tokens"], usage["total_tokens"])
    equal(answer.response_metadata["finish_reason"], "stop")


def a_stream_has_the_text_of_invoke(url: str) -> None:
    model = model_of(url, temperature=0.8, seed=3, stream_usage=True)
    whole = model.invoke(HARBOR)
    total = None
    for chunk in model.stream(HARBOR):
        total = chunk if total is None else total + chunk
    equal((total.content, total.usage_metadata), (whole.content, whole.usage_metadata))


def a_batch_gives_what_each_gives_alone(url: str) -> None:
    model = model_of(url)
    asked = [f"What is a {word}?" for word in ("river", "king", "song", "garden")]
    alone = [model.invoke(one).content for one in asked]
    equal([answer.content for answer in model.batch(asked)], alone)
    equal([answer.content for answer in asyncio.run(model.abatch(asked))], alone)


def structured_output_is_of_its_class(url: str) -> None:
    model = model_of(url, max_tokens=400)
    for method in ("json_schema", "function_calling"):
        found = model.with_structured_output(Word, method=method).invoke(HARBOR)
        assert isinstance(found, Word), found
    found = model.with_structured_output(Word, method="json_schema", include_raw=True).invoke(HARBOR)
    equal(found["parsing_error"], None)


def bound_tools_are_called_and_answered(url: str) -> None:
    model = model_of(url, max_tokens=200)
    assert model.bind_tools([add]).invoke(HARBOR) is not None
    for choice in ("any", "add"):
        answer = model.bind_tools([add], tool_choice=choice, strict=True, parallel_tool_calls=False).invoke(HARBOR)
        (call,) = answer.tool_calls
        equal((call["name"], sorted(call["args"])), ("add", ["a", "b"]))
    result = ToolMessage("3", tool_call_id=call["id"])
    assert model.bind_tools([add]).invoke([HumanMessage(HARBOR), answer, result]).response_metadata


def log_probabilities_come_with_the_answer(url: str) -> None:
    answer = model_of(url, logprobs=True, top_logprobs=2, max_tokens=5).invoke(HARBOR)
    equal(len(answer.response_metadata["logprobs"]["content"]), 5)


CHECKS = [
    invoke_answers_and_counts, a_stream_has_the_text_of_invoke, a_batch_gives_what_each_gives_alone,
    structured_output_is_of_its_class, bound_tools_are_called_and_answered, log_probabilities_come_with_the_answer,
]  # fmt: skip

if __name__ == "__main__":
    checks = Checks("langchain-openai")
    with Server("--tp", "2") as server:
        for check in CHECKS:
            checks.run(check, server.url)
    checks.end()
