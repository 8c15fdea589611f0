"""schemathesis: requests made of /openapi.json, those that it allows and those that it doesn't, are answered as it says."""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from report import Checks, equal
from server import Server

KEY = "sesame"
EXAMPLES = "40"
# JSON Schema can't say all: which model is served, what a regular expression is, that of two parameters one excludes the
# other. So what the document allows may still be refused; what it forbids may never be taken.
EXCLUDED = "positive_data_acceptance"


def answer(url: str) -> str:
    body = json.dumps({"prompt": "A harbor is", "max_tokens": 20, "seed": 1, "logprobs": 3}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body, headers), timeout=60) as response:
        return json.dumps(json.load(response)["choices"])


def try_all(flags: list[str], headers: list[str]) -> None:
    with Server(*flags) as server, tempfile.TemporaryDirectory() as folder:
        before = answer(server.url)
        command = [
            Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json", *headers,
            # One worker: several make Hypothesis fail in Python 3.11.
            "--seed", "1", "--max-examples", EXAMPLES, "--generation-database", "none", "--workers", "1",
            "--continue-on-failure", "--no-shrink", "--exclude-checks", EXCLUDED, "--no-color",
        ]  # fmt: skip
        # Its folder is where it leaves things.
        kept = {**os.environ, "PYTHONHASHSEED": "0"}
        run = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, env=kept)
        tried = re.search(r"(\d+) generated", run.stdout)
        assert run.returncode == 0, said(run.stdout) or f"status {run.returncode}: {run.stderr.strip()[-300:]}"
        assert tried and int(tried[1]) > 500, run.stdout[-300:]
        equal(answer(server.url), before)


def said(output: str) -> str:
    """What it found fault with, without how."""
    _, _, faults = output.partition("= FAILURES =")
    lines = (line.strip() for line in faults.splitlines())
    return " / ".join(line for line in lines if re.match(r"__+ \w|- ST\d|Got |Expected|Invalid comp|`\{", line))


def answers_are_as_the_document_says() -> None:
    try_all(["--tp", "2"], [])


def answers_are_as_the_document_says_with_a_key() -> None:
    try_all(["--tp", "2", "--api-key", KEY], ["--header", f"Authorization: Bearer {KEY}"])


if __name__ == "__main__":
    checks = Checks("schemathesis")
    checks.run(answers_are_as_the_document_says)
    checks.run(answers_are_as_the_document_says_with_a_key)
    checks.end()
