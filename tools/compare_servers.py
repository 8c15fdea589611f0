#!/usr/bin/env python3
"""`anysplit serve` and llama-server side by side on the CPU: same machine, same random weights of 8 bits, runs in turn.

    python3 tools/compare_servers.py --anysplit target/release/anysplit --json servers.json

`anysplit bench serve` asks both. What is needed, fetched and built is as for compare_llama_cpp.py, and in the same cache.

What is run, each as often as --repeats says, and everything once before anything a second time:
  alone       one request at a time, 128 tokens in, 64 out
  concurrent  32 such requests at once
  beside      8 streams, and a prompt of 2,048 tokens that arrives while they run
  prefix      two prompts that share 2,048 tokens, one after the other
and of Anysplit alone:
  queued      1,032 requests of 8 tokens in and out, of which 32 run and 32 or 1,000 wait
  overhead    a token's time through the server and in `bench decode`

Exit status: 1 if something could not be measured (a line says what; the rest is), 2 if the options or files are wrong.
"""

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path
from statistics import median

from compare import loads
from compare.anysplit import BUILT, FLAGS, Anysplit
from compare.llama_cpp import CACHE, SERVER, VERSION, LlamaCpp
from compare.loads import Engine
from compare.servers import Server
from compare.shapes import SHAPES
from compare.steps import machine, say
from script import Arguments, Failed, Output, end, positive, some

FORMAT, FLAVOUR = "q8_0", "native"
BOTH = {
    "alone": loads.alone,
    "concurrent": loads.concurrent,
    "beside": loads.beside_a_long_prompt,
    "prefix": loads.shared_prefix,
}
OURS = {"queued": loads.queued, "overhead": loads.overhead}
CASES = BOTH | OURS


def arguments() -> argparse.Namespace:
    parser = Arguments(__doc__)
    parser.add_argument("--anysplit", type=Path, default=BUILT, metavar="PATH",
                        help="default: target/release/anysplit of this repository")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N")
    parser.add_argument("--what", type=some(CASES), default=list(CASES), metavar=",".join(CASES))
    parser.add_argument("--only", choices=["llama", "anysplit"], help="only one engine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all runs are written")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR")
    parser.add_argument("--llama-cpp-python", default=VERSION, metavar="VERSION",
                        help="whose llama.cpp; default: %(default)s")
    return parser.parse_args()


def engines(args: argparse.Namespace, ours: Anysplit, peer: LlamaCpp) -> list[Engine]:
    """Both, each with what it chooses by default otherwise."""
    model, log = peer.checkpoint(args.shape), peer.logs / "server.log"
    split = f"1x{args.threads}"

    def anysplit(sequences: int, tokens: int) -> Server:
        command = [ours.binary, "serve", "--device", "cpu", "--model", model, *FLAGS[FORMAT], "--threads-per-rank", args.threads]
        return Server([*command, "--max-num-seqs", sequences, "--max-model-len", tokens], log, "/ready")

    def llama(sequences: int, tokens: int) -> Server:
        home, file = peer.programs(FLAVOUR, [SERVER]), peer.model(args.shape, FORMAT, FLAVOUR)
        command = [home / SERVER, "-m", file, "-t", args.threads]
        return Server([*command, "-np", sequences, "-c", sequences * tokens], log, "/health")

    def bare_rate(prompt: int, gen: int) -> float:
        return ours.decode(model, split, FORMAT, prompt, gen, 1, None)["decode_tokens_per_s"]

    found = {"llama": Engine("llama-server", llama), "anysplit": Engine("anysplit", anysplit, bare_rate)}
    return [engine for key, engine in found.items() if args.only in (None, key)]


def main() -> int:
    args = arguments()
    # What is wrong with files shows now, not behind an hour of measuring.
    output = Output(args.json) if args.json else None
    ours = Anysplit(args.anysplit)
    peer = LlamaCpp(args.cache, args.llama_cpp_python)
    measured = engines(args, ours, peer)
    if args.only != "anysplit":
        peer.programs(FLAVOUR, [SERVER])
        peer.model(args.shape, FORMAT, FLAVOUR)
    settings = {"machine": machine(), "shape": args.shape, "threads": args.threads, "anysplit": ours.version}
    runs: list[dict] = []
    failed = 0
    for number in range(args.repeats):
        for what in args.what:
            for engine in measured:
                if what in OURS and engine.bare_rate is None:
                    continue
                say(f"round {number + 1} of {args.repeats}: {what}, {engine.name}")
                try:
                    found = CASES[what](engine, ours, number)
                except Failed as error:
                    failed += 1
                    say(f"left out: {error}")
                    continue
                say("    " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()))
                runs.append({"what": what, "engine": engine.name, "round": number, **found})
        if output:
            output.write(json.dumps(settings | {"llama_cpp_python": args.llama_cpp_python, "runs": runs}, indent=1) + "\n")
    if runs:
        print(table(runs))
    if failed:
        raise Failed(f"{failed} runs failed; lines above say why")
    return 0


def table(runs: list[dict]) -> str:
    """Markdown: medians (least to most), and Anysplit's median by llama-server's."""
    groups: dict = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for key, value in run.items():
            if key not in ("what", "engine", "round"):
                groups[run["what"], key][run["engine"]].append(value)
    lines = ["| case | | anysplit | llama-server | ratio |", "|---|---|---|---|---|"]
    for (what, key), by_engine in groups.items():
        cells = [_cell(by_engine.get(name)) for name in ("anysplit", "llama-server")]
        ratio = f"{median(by_engine['anysplit']) / median(by_engine['llama-server']):.3g}" if len(by_engine) == 2 else "–"
        lines.append("| " + " | ".join([what, key, *cells, ratio]) + " |")
    return "\n".join(lines)


def _cell(values: list[float] | None) -> str:
    if values is None:
        return "–"
    return f"{median(values):.4g} ({min(values):.4g}–{max(values):.4g})"


if __name__ == "__main__":
    end(main)
