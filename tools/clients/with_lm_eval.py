"""lm-evaluation-harness through `local-completions`: its log-likelihoods are those of `anysplit score`, bit for bit.

Its tasks come from a hub, so two small ones are written here: one that chooses, one that scores a whole text.
"""

import json
import os
import struct
import subprocess
import tempfile
from pathlib import Path

HOME = tempfile.TemporaryDirectory()
# Nothing is fetched, and nothing is left behind.
os.environ.update(HF_HOME=HOME.name, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from report import Checks, equal  # noqa: E402
from server import BINARY, MODEL, Server  # noqa: E402

# The built-in model's tokenizer, which the harness has to have too.
TOKENIZER = Path(__file__).resolve().parents[2] / "crates/cli/demo"

TASKS = {
    "choose": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}],
    },
    "roll": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}  # fmt: skip
DOCS = {
    "choose": [
        {"question": "A harbor is a place for", "choices": ["ships", "clouds and light", "it"], "answer": 0},
        {"question": "The opposite of small is", "choices": ["large", "a sentence"], "answer": 0},
        {"question": "In the morning they", "choices": ["went out of the city", "—", "slept"], "answer": 0},
        {"question": "The king said: Go", "choices": ["home", "and tell the people of the land"], "answer": 1},
    ],
    "roll": [
        {"text": "In the beginning God created the heaven and the earth."},
        {"text": "A harbor is a sheltered port where ships can take on or discharge cargo. Grüße!"},
        # Longer than the window of 64 tokens that the harness is given.
        {"text": "And it came to pass that the people of the city went out, and the king spoke to them. " * 6},
    ],
}


class Recorded(LocalCompletionsAPI):
    """The harness' own client, of which is kept what it asked and what it made of the answers."""

    def _loglikelihood_tokens(self, requests, **kwargs):
        found = super()._loglikelihood_tokens(requests, **kwargs)
        self.seen += list(zip(requests, found))
        return found


def tasks_in(folder: Path) -> TaskManager:
    for name, task in TASKS.items():
        lines = "".join(json.dumps(doc) + "\n" for doc in DOCS[name])
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **data, **task}))
    return TaskManager(include_path=str(folder), include_defaults=False)


def scores(ids: list[int], tp: int) -> list[float | None]:
    """`anysplit score`'s log-probabilities, each the value of a float32."""
    given = ",".join(map(str, ids))
    command = [BINARY, "score", "--json", "--tp", str(tp), "--prompt-ids", given]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)["logprobs"]
    return [value if value is None else struct.unpack("f", struct.pack("f", value))[0] for value in found]


def evaluate(tp: int, batch: int, concurrent: int) -> tuple[list, dict]:
    """What was asked with its log-likelihoods, and the results."""
    with Server("--tp", str(tp)) as server, tempfile.TemporaryDirectory() as folder:
        model = Recorded(
            base_url=f"{server.url}/v1/completions", model=MODEL, tokenizer=str(TOKENIZER), batch_size=batch,
            tokenizer_backend="huggingface", num_concurrent=concurrent, max_length=64,
        )  # fmt: skip
        model.seen = []
        results = lm_eval.simple_evaluate(
            model=model, tasks=list(TASKS), task_manager=tasks_in(Path(folder)), bootstrap_iters=0
        )
        return model.seen, results["results"]


def same_as_score(tp: int) -> None:
    seen, results = evaluate(tp, batch=1, concurrent=1)
    assert len(seen) > len(DOCS["choose"]) * 2 + len(DOCS["roll"]), seen
    for (_, context, continuation), (found, _) in seen:
        equal(found, sum(scores(context + continuation, tp)[len(context) :]))
    assert 0 <= results["choose"]["acc,none"] <= 1 and results["roll"]["bits_per_byte,none"] > 0, results


def log_likelihoods_are_those_of_score_with_tp_1() -> None:
    same_as_score(1)


def log_likelihoods_are_those_of_score_with_tp_2() -> None:
    same_as_score(2)


def batches_and_requests_at_once_change_nothing() -> None:
    def by_ids(seen) -> dict:
        return {(tuple(context), tuple(continuation)): found for (_, context, continuation), found in seen}

    one, results = evaluate(1, batch=1, concurrent=1)
    for batch, concurrent in ((4, 1), (1, 8)):
        more, again = evaluate(2, batch, concurrent)
        equal(by_ids(more), by_ids(one))
        equal(again, results)


if __name__ == "__main__":
    checks = Checks("lm-eval")
    checks.run(log_likelihoods_are_those_of_score_with_tp_1)
    checks.run(log_likelihoods_are_those_of_score_with_tp_2)
    checks.run(batches_and_requests_at_once_change_nothing)
    checks.end()
