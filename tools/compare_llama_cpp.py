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
"""

import argparse
import json
import os
import platform
import sys
import tarfile
from pathlib import Path

from compare.anysplit import FLAGS, Anysplit, Limits, Refused
from compare.llama_cpp import FLAVOURS, LlamaCpp, weight_bytes
from compare.results import limits_line, rows, table
from compare.shapes import SHAPES
from compare.steps import Failed, say

BATCH_PROMPT = 32


def arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anysplit" / "compare"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    some = lambda known: lambda text: [one_of(known, part) for part in text.split(",")]
    parser.add_argument("--anysplit", type=Path, default=Path("target/release/anysplit"), metavar="PATH")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--formats", type=some(FLAGS), default=list(FLAGS), metavar=",".join(FLAGS))
    parser.add_argument("--flavours", type=some(FLAVOURS), default=["native"], metavar=",".join(FLAVOURS),
                        help="instruction sets: all that this processor has, or AVX2 at most, of both engines")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), metavar="N")
    parser.add_argument("--splits", type=lambda text: text.split(","), metavar="1x2,2x1",
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
    parser.add_argument("--append", action="store_true", help="adds to the samples that --json has")
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR")
    parser.add_argument("--llama-cpp-python", default="0.3.36", metavar="VERSION",
                        help="whose llama.cpp; default: %(default)s")
    return parser.parse_args()


def one_of(known, text: str) -> str:
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
    return text


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


class Comparison:
    """What is measured, and the samples so far."""

    def __init__(self, args: argparse.Namespace, peer: LlamaCpp, ours: Anysplit):
        self.args, self.peer, self.ours = args, peer, ours
        self.shape = SHAPES[args.shape]
        self.samples: list[dict] = []
        self.commit = None
        self.refused: set[str] = set()

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
        size = weight_bytes(self.peer.python(), model)
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
        say(f"llama.cpp ({flavour}) {format} {what}")
        before = self.ours.limits(self.args.threads)
        found = run()
        limits = before.between(self.ours.limits(self.args.threads))
        self.commit = found.pop("commit", self.commit)
        least_s = max(bytes_read / limits.read_gb_s, flops / limits.fma_gflop_s) / 1e9
        self.add("llama.cpp", flavour, format, what, found | {"fraction": found["tokens_per_s"] * least_s}, limits)

    def measure_anysplit(self, flavour: str, format: str) -> None:
        args = self.args
        model, isa = self.peer.checkpoint(args.shape), None if flavour == "native" else flavour
        for split in args.splits or [f"1x{args.threads}"]:
            cases = [("", args.prompt_len, 1)] if "alone" in args.what else []
            cases += [(f" ×{n}", BATCH_PROMPT, n) for n in args.batches] if "batches" in args.what else []
            for suffix, prompt, batch in cases:
                say(f"anysplit ({flavour}) {format} {split}{suffix}")
                try:
                    row = self.ours.decode(model, split, format, prompt, args.gen_len, batch, isa)
                except Refused as refused:
                    if str(refused) not in self.refused:
                        say(f"left out: {refused}")
                    self.refused.add(str(refused))
                    return
                limits = Limits(row["read_gb_s"], row["fma_gflop_s"])
                whats = {"decode": ("decode_tokens_per_s", "decode_roofline_fraction")}
                if batch == 1:
                    whats["prefill"] = ("prefill_tokens_per_s", "prefill_flops_fraction")
                for what, (rate, fraction) in whats.items():
                    found = {"tokens_per_s": row[rate], "fraction": row[fraction]}
                    found["peak_rss_bytes"] = row["peak_rss_bytes"]
                    self.add("anysplit", flavour, format, what + suffix, found | {"split": split}, limits)

    def add(self, engine: str, flavour: str, format: str, what: str, found: dict, limits: Limits) -> None:
        say(f"    {what}: {found['tokens_per_s']:.2f} tok/s, {100 * found['fraction']:.0f} % of the limit")
        place = {"engine": engine, "flavour": flavour, "format": format, "what": what}
        self.samples.append(place | found | vars(limits))


def machine() -> dict:
    """Enough to know it again."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    features = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if f in facts.get("flags", "").split()]
    return {
        "processor": facts.get("model name", platform.processor()),
        "family": facts.get("cpu family"),
        "model": facts.get("model"),
        "cores": os.cpu_count(),
        "features": features,
    }


def main() -> None:
    args = arguments()
    if not hasattr(tarfile, "data_filter"):
        raise Failed("Python 3.11.4 or later is needed")
    if args.only != "prepare" and not args.anysplit.exists():
        raise Failed(f"{args.anysplit} does not exist; build it with cargo build --release, or name it by --anysplit")
    earlier = []
    if args.append and args.json and args.json.exists():
        earlier = json.loads(args.json.read_text())["samples"]
    peer, ours = LlamaCpp(args.cache, args.llama_cpp_python), Anysplit(args.anysplit.absolute())
    for flavour in args.flavours:
        peer.programs(flavour)
        for format in args.formats:
            peer.model(args.shape, format, flavour)
    if args.only == "prepare":
        return
    comparison = Comparison(args, peer, ours)
    for number in range(args.repeats):
        say(f"round {number + 1} of {args.repeats}")
        comparison.round()
    samples = earlier + comparison.samples
    found = rows(samples)
    if args.json:
        result = {
            "machine": machine(),
            "shape": args.shape,
            "threads": args.threads,
            "prompt": args.prompt_len,
            "gen": args.gen_len,
            "batch_prompt": BATCH_PROMPT,
            "llama_cpp": {"llama_cpp_python": args.llama_cpp_python, "commit": comparison.commit},
            "anysplit": ours.version(),
            "rows": found,
            "samples": samples,
        }
        part = args.json.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(args.json)
    print(table(found))
    if samples:
        print("\n" + limits_line(samples))


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        raise SystemExit(f"error: {failed}") from failed
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
