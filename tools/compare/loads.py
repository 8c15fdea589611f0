"""What servers are asked, and what is made of the answers. Each case gives numbers by name, of one run."""

import json
import random
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Callable, Iterator

from compare.anysplit import Anysplit
from compare.servers import Server
from script import Failed

# Of a request, unless a case says otherwise.
INPUT, OUTPUT = 128, 64
LONG = 2048
# Running streams beside which a long prompt arrives, their tokens, and the share of them that a stream has before it does.
STREAMS, STREAM_OUTPUT, SHARE_BEFORE = 8, 400, 0.5
# Requests that run at a time, and those that wait beside them.
RUNNING, FEW, MANY = 32, 32, 1000
IDS = range(100, 30000)
# llama-server ends connections of sequences that fill their context.
SPARE = 64

Numbers = dict[str, float]


@dataclass(frozen=True)
class Engine:
    """How a server is made, for so many sequences of so many tokens."""

    name: str
    server: Callable[[int, int], Server]
    # Anysplit's alone: tokens/s of decoding so many tokens behind a prompt of so many, without a server.
    bare_rate: Callable[[int, int], float] | None = None


def alone(engine: Engine, ours: Anysplit, seed: int) -> Numbers:
    """One request at a time."""
    with engine.server(1, INPUT + OUTPUT + SPARE) as server:
        found = server.ask(ours, *_random(4, seed), "--max-concurrency", 1, "--num-warmups", 1)
    return {key: found[key] for key in ("output_throughput", "median_tpot_ms", "median_ttft_ms")}


def concurrent(engine: Engine, ours: Anysplit, seed: int) -> Numbers:
    """All at once."""
    with engine.server(RUNNING, INPUT + OUTPUT + SPARE) as server:
        found = server.ask(ours, *_random(RUNNING, seed), "--num-warmups", 1)
    return {key: found[key] for key in ("output_throughput", "median_itl_ms", "median_ttft_ms")}


def beside_a_long_prompt(engine: Engine, ours: Anysplit, seed: int) -> Numbers:
    """The time between tokens of running streams, while a long prompt is computed and before."""
    draw = random.Random(seed)
    prompts = [(draw.choices(IDS, k=INPUT), STREAM_OUTPUT) for _ in range(STREAMS)]
    prompts.append((draw.choices(IDS, k=LONG), 1))
    with engine.server(STREAMS + 1, LONG + STREAM_OUTPUT + SPARE) as server, _file(prompts) as path:
        # As fast as this server is: the streams begin one after the other, and all must outlive the long prompt.
        itl_s = 1e-3 * server.ask(ours, *_random(STREAMS, seed + 1000))["median_itl_ms"]
        rate = STREAMS / (SHARE_BEFORE * STREAM_OUTPUT * itl_s)
        dataset = ["--dataset-name", "file", "--dataset-path", path, "--num-prompts", len(prompts)]
        found = server.ask(ours, *dataset, "--request-rate", f"{rate:.4f}", "--burstiness", "inf")
    return gaps(found)


def gaps(found: dict) -> Numbers:
    """Of streams, of which the last request is the long prompt: gaps that end before it comes, all streams running, or that
    overlap the time from its coming to its first token. All streams must run throughout that time."""
    start, first = found["start_times"][-1], found["start_times"][-1] + found["ttfts"][-1]
    begun = max(sent + ttft for sent, ttft in zip(found["start_times"][:-1], found["ttfts"]))
    before, beside = [], []
    for sent, ttft, itls in zip(found["start_times"][:-1], found["ttfts"], found["itls"]):
        at = sent + ttft
        if at + sum(itls) < first:
            raise Failed("a stream was over before the long prompt had its first token; a longer STREAM_OUTPUT may do")
        for itl in itls:
            at += itl
            if begun < at - itl and at < start:
                before.append(itl)
            elif at > start and at - itl < first:
                beside.append(itl)
    if begun >= start or min(len(before), len(beside)) < 2:
        raise Failed("the long prompt came before all streams ran; a larger SHARE_BEFORE may do")
    usual, late = median(before), quantiles(beside, n=100, method="inclusive")[98]
    return {
        "usual_ms": 1e3 * usual,
        "beside_ms": 1e3 * median(beside),
        "p99_ms": 1e3 * late,
        "p99_by_usual": late / usual,
        "long_ttft_s": found["ttfts"][-1],
    }


def shared_prefix(engine: Engine, ours: Anysplit, seed: int) -> Numbers:
    """Two prompts that begin alike, one after the other."""
    with engine.server(1, LONG + OUTPUT + SPARE) as server:
        shape = ["--dataset-name", "shared-prefix", "--num-prefixes", 1, "--prefix-len", LONG, "--suffix-len", OUTPUT]
        flags = ["--num-prompts", 2, "--random-output-len", 4, "--seed", seed, "--max-concurrency", 1]
        first, second = server.ask(ours, *shape, *flags)["ttfts"]
    return {"first_s": first, "second_s": second, "second_by_first": second / first}


def queued(engine: Engine, ours: Anysplit, seed: int) -> Numbers:
    """As many requests, of which few or many wait at a time."""
    numbers, output, total = {}, 8, RUNNING + MANY
    for waiting in (FEW, MANY):
        with engine.server(RUNNING, 2 * output + SPARE) as server:
            lengths = ["--random-input-len", output, "--random-output-len", output]
            load = ["--num-prompts", total, "--max-concurrency", RUNNING + waiting, "--seed", seed]
            found = server.ask(ours, *load, *lengths, "--num-warmups", RUNNING)
            numbers |= {f"output_throughput_{waiting}": found["output_throughput"], f"peak_mb_{waiting}": server.peak_bytes() / 1e6}
    ratio = lambda name: numbers[f"{name}_{MANY}"] / numbers[f"{name}_{FEW}"]
    return numbers | {"throughput_by_few": ratio("output_throughput"), "memory_by_few": ratio("peak_mb")}


def overhead(engine: Engine, ours: Anysplit, seed: int) -> Numbers:
    """A token's time through the server and in the bare engine, and the share of it that the worker spends between steps."""
    with engine.server(1, INPUT + OUTPUT + SPARE) as server:
        server.ask(ours, *_random(1, seed + 1000))
        names = ("anysplit:between_steps_seconds_total", "anysplit:steps_total")
        before = [server.metric(name) for name in names]
        found = server.ask(ours, *_random(4, seed), "--max-concurrency", 1)
        between, steps = (server.metric(name) - was for name, was in zip(names, before))
    served = 1e-3 * found["median_tpot_ms"]
    bare = 1 / engine.bare_rate(INPUT, OUTPUT)
    return {
        "served_ms": 1e3 * served,
        "bare_ms": 1e3 * bare,
        "served_by_bare": served / bare,
        "between_steps_us": 1e6 * between / steps,
        "between_steps_by_step": between / steps / served,
    }


def _random(count: int, seed: int) -> list:
    lengths = ["--random-input-len", INPUT, "--random-output-len", OUTPUT]
    return ["--num-prompts", count, "--seed", seed, "--vocab-size", IDS.stop, *lengths]


@contextmanager
def _file(prompts: list[tuple[list[int], int]]) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for ids, tokens in prompts:
            print(json.dumps({"prompt": ids, "output_tokens": tokens}), file=file)
        file.flush()
        yield Path(file.name)
