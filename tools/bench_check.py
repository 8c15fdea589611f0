#!/usr/bin/env python3
"""Whether Anysplit got slower on this machine: fractions of its limits against those of a stored baseline.

    just bench-check            compares; exit status 1 and a line for each row that is worse
    just bench-check --update   measures, and stores the result as the new baseline

Tokens/s depend on what else the machine does; the fraction of the limits that were measured between the same runs
depends on it much less, so only fractions are compared. A row is worse if the median of its runs is below the
baseline's by more than --tolerance, both in a first measurement and, alone, in a second one: what disturbs a machine
for a minute rarely does so twice. On a quiet machine medians of five differ by some percent. On the shared one
of the first baseline the same program twice differed by up to 14 % in three rows of eighteen, hence the default; give
less on a machine of your own.

A baseline is a file in tools/bench_baselines, named after what it is of: processor, cores, instruction set. It is
committed with the change that made things faster (or slower, with the reason). The model has random weights and the
shape in tools/bench_baselines/config.json. This is a benchmark, and no part of what a change must pass.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parent / "bench_baselines"
FRACTIONS = {"prefill": "prefill_flops_fraction", "decode": "decode_roofline_fraction"}
QUANTIZATIONS = ["none", "int8", "int4"]


def cases(cores: int) -> list[list[str]]:
    """Arguments of the calls that measure."""
    splits = f"1x{cores}" + (f",2x{cores // 2}" if cores > 1 else "")
    return [
        ["--splits", splits, "--prompt-len", "512", "--gen-len", "64", "--batch-size", "1"],
        ["--splits", f"1x{cores}", "--prompt-len", "32", "--gen-len", "32", "--batch-size", "8,32"],
    ]


class Unusable(Exception):
    """A line that says what is wrong."""


def anysplit(binary: Path, arguments: list[str]) -> dict:
    try:
        done = subprocess.run([binary, *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise Unusable(f"{binary}: {error.strerror}; build it with cargo build --release") from error
    if done.returncode != 0:
        line = next((l for l in done.stderr.splitlines() if l.startswith("error")), f"status {done.returncode}")
        raise Unusable(f"{' '.join(arguments[:2])}: {line}")
    return json.loads(done.stdout)


def machine(binary: Path, cores: int) -> str:
    """A name of what is measured on."""
    isa = anysplit(binary, ["bench", "limits", "--threads", str(cores)])["isa"]
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    processor = [facts.get(key, "") for key in ("model name", "cpu family", "model")]
    words = re.findall(r"[a-z0-9]+", " ".join(processor).lower())
    return "-".join([*words, f"{cores}cores", isa])


def measure(args: argparse.Namespace, binary: Path, cores: int, only: set[str] | None = None) -> dict[str, dict]:
    """Fractions by row; of the calls that give any of `only`, if that is said."""
    found = {}
    for quantization in args.quantizations:
        for case in cases(cores):
            if only is not None and not any(name in only for name in names(case, quantization)):
                continue
            print(f"-- {quantization}: {' '.join(case)}", file=sys.stderr, flush=True)
            model = ["--model", str(HOME), "--load-format", "random"]
            kept = [] if quantization == "none" else ["--quantization", quantization]
            arguments = ["bench", "decode", *model, *case, *kept, "--repeats", str(args.repeats)]
            for row in anysplit(binary, arguments)["rows"]:
                for what, key in FRACTIONS.items():
                    if what == "prefill" and row["batch"] > 1:
                        continue
                    name = row_name(quantization, row["tp"], row["threads_per_rank"], row["batch"], what)
                    found[name] = {"fraction": round(row[key], 4), "spread": [round(x, 4) for x in row["spread"][key]]}
    return found


def names(case: list[str], quantization: str) -> list[str]:
    """The rows that a call gives."""
    value = dict(zip(case[::2], case[1::2]))
    splits = [tuple(map(int, split.split("x"))) for split in value["--splits"].split(",")]
    batches = [int(batch) for batch in value["--batch-size"].split(",")]
    return [row_name(quantization, *split, b, w) for split in splits for b in batches for w in FRACTIONS]


def row_name(quantization: str, tp: int, threads: int, batch: int, what: str) -> str:
    return f"{shown(quantization)}, {tp} x {threads} threads, batch {batch}: {what}"


def shown(quantization: str) -> str:
    return "bfloat16" if quantization == "none" else quantization


def worse(baseline: dict, found: dict, tolerance: float) -> list[str]:
    """Rows that are below the baseline, or that are no longer measured."""
    low = lambda name: found[name]["fraction"] < baseline[name]["fraction"] * (1 - tolerance)
    return [name for name in baseline if name not in found or low(name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anysplit", type=Path, default=Path("target/release/anysplit"), metavar="PATH")
    parser.add_argument("--update", action="store_true", help="stores what is measured as the baseline")
    parser.add_argument("--quantizations", type=lambda text: text.split(","), default=QUANTIZATIONS, metavar="LIST",
                        help=f"default: {','.join(QUANTIZATIONS)}; other rows of the baseline are left alone")
    parser.add_argument("--tolerance", type=float, default=0.15, metavar="F", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: %(default)s")
    args = parser.parse_args()
    binary = args.anysplit.absolute()
    cores = len(os.sched_getaffinity(0))
    name = machine(binary, cores)
    path = HOME / f"{name}.json"
    if not args.update and not path.exists():
        raise Unusable(f"{path} does not exist: nothing was stored for this machine; --update measures and stores it")
    found = measure(args, binary, cores)
    stored = json.loads(path.read_text())["rows"] if path.exists() else {}
    kept = {row for row in stored if row.split(",")[0] not in map(shown, args.quantizations)}
    if args.update:
        found = {row: stored[row] for row in kept} | found
        path.write_text(json.dumps({"machine": name, "repeats": args.repeats, "rows": found}, indent=1) + "\n")
        print(f"{len(found)} rows stored in {path}")
        return 0
    baseline = {row: stored[row] for row in stored if row not in kept}
    suspects = worse(baseline, found, args.tolerance)
    if suspects:
        print(f"-- {len(suspects)} rows look worse: measuring those again", file=sys.stderr, flush=True)
        again = measure(args, binary, cores, set(suspects))
        found |= {name: again[name] for name in suspects if name in again}
    regressed = worse({name: baseline[name] for name in suspects}, found, args.tolerance)
    for name in regressed:
        now = f"{100 * found[name]['fraction']:.1f} %" if name in found else "not measured"
        print(f"worse: {name}: {now} of the limit, {100 * baseline[name]['fraction']:.1f} % in the baseline")
    print(f"{len(baseline) - len(regressed)} of {len(baseline)} rows are within {100 * args.tolerance:.0f} % or better")
    return 1 if regressed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
