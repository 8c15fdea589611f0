"""The openai package, which refuses answers that are not of its types: chat, streams, sampling, structured output, tools."""

import json

import openai
from pydantic import BaseModel, Field

from report import equal
from server import MODEL
from strict import run_strictly

HARBOR = [{"role": "user", "content": "What is a harbor?"}]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["word", "letters", "common"],
    "properties": {
        "word": {"type": "string", "maxLength": 12}, "letters": {"type": "integer", "minimum": 0, "maximum": 99},
        "common": {"type": "boolean"},
    },
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather of a city",
        "parameters": {
            "type": "object", "additionalProperties": False, "required": ["city"],
            "properties": {"city": {"enum": ["Oslo", "Lima"]}},
        },
    },
}


class Word(BaseModel):
    # A model this small would not find the end of a text that may be of any length.
    word: str = Field(max_length=12)
    common: bool


def models_are_listed_and_found(client: openai.OpenAI) -> None:
    equal([model.id for model in client.models.list()], [MODEL])
    equal(client.models.retrieve(MODEL).id, MODEL)


def chat_answers_and_counts(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HARBOR, temperature=0, max_tokens=64)
    equal(answer.choices[0].finish_reason, "stop")
    assert "harbor" in answer.choices[0].message.content
    usage = answer.usage
    equal(usage.prompt_tokens + usage.completion_tokens, usage.total_tokens)
    cut = client.chat.completions.create(model=MODEL, messages=HARBOR, temperature=0, max_completion_tokens=3)
    equal((cut.choices[0].finish_reason, cut.usage.completion_tokens), ("length", 3))
    assert answer.choices[0].message.content.startswith(cut.choices[0].message.content)


def a_stream_has_the_text_and_the_usage_of_the_whole(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, messages=HARBOR, temperature=0.8, seed=3, max_tokens=40)
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    equal(chunks[0].choices[0].delta.role, "assistant")
    equal(chunks[-1].choices, [])
    equal(chunks[-1].usage.total_tokens, whole.usage.total_tokens)
    parts = [chunk.choices[0] for chunk in chunks[:-1]]
    equal("".join(part.delta.content or "" for part in parts), whole.choices[0].message.content)
    equal([part.finish_reason for part in parts if part.finish_reason], [whole.choices[0].finish_reason])
    equal(len({chunk.id for chunk in chunks}), 1)


def the_stream_helper_puts_the_answer_together(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, messages=HARBOR, temperature=0, max_tokens=40, logprobs=True)
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done", "logprobs.content.delta"} <= kinds, kinds
    equal(final.choices[0].message.content, whole.choices[0].message.content)
    equal(final.choices[0].logprobs.content, whole.choices[0].logprobs.content)


def log_probabilities_spell_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HARBOR, temperature=0, max_tokens=12, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    equal(b"".join(bytes(token.bytes) for token in tokens).decode(), answer.choices[0].message.content)
    for token in tokens:
        equal(len(token.top_logprobs), 3)
        # Greedy: what was taken is the most probable.
        equal((token.top_logprobs[0].token, token.top_logprobs[0].logprob), (token.token, token.logprob))


def n_choices_are_numbered_and_seeded(client: openai.OpenAI) -> None:
    def texts(**asked) -> list[str]:
        answer = client.chat.completions.create(model=MODEL, messages=HARBOR, max_tokens=24, **asked)
        equal([choice.index for choice in answer.choices], list(range(len(answer.choices))))
        return [choice.message.content for choice in answer.choices]

    four = texts(n=4, seed=11, temperature=1.2)
    assert len(set(four)) > 1, four
    equal(texts(n=4, seed=11, temperature=1.2), four)
    equal(texts(n=1, seed=11, temperature=1.2), four[:1])
    assert texts(n=4, seed=12, temperature=1.2) != four


def stop_ends_before_its_text(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, messages=HARBOR, temperature=0, max_tokens=40)
    text = client.chat.completions.create(**asked).choices[0].message.content
    stop = text.split()[3]
    for stops in (stop, ["never this", stop]):
        choice = client.chat.completions.create(**asked, stop=stops).choices[0]
        equal((choice.message.content, choice.finish_reason), (text[: text.index(stop)], "stop"))


def biases_and_penalties_change_the_choice(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, prompt="A harbor is a", temperature=0, max_tokens=1, logprobs=1)
    banned = client.completions.create(**asked, logit_bias={"0": -100}, presence_penalty=0.5, frequency_penalty=0.5)
    equal(banned.usage.completion_tokens, 1)
    forced = client.completions.create(**asked, logit_bias={"7": 100})
    equal(forced.choices[0].text, "!")


def a_json_schema_is_conformed_to(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, messages=HARBOR, temperature=1, max_tokens=200)
    wanted = {"type": "json_schema", "json_schema": {"name": "word", "strict": True, "schema": SCHEMA}}
    for seed in range(4):
        answer = client.chat.completions.create(**asked, seed=seed, response_format=wanted)
        value = json.loads(answer.choices[0].message.content)
        equal(sorted(value), ["common", "letters", "word"])
        assert 0 <= value["letters"] <= 99 and type(value["common"]) is bool and len(value["word"]) <= 12, value


def a_pydantic_class_comes_back_as_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=HARBOR, temperature=0, max_tokens=400, response_format=Word
    )
    assert isinstance(answer.choices[0].message.parsed, Word), answer


def a_json_object_is_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HARBOR, temperature=1, seed=5, max_tokens=100, response_format={"type": "json_object"}
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict), answer
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{"), answer


def tools_may_be_left_uncalled(client: openai.OpenAI) -> None:
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model=MODEL, messages=HARBOR, temperature=0, max_tokens=40, tools=[WEATHER], tool_choice=choice
        )
        message = answer.choices[0].message
        assert message.content or message.tool_calls, message


def called(message) -> None:
    (call,) = message.tool_calls
    equal((call.type, call.function.name), ("function", "get_weather"))
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Lima"), call
    assert call.id, call


def a_required_or_named_tool_is_called(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        answer = client.chat.completions.create(
            model=MODEL, messages=HARBOR, temperature=0, max_tokens=200, tools=[WEATHER], tool_choice=choice,
            parallel_tool_calls=False,
        )
        called(answer.choices[0].message)


def a_streamed_call_is_the_whole_one(client: openai.OpenAI) -> None:
    asked = dict(
        model=MODEL, messages=HARBOR, temperature=0, max_tokens=200, tools=[WEATHER], tool_choice="required",
        parallel_tool_calls=False,
    )
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    called(final.choices[0].message)
    whole = client.chat.completions.create(**asked).choices[0]
    equal(final.choices[0].finish_reason, whole.finish_reason)
    equal(final.choices[0].message.tool_calls[0].function.arguments, whole.message.tool_calls[0].function.arguments)


def a_conversation_with_a_call_goes_on(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    messages = [*HARBOR, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]  # fmt: skip
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0, max_tokens=8)
    equal(answer.choices[0].message.role, "assistant")


CHECKS = [
    models_are_listed_and_found, chat_answers_and_counts, a_stream_has_the_text_and_the_usage_of_the_whole,
    the_stream_helper_puts_the_answer_together, log_probabilities_spell_the_answer, n_choices_are_numbered_and_seeded,
    stop_ends_before_its_text, biases_and_penalties_change_the_choice, a_json_schema_is_conformed_to,
    a_pydantic_class_comes_back_as_itself, a_json_object_is_one, tools_may_be_left_uncalled,
    a_required_or_named_tool_is_called, a_streamed_call_is_the_whole_one, a_conversation_with_a_call_goes_on,
]  # fmt: skip

if __name__ == "__main__":
    run_strictly(CHECKS)
