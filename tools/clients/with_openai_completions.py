"""The openai package's older half: completions of texts, token ids and batches, with echo and log-probabilities."""

import openai

from report import equal
from server import MODEL
from strict import run_strictly

PROMPT = "A harbor is"


def lenient(client: openai.OpenAI) -> openai.OpenAI:
    """A client for `echo`: a prompt's first token has no log-probability, so OpenAI's servers too say null, which is
    not of the package's type."""
    return openai.OpenAI(base_url=client.base_url, api_key="none", max_retries=0, timeout=60)


def ids_of(client: openai.OpenAI, text: str) -> list[int]:
    root = str(client.base_url).removesuffix("v1/")
    return client.post(f"{root}tokenize", body={"prompt": text}, cast_to=object)["tokens"]


def text_and_its_ids_are_the_same_prompt(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, max_tokens=12, temperature=0, logprobs=2)
    by_text = client.completions.create(prompt=PROMPT, **asked)
    by_ids = client.completions.create(prompt=ids_of(client, PROMPT), **asked)
    equal(by_ids.choices, by_text.choices)
    assert by_text.choices[0].text, by_text


def a_batch_gives_what_each_prompt_gives_alone(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "The king", "In the morning they", "!"]
    asked = dict(model=MODEL, max_tokens=9, temperature=0.9, seed=4, n=2, logprobs=1)
    alone = [client.completions.create(prompt=prompt, **asked).choices for prompt in prompts]
    for batch in (prompts, [ids_of(client, prompt) for prompt in prompts]):
        choices = client.completions.create(prompt=batch, **asked).choices
        equal([choice.index for choice in choices], list(range(8)))
        for i, choice in enumerate(choices):
            expected = alone[i // 2][i % 2]
            equal((choice.text, choice.logprobs), (expected.text, expected.logprobs))


def echo_gives_the_prompt_back_with_its_log_probabilities(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, prompt=PROMPT, temperature=0, logprobs=1)
    plain = client.completions.create(**asked, max_tokens=6).choices[0]
    for tokens in (6, 0):
        choice = lenient(client).completions.create(**asked, max_tokens=tokens, echo=True).choices[0]
        equal(choice.text, PROMPT + (plain.text if tokens else ""))
        found = choice.logprobs
        assert found.token_logprobs[0] is None and all(value <= 0 for value in found.token_logprobs[1:]), found
        equal(len(found.tokens), len(ids_of(client, PROMPT)) + tokens)
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
        if tokens:
            equal(found.token_logprobs[-tokens:], plain.logprobs.token_logprobs)


def a_stream_has_the_text_and_log_probabilities_of_the_whole(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, prompt=[PROMPT, "The king"], temperature=0, max_tokens=10, logprobs=1, echo=True)
    whole = lenient(client).completions.create(**asked).choices
    text, tokens, ends = ["", ""], [[], []], [None, None]
    for chunk in lenient(client).completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    equal(text, [choice.text for choice in whole])
    equal(tokens, [choice.logprobs.tokens for choice in whole])
    equal(ends, [choice.finish_reason for choice in whole])


def what_only_some_servers_have_goes_in_extra_body(client: openai.OpenAI) -> None:
    asked = dict(model=MODEL, prompt=PROMPT, temperature=1, seed=2, max_tokens=8)
    only_first = client.completions.create(**asked, extra_body={"top_k": 1}).choices[0].text
    equal(only_first, client.completions.create(**{**asked, "temperature": 0}).choices[0].text)
    chosen = client.completions.create(**asked, extra_body={"guided_choice": ["yes", "no"]}).choices[0].text
    assert chosen in ("yes", "no"), chosen
    entries = client.completions.create(**asked, extra_body={"prompt_logprobs": 1}).choices[0].prompt_logprobs
    equal((entries[0], len(entries)), (None, len(ids_of(client, PROMPT))))


CHECKS = [
    text_and_its_ids_are_the_same_prompt, a_batch_gives_what_each_prompt_gives_alone,
    echo_gives_the_prompt_back_with_its_log_probabilities, a_stream_has_the_text_and_log_probabilities_of_the_whole,
    what_only_some_servers_have_goes_in_extra_body,
]  # fmt: skip

if __name__ == "__main__":
    run_strictly(CHECKS)
