"""The openai package when something is wrong: each error is of the class that programs catch; and 64 requests at once."""

import asyncio
import socket

import openai

from report import Checks, equal
from server import MODEL, Server
from strict import client_of

HARBOR = [{"role": "user", "content": "What is a harbor?"}]


def raises(kind: type, ask, param: str | None = None):
    """The error that a request ends in."""
    try:
        ask()
    except kind as error:
        equal(type(error), kind)
        if param is not None:
            equal(error.param, param)
        return error
    raise AssertionError(f"no {kind.__name__}")


def what_is_wrong_is_a_bad_request_that_names_it(url: str) -> None:
    create = client_of(url).chat.completions.create
    for param, value in [
        ("temperature", -1), ("temperature", "hot"), ("n", 0), ("top_p", 2), ("max_tokens", 0), ("stop", [""]),
        ("top_logprobs", 5), ("modalities", ["audio"]), ("store", True), ("tool_choice", "sometimes"),
    ]:  # fmt: skip
        error = raises(openai.BadRequestError, lambda: create(model=MODEL, messages=HARBOR, **{param: value}), param)
        equal((error.status_code, error.type), (400, "invalid_request_error"))
    raises(openai.BadRequestError, lambda: create(model=MODEL, messages=[]), "messages")
    raises(openai.BadRequestError, lambda: create(model=MODEL, messages=HARBOR, extra_body={"frobnicate": 1}), "frobnicate")
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strange"}}}
    raises(openai.BadRequestError, lambda: create(model=MODEL, messages=HARBOR, response_format=wanted))
    long = [{"role": "user", "content": "harbor " * 5000}]
    error = raises(openai.BadRequestError, lambda: create(model=MODEL, messages=long))
    equal(error.code, "context_length_exceeded")
    # What is wrong with a stream is known before it begins.
    raises(openai.BadRequestError, lambda: create(model=MODEL, messages=long, stream=True))


def an_image_is_refused_and_not_fetched(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        image = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"}}
        messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
        raises(openai.BadRequestError, lambda: client_of(url).chat.completions.create(model=MODEL, messages=messages))
        try:
            listener.accept()
        except BlockingIOError:
            return
    raise AssertionError("the server asked for the image")


def a_model_that_is_not_served_is_not_found(url: str) -> None:
    client = client_of(url)
    raises(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-5", messages=HARBOR), "model")
    raises(openai.NotFoundError, lambda: client.models.retrieve("gpt-5"))
    raises(openai.NotFoundError, lambda: client.embeddings.create(model=MODEL, input="a"))


def a_wrong_key_is_an_authentication_error(_url: str) -> None:
    with Server("--api-key", "Right-Key-1") as server:
        raises(openai.AuthenticationError, lambda: client_of(server.url, "right-key-1").models.list())
        equal(client_of(server.url, "Right-Key-1").models.list().data[0].id, MODEL)


def a_full_queue_is_a_rate_limit_error(_url: str) -> None:
    with Server("--max-num-seqs", "1", "--max-num-queued-reqs", "2") as server:
        asked = dict(prompt="A harbor", max_tokens=800, extra_body={"ignore_eos": True})
        answers = asyncio.run(together(server.url, [asked] * 16))
    refused = [answer for answer in answers if isinstance(answer, Exception)]
    assert 0 < len(refused) < 16, answers
    for error in refused:
        equal((type(error), error.status_code), (openai.RateLimitError, 429))
        assert int(error.response.headers["retry-after"]) >= 1, error.response.headers
    texts = {answer.choices[0].text for answer in answers if not isinstance(answer, Exception)}
    assert texts, answers


def a_server_that_is_gone_is_a_connection_error(_url: str) -> None:
    with Server() as server:
        client_of(server.url).models.list()
    raises(openai.APIConnectionError, lambda: client_of(server.url).models.list())


async def together(url: str, requests: list[dict]) -> list:
    """Answers of completions that are asked for at once, or what they ended in."""
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120, _strict_response_validation=True
    ) as client:
        asks = (client.completions.create(model=MODEL, **request) for request in requests)
        return await asyncio.gather(*asks, return_exceptions=True)


def sixty_four_at_once_get_what_each_gets_alone(url: str) -> None:
    words = ["harbor", "river", "king", "teacher", "song", "garden", "light", "horse"]
    requests = [
        dict(
            prompt=f"A {words[i % 8]} is " + "a thing that " * (i % 5), max_tokens=5 + i % 23, seed=i,
            temperature=(0, 0.7, 1.3)[i % 3], logprobs=2, n=1 + i % 2,
        )
        for i in range(64)
    ]  # fmt: skip
    at_once = asyncio.run(together(url, requests))
    create = client_of(url).completions.create
    for request, answer in zip(requests, at_once):
        if isinstance(answer, Exception):
            raise answer
        equal(answer.choices, create(model=MODEL, **request).choices)


CHECKS = [
    what_is_wrong_is_a_bad_request_that_names_it, an_image_is_refused_and_not_fetched,
    a_model_that_is_not_served_is_not_found, a_wrong_key_is_an_authentication_error, a_full_queue_is_a_rate_limit_error,
    a_server_that_is_gone_is_a_connection_error, sixty_four_at_once_get_what_each_gets_alone,
]  # fmt: skip

if __name__ == "__main__":
    checks = Checks("openai")
    with Server("--tp", "2") as server:
        for check in CHECKS:
            checks.run(check, server.url)
    checks.end()
