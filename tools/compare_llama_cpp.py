#!/usr/bin/env python3
"""Anysplit and llama.cpp side by side on the CPU: same machine, same random weights, same shapes, runs in turn.

    python3 tools/compare_llama_cpp.py --anysplit target/release/anysplit --json compare.json

The first run takes minutes: it makes a virtual environment, fetches llama.cpp's sources (those that llama-cpp-python's
source distribution carries), builds its benchmarks, makes random weights and converts them; about 11 GB for the 1b
shape. All of that stays in the cache. Needs Python 3.11.4, a C++ compiler, and the package index on the first run.

What is run, each as often as --repeats says, and everything once before anything a second time:
  prefill     --prompt-len tokens of one sequence
  decode      --gen-len tokens behind a prompt of --prompt-len
  decode ×N   --gen-len tokens of N sequences at a time, behind prompts of 32
The machine's limits are measured around every run; a speed's fraction is of what they allow: of read bandwidth ÷ bytes
of weights, keys and values in decode, of the f32 FMA peak ÷ FLOPs in prefill, of the lesser of both where several
sequences run.

Exit status: 1 if something could not be measured (a line says what; the rest is), 2 if the options or files are wrong.
"""

import argparse
import json
import os
import re
import tarfile
from pathlib import Path

from compare.anysplit import BUILT, FLAGS, Anysplit, Limits
from compare.llama_cpp import CACHE, FLAVOURS, VERSION, LlamaCpp, weight_bytes
from compare.results import limits_line, other_settings, read, rows, table
from compare.shapes import SHAPES
from compare.steps import machine, say
from script import Arguments, Failed, Misused, Output, end, positive, some

BATCH_PROMPT = 32


def arguments() -> argparse.Namespace:
    parser = Arguments(__doc__)
    parser.add_argument("--anysplit", type=Path, default=BUILT, metavar="PATH",
                        help="default: target/release/anysplit of this repository")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--formats", type=some(FLAGS), default=list(FLAGS), metavar=",".join(FLAGS))
    parser.add_argument("--flavours", type=some(FLAVOURS), default=["native"], metavar=",".join(FLAVOURS),
                        help="instruction sets: all that this processor has, or AVX2 at most, of both engines")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--splits", type=lambda text: [ranks_by_threads(part) for part in text.split(",")], metavar="1x2,2x1",
                        help="Anysplit's ranks × threads; default: one rank of --threads")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N")
    parser.add_argument("--prompt-len", type=positive, default=512, metavar="N")
    parser.add_argument("--gen-len", type=positive, default=64, metavar="N")
    parser.add_argument("--batches", type=lambda text: [positive(part) for part in text.split(",")], default=[8],
                        metavar="8,32", help="sequences at a time, besides one; default: 8")
    parser.add_argument("--what", type=some(["alone", "batches"]), default=["alone", "batches"],
                        metavar="alone,batches", help="one sequence, several at a time, or (default) both")
    parser.add_argument("--only", choices=["prepare", "llama", "anysplit"],
                        help="prepare: fetch and build, measure nothing; else: only one engine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where samples and rows are written")
    parser.add_argument("--append", action="store_true",
                        help="adds to the samples that --json has, if lengths, threads, shape, machine and versions are the same")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR")
    parser.add_argument("--llama-cpp-python", default=VERSION, metavar="VERSION",
                        help="whose llama.cpp; default: %(default)s")
    args = parser.parse_args()
    if args.append and not args.json:
        raise Misused("--append adds to a file: name it by --json")
    if args.gen_len < 2:
        raise Misused("--gen-len 1 gives no time between tokens; give 2 or more")
    prompts = {"alone": args.prompt_len, "batches": BATCH_PROMPT}
    longest, positions = max(prompts[what] for what in args.what), SHAPES[args.shape].positions
    if longest + args.gen_len > positions:
        raise Misused(f"prompts of {longest} and --gen-len {args.gen_len} exceed the {positions} positions of {args.shape}")
    return args


def ranks_by_threads(text: str) -> str:
    """An argument."""
    if not re.fullmatch(r"[1-9][0-9]{0,3}x[1-9][0-9]{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not ranks and threads per rank, such as 2x1")
    return text


class Comparison:
    """What is measured, and the samples so far."""

    def __init__(self, args: argparse.Namespace, peer: LlamaCpp, ours: Anysplit):
        self.args, self.peer, self.ours = args, peer, ours
        self.shape = SHAPES[args.shape]
        self.samples: list[dict] = []
        self.failed: set[str] = set()
        # Bytes that a token of llama.cpp's reads, for a tied embedding is the head.
        models = {format: peer.model(args.shape, format, args.flavours[0]) for format in args.formats}
        self.weight_bytes = {format: weight_bytes(peer.python(), model) for format, model in models.items()}

    def round(self) -> None:
        """Everything once."""
        for flavour in self.args.flavours:
            for format in self.args.formats:
                if self.args.only != "anysplit":
                    self.measure_llama_cpp(flavour, format)
                if self.args.only != "llama":
                    self.measure_anysplit(flavour, format)

    def measure_llama_cpp(self, flavour: str, format: str) -> None:
        args, shape = self.args, self.shape
        model = self.peer.model(args.shape, format, flavour)
        size = self.weight_bytes[format]
        if "alone" in args.what:
            bench = lambda *shape: self.peer.bench(flavour, model, args.threads, *shape)
            prefill = shape.prefill_flops(args.prompt_len) / args.prompt_len
            self.around(flavour, format, "prefill", 0, prefill, lambda: bench(args.prompt_len, 0, 0))
            read = size + shape.kv_bytes(args.prompt_len + args.gen_len / 2)
            self.around(flavour, format, "decode", read, 0, lambda: bench(0, args.gen_len, args.prompt_len))
        for batch in args.batches if "batches" in args.what else []:
            position = BATCH_PROMPT + args.gen_len / 2
            bytes_read = size / batch + shape.kv_bytes(position)
            run = lambda: self.peer.batched_bench(flavour, model, args.threads, BATCH_PROMPT, args.gen_len, batch)
            self.around(flavour, format, f"decode ×{batch}", bytes_read, shape.decode_flops(position), run)

    def around(self, flavour: str, format: str, what: str, bytes_read: float, flops: float, run) -> None:
        """Runs llama.cpp between two measurements of the limits. Bytes and FLOPs are those of a token."""

        def measure() -> None:
            before = self.ours.limits(self.args.threads)
            found = run()
            limits = before.between(self.ours.limits(self.args.threads))
            least_s = max(bytes_read / limits.read_gb_s, flops / limits.fma_gflop_s) / 1e9
            self.add("llama.cpp", flavour, format, what, found | {"fraction": found["tokens_per_s"] * least_s}, limits)

        self.attempt(f"llama.cpp ({flavour}) {format} {what}", measure)

    def measure_anysplit(self, flavour: str, format: str) -> None:
        args = self.args
        cases = [("", args.prompt_len, 1)] if "alone" in args.what else []
        cases += [(f" ×{n}", BATCH_PROMPT, n) for n in args.batches] if "batches" in args.what else []
        for split in args.splits or [f"1x{args.threads}"]:
            for case in cases:
                self.attempt(f"anysplit ({flavour}) {format} {split}{case[0]}", lambda: self.run(flavour, format, split, *case))

    def run(self, flavour: str, format: str, split: str, suffix: str, prompt: int, batch: int) -> None:
        """Runs Anysplit, which measures the limits itself."""
        isa = None if flavour == "native" else flavour
        model = self.peer.checkpoint(self.args.shape)
        row = self.ours.decode(model, split, format, prompt, self.args.gen_len, batch, isa)
        limits = Limits(row["read_gb_s"], row["fma_gflop_s"])
        whats = {"decode": ("decode_tokens_per_s", "decode_roofline_fraction")}
        if batch == 1:
            whats["prefill"] = ("prefill_tokens_per_s", "prefill_flops_fraction")
        for what, (rate, fraction) in whats.items():
            found = {"tokens_per_s": row[rate], "fraction": row[fraction], "peak_rss_bytes": row["peak_rss_bytes"]}
            self.add("anysplit", flavour, format, what + suffix, found | {"split": split}, limits)

    def attempt(self, what: str, measure) -> None:
        """What fails costs no other measurement, and is not tried again."""
        if what in self.failed:
            return
        say(what)
        try:
            measure()
        except Failed as failed:
            self.failed.add(what)
            say(f"left out: {failed}")

    def add(self, engine: str, flavour: str, format: str, what: str, found: dict, limits: Limits) -> None:
        say(f"    {what}: {found['tokens_per_s']:.2f} tok/s, {100 * found['fraction']:.0f} % of the limit")
        place = {"engine": engine, "flavour": flavour, "format": format, "what": what}
        self.samples.append(place | found | vars(limits))


def main() -> int:
    args = arguments()
    if not hasattr(tarfile, "data_filter"):
        raise Misused("Python 3.11.4 or later is needed")
    # What is wrong with files shows now, not behind an hour of measuring.
    output = Output(args.json) if args.json else None
    ours = None if args.only == "prepare" else Anysplit(args.anysplit)
    settings = {
        "machine": machine(),
        "shape": args.shape,
        "threads": args.threads,
        "prompt": args.prompt_len,
        "gen": args.gen_len,
        "batch_prompt": BATCH_PROMPT,
        "anysplit": ours.version if ours else None,
        "llama_cpp_python": args.llama_cpp_python,
    }
    earlier = earlier_samples(args, settings)
    peer = LlamaCpp(args.cache, args.llama_cpp_python)
    for flavour in args.flavours:
        peer.programs(flavour)
        for format in args.formats:
            peer.model(args.shape, format, flavour)
    if args.only == "prepare":
        return 0
    comparison = Comparison(args, peer, ours)
    for number in range(args.repeats):
        say(f"round {number + 1} of {args.repeats}")
        comparison.round()
    if comparison.samples:
        samples = earlier + comparison.samples
        found = rows(samples)
        print(table(found) + "\n\n" + limits_line(samples))
        if output:
            output.write(json.dumps(settings | {"rows": found, "samples": samples}, indent=1) + "\n")
    if comparison.failed:
        raise Failed(f"{len(comparison.failed)} of the measurements failed and have fewer runs or none; lines above say why")
    return 0


def earlier_samples(args: argparse.Namespace, settings: dict) -> list[dict]:
    """What --append adds to."""
    if not args.append or not args.json.exists():
        return []
    found = read(args.json)
    other = other_settings(found, settings)
    if other:
        raise Misused(f"{args.json} has {other}: medians of both would mean nothing; give the same options or another --json")
    return found["samples"]


if __name__ == "__main__":
    end(main)
