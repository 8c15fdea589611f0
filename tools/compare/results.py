"""Samples become rows: medians, spreads, fractions of the limits, ratios. And the file that has them is read."""

from collections import defaultdict
from math import inf
from pathlib import Path
from statistics import median

from compare.anysplit import FLAGS
from script import Misused, read_json

# One sample: these, and split (Anysplit's).
TEXTS = ("engine", "flavour", "format", "what")
NUMBERS = ("tokens_per_s", "fraction", "read_gb_s", "fma_gflop_s", "peak_rss_bytes")
# All samples of a file have the same.
LENGTHS = ("threads", "prompt", "gen", "batch_prompt")


def read(path: Path) -> dict:
    """What compare_llama_cpp.py wrote."""
    found = read_json(path)
    fault = _fault(found)
    if fault:
        raise Misused(f"{path} is not what compare_llama_cpp.py writes: {fault}")
    return found


def _fault(found) -> str | None:
    if not isinstance(found, dict) or not isinstance(found.get("samples"), list):
        return "it has no samples"
    machine = found.get("machine")
    if not isinstance(machine, dict) or not isinstance(machine.get("processor"), str):
        return "it does not say on which machine"
    if not isinstance(machine.get("features"), list) or not isinstance(found.get("shape"), str):
        return "it does not say which features the machine has and which shape the model"
    missing = [key for key in LENGTHS if not isinstance(found.get(key), int)]
    if missing:
        return f"it does not say {', '.join(missing)}"
    wrong = (number for number, sample in enumerate(found["samples"]) if not _is_sample(sample))
    return next((f"its sample {number} lacks something" for number in wrong), None)


def _is_sample(sample) -> bool:
    if not isinstance(sample, dict) or not all(isinstance(sample.get(key), str) for key in TEXTS):
        return False
    if not isinstance(sample.get("split"), str | None):
        return False
    numbers = [sample.get(key) for key in NUMBERS]
    return sample["format"] in FLAGS and all(isinstance(x, int | float) and 0 < x < inf for x in numbers)


def other_settings(found: dict, settings: dict) -> str:
    """What a file was measured with, where that is not what `settings` say."""
    return ", ".join(f"{key} {found.get(key)} (not {now})" for key, now in settings.items() if found.get(key) != now)


def rows(samples: list[dict]) -> list[dict]:
    """One per (flavour, format, what) and split of Anysplit's, with each engine's medians."""
    groups = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        groups[sample["flavour"], sample["format"], sample["what"]][sample.get("split")].append(sample)
    found = []
    for key, by_split in groups.items():
        theirs = by_split.pop(None, [])
        for split, ours in by_split.items() or [(None, [])]:
            engines = {"anysplit": ours, "llama.cpp": theirs}
            found.append(_row((*key, split), {name: part for name, part in engines.items() if part}))
    return found


def _row(key: tuple, engines: dict[str, list[dict]]) -> dict:
    row = dict(zip(("flavour", "format", "what", "split"), key))
    for engine, samples in engines.items():
        rates = [sample["tokens_per_s"] for sample in samples]
        row[engine] = {
            "tokens_per_s": median(rates),
            "min": min(rates),
            "max": max(rates),
            "runs": len(rates),
            "fraction": median(sample["fraction"] for sample in samples),
            "read_gb_s": median(sample["read_gb_s"] for sample in samples),
            "fma_gflop_s": median(sample["fma_gflop_s"] for sample in samples),
            "peak_rss_bytes": max(sample["peak_rss_bytes"] for sample in samples),
        }
    if {"anysplit", "llama.cpp"} <= engines.keys():
        row["ratio"] = row["anysplit"]["tokens_per_s"] / row["llama.cpp"]["tokens_per_s"]
        # What is left once both are divided by what the machine could do while they ran.
        row["ratio_of_fractions"] = row["anysplit"]["fraction"] / row["llama.cpp"]["fraction"]
    return row


HEADER = (
    "| build | format | what | anysplit tok/s | of the limit | llama.cpp tok/s | of the limit | ratio | of fractions |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def table(found: list[dict]) -> str:
    """Markdown. Tokens/s as median (least to most)."""
    lines = [HEADER]
    several = len({row["split"] for row in found} - {None}) > 1
    for row in found:
        split = f", {row['split']}" if several and row["split"] else ""
        cells = [row["flavour"], row["format"].upper(), row["what"] + split]
        cells += [cell for engine in ("anysplit", "llama.cpp") for cell in _cells(row.get(engine))]
        cells += [f"{row[key]:.2f}" if key in row else "–" for key in ("ratio", "ratio_of_fractions")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(found: dict | None) -> list[str]:
    if found is None:
        return ["–", "–"]
    digits = 1 if found["tokens_per_s"] < 1000 else 0
    number = lambda key: f"{found[key]:.{digits}f}"
    return [f"{number('tokens_per_s')} ({number('min')}–{number('max')})", f"{100 * found['fraction']:.0f} %"]


def limits_line(samples: list[dict]) -> str:
    """What the machine could do meanwhile."""
    span = lambda key: (min(s[key] for s in samples), median(s[key] for s in samples), max(s[key] for s in samples))
    read, fma = span("read_gb_s"), span("fma_gflop_s")
    return (
        f"Limits meanwhile: read {read[1]:.1f} GB/s ({read[0]:.1f}–{read[2]:.1f}), "
        f"f32 FMA {fma[1]:.0f} GFLOP/s ({fma[0]:.0f}–{fma[2]:.0f})."
    )
