#!/usr/bin/env python3
"""Whether Anysplit got slower on this machine: fractions of its limits against those of a stored baseline.

    just bench-check            compares; exit status 1 and a line for each row that is worse, 2 if nothing can be compared
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
from math import inf
from pathlib import Path

from compare.anysplit import BUILT, LIMITS, Anysplit
from compare.steps import say
from script import Arguments, Misused, Output, end, positive, read_json, some

HOME = Path(__file__).parent / "bench_baselines"
FRACTIONS = {"prefill": "prefill_flops_fraction", "decode": "decode_roofline_fraction"}
KNOWN = ["none", "int8", "int4", "fp8"]
QUANTIZATIONS = ["none", "int8", "int4"]


def cases(cores: int) -> list[list[str]]:
    """Arguments of the calls that measure."""
    splits = f"1x{cores}" + (f",2x{cores // 2}" if cores > 1 else "")
    return [
        ["--splits", splits, "--prompt-len", "512", "--gen-len", "64", "--batch-size", "1"],
        ["--splits", f"1x{cores}", "--prompt-len", "32", "--gen-len", "32", "--batch-size", "8,32"],
    ]


def machine(anysplit: Anysplit, cores: int) -> str:
    """A name of what is measured on."""
    isa = anysplit.report(["bench", "limits", "--device", "cpu", "--threads", cores], LIMITS).get("isa", "unknown")
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    processor = [facts.get(key, "") for key in ("model name", "cpu family", "model")]
    words = re.findall(r"[a-z0-9]+", " ".join(processor).lower())
    return "-".join([*words, f"{cores}cores", str(isa)])


def measure(args: argparse.Namespace, anysplit: Anysplit, cores: int, only: set[str] | None = None) -> dict[str, dict]:
    """Fractions by row; of the calls that give any of `only`, if that is said."""
    found = {}
    for quantization in args.quantizations:
        for case in cases(cores):
            if only is not None and not any(name in only for name in names(case, quantization)):
                continue
            say(f"{quantization}: {' '.join(case)}")
            model = ["--model", str(HOME), "--load-format", "random"]
            kept = [] if quantization == "none" else ["--quantization", quantization]
            arguments = ["bench", "decode", "--device", "cpu", *model, *case, *kept, "--repeats", args.repeats]
            keys = ("tp", "threads_per_rank", "batch", "spread", *FRACTIONS.values())
            for row in anysplit.report(arguments, keys)["rows"]:
                for what in measured(row["batch"]):
                    key = FRACTIONS[what]
                    name = row_name(quantization, row["tp"], row["threads_per_rank"], row["batch"], what)
                    found[name] = {"fraction": round(row[key], 4), "spread": [round(x, 4) for x in row["spread"][key]]}
    return found


def names(case: list[str], quantization: str) -> list[str]:
    """The rows that a call gives."""
    value = dict(zip(case[::2], case[1::2]))
    splits = [tuple(map(int, split.split("x"))) for split in value["--splits"].split(",")]
    batches = [int(batch) for batch in value["--batch-size"].split(",")]
    return [row_name(quantization, *split, b, w) for split in splits for b in batches for w in measured(b)]


def measured(batch: int) -> list[str]:
    return ["prefill", "decode"] if batch == 1 else ["decode"]


def row_name(quantization: str, tp: int, threads: int, batch: int, what: str) -> str:
    return f"{shown(quantization)}, {tp} x {threads} threads, batch {batch}: {what}"


def shown(quantization: str) -> str:
    return "bfloat16" if quantization == "none" else quantization


def read_baseline(path: Path) -> dict[str, dict]:
    """The rows of a baseline; none if it does not exist."""
    if not path.exists():
        return {}
    found = read_json(path)
    rows = found.get("rows") if isinstance(found, dict) else None
    fraction = lambda row: row.get("fraction") if isinstance(row, dict) else None
    sound = lambda x: isinstance(x, int | float) and 0 < x < inf
    if not isinstance(rows, dict) or not all(sound(fraction(row)) for row in rows.values()):
        raise Misused(f"{path} is damaged: a row without its fraction; restore it, or delete it and give --update")
    return rows


def require(baseline: dict, wanted: list[str], path: Path) -> None:
    """Fails if a row would be compared with nothing."""
    missing = [name for name in wanted if name not in baseline]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise Misused(f"{path} has nothing for {missing[0]!r}{others}; --update measures and stores it")


def worse(baseline: dict, found: dict, tolerance: float) -> list[str]:
    """Rows that are below the baseline, or that are no longer measured."""
    low = lambda name: found[name]["fraction"] < baseline[name]["fraction"] * (1 - tolerance)
    return [name for name in baseline if name not in found or low(name)]


def arguments() -> argparse.Namespace:
    parser = Arguments(__doc__)
    parser.add_argument("--anysplit", type=Path, default=BUILT, metavar="PATH",
                        help="default: target/release/anysplit of this repository")
    parser.add_argument("--update", action="store_true", help="stores what is measured as the baseline")
    parser.add_argument("--quantizations", type=some(KNOWN), default=QUANTIZATIONS, metavar=",".join(KNOWN),
                        help=f"default: {','.join(QUANTIZATIONS)}; other rows of the baseline are left alone")
    parser.add_argument("--tolerance", type=tolerance, default=0.15, metavar="F",
                        help="between 0 and 1; default: %(default)s")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="default: %(default)s")
    return parser.parse_args()


def tolerance(text: str) -> float:
    """An argument."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def main() -> int:
    args = arguments()
    anysplit = Anysplit(args.anysplit)
    cores = len(os.sched_getaffinity(0))
    name = machine(anysplit, cores)
    path = HOME / f"{name}.json"
    # What is wrong with files shows now, not behind minutes of measuring.
    output = Output(path) if args.update else None
    stored = read_baseline(path)
    kept = {row for row in stored if row.split(",")[0] not in map(shown, args.quantizations)}
    baseline = {row: stored[row] for row in stored if row not in kept}
    if output is None:
        require(baseline, [row for q in args.quantizations for case in cases(cores) for row in names(case, q)], path)
    found = measure(args, anysplit, cores)
    if output is not None:
        found = {row: stored[row] for row in kept} | found
        output.write(json.dumps({"machine": name, "repeats": args.repeats, "rows": found}, indent=1) + "\n")
        print(f"{len(found)} rows stored in {path}")
        return 0
    suspects = worse(baseline, found, args.tolerance)
    if suspects:
        say(f"{len(suspects)} rows look worse: measuring those again")
        again = measure(args, anysplit, cores, set(suspects))
        found |= {name: again[name] for name in suspects if name in again}
    regressed = worse({name: baseline[name] for name in suspects}, found, args.tolerance)
    for name in regressed:
        now = f"{100 * found[name]['fraction']:.1f} %" if name in found else "not measured"
        print(f"worse: {name}: {now} of the limit, {100 * baseline[name]['fraction']:.1f} % in the baseline")
    print(f"{len(baseline) - len(regressed)} of {len(baseline)} rows are within {100 * args.tolerance:.0f} % or better")
    return 1 if regressed else 0


if __name__ == "__main__":
    end(main, failed=2)  # 1 is for rows that are worse
