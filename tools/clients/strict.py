"""The openai package, told to refuse answers that are not of its types."""

from typing import Callable

import openai

from report import Checks
from server import Server


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60, _strict_response_validation=True)


def run_strictly(promises: list[Callable]) -> None:
    """Runs checks that take a client, against one server, and ends the process."""
    checks = Checks("openai")
    with Server("--tp", "2") as server:
        client = client_of(server.url)
        for promise in promises:
            checks.run(promise, client)
    checks.end()
