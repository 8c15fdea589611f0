#!/usr/bin/env python3
"""Draws what compare_llama_cpp.py found: a bar per engine and format, and a line where the machine's limit is.

    python3 tools/speed_picture.py compare.json docs/speed.svg --flavour native
"""

import argparse
import json
from pathlib import Path

ENGINES = [("anysplit", "Anysplit", "ours"), ("llama.cpp", "llama.cpp", "theirs")]
NAMES = {"bf16": "bf16", "f16": "f16", "q8_0": "int8 / Q8_0", "q4_0": "int4 / Q4_0"}
WIDTH, PANEL, LEFT, TOP, BAR, GAP = 880, 400, 40, 64, 30, 26
HEIGHT = 190
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 14px }
.small { font-size: 11px; fill: #57606a }
.ours { fill: #0969da } .theirs { fill: #afb8c1 } .limit { stroke: #cf222e; stroke-width: 2 } .axis { stroke: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 }
  .ours { fill: #4493f8 } .theirs { fill: #656c76 } .limit { stroke: #ff7b72 } .axis { stroke: #3d444d }
}
"""


def limit(row: dict, engine: str) -> float | None:
    """Tokens/s at the machine's limit."""
    found = row.get(engine)
    return found["tokens_per_s"] / found["fraction"] if found else None


def panel(x: float, title: str, rows: list[dict]) -> list[str]:
    """One group of bars per format; every bar has its own limit, for formats differ in bytes."""
    top = max(max(row[e]["tokens_per_s"], limit(row, e)) for row in rows for e, _, _ in ENGINES if e in row)
    height = lambda value: HEIGHT * 0.92 * value / top  # the rest is for the number above the tallest
    bottom = TOP + HEIGHT
    out = [f'<text class="title" x="{x}" y="{TOP - 14}">{title}</text>']
    out.append(f'<line class="axis" x1="{x}" x2="{x + PANEL - 20}" y1="{bottom}" y2="{bottom}"/>')
    at = x + 10.0
    for row in rows:
        middle = at + BAR
        for engine, _, colour in ENGINES:
            if engine in row:
                value, most = row[engine]["tokens_per_s"], limit(row, engine)
                y = bottom - height(value)
                out.append(f'<rect class="{colour}" x="{at:.1f}" y="{y:.1f}" width="{BAR}" height="{height(value):.1f}"/>')
                line = bottom - height(most)
                ends = f'x1="{at - 2:.1f}" x2="{at + BAR + 2:.1f}" y1="{line:.1f}" y2="{line:.1f}"'
                out.append(f'<line class="limit" {ends}/>')
                above = min(y, line if abs(line - y) < 16 else y) - 4
                number = f"{value:.0f}" if value >= 30 else f"{value:.1f}"
                out.append(f'<text x="{at + BAR / 2:.1f}" y="{above:.1f}" text-anchor="middle">{number}</text>')
            at += BAR
        label = f'<text x="{middle:.1f}" y="{bottom + 16}" text-anchor="middle">{NAMES[row["format"]]}</text>'
        ratio = f'{row["ratio"]:.2f} ×' if "ratio" in row else ""
        out += [label, f'<text class="small" x="{middle:.1f}" y="{bottom + 31}" text-anchor="middle">{ratio}</text>']
        at += GAP + (PANEL - 30 - len(rows) * (2 * BAR + GAP)) / max(1, len(rows))
    return out


def legend() -> list[str]:
    out, x = [], LEFT
    for _, name, colour in ENGINES:
        out.append(f'<rect class="{colour}" x="{x}" y="10" width="12" height="12"/>')
        out.append(f'<text x="{x + 17}" y="20">{name}</text>')
        x += 90
    out.append(f'<line class="limit" x1="{x}" x2="{x + 18}" y1="16" y2="16"/>')
    out.append(f'<text x="{x + 23}" y="20">the machine’s limit, measured between the runs</text>')
    return out


def draw(found: dict, flavour: str) -> str:
    # One row per format: of several splits the first.
    by_what = lambda what: [r for r in found["rows"] if (r["flavour"], r["what"]) == (flavour, what)]
    rows = {what: list({r["format"]: r for r in reversed(by_what(what))}.values())[::-1] for what in ("decode", "prefill")}
    if not rows["decode"] and not rows["prefill"]:
        raise SystemExit(f"error: nothing of flavour {flavour} was measured; give one of its rows' by --flavour")
    machine, threads = found["machine"], found["threads"]
    titles = {
        "decode": "Decode, tokens/s (limit: read bandwidth)",
        "prefill": f"Prefill of {found['prompt']} tokens, tokens/s (limit: f32 FMA peak)",
    }
    body = legend()
    for i, what in enumerate(("decode", "prefill")):
        if rows[what]:
            body += panel(LEFT + i * (PANEL + 20), titles[what], rows[what])
    foot = f"{found['shape'].upper()} shape of Llama, random weights, {threads} threads, {machine['processor']}"
    foot += f" ({'AVX2 only' if flavour == 'avx2' else ', '.join(machine['features'])})"
    body.append(f'<text class="small" x="{LEFT}" y="{TOP + HEIGHT + 54}">{foot}; numbers below the bars: ours ÷ theirs</text>')
    size = f'width="{WIDTH}" height="{TOP + HEIGHT + 66}" viewBox="0 0 {WIDTH} {TOP + HEIGHT + 66}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Speed beside llama.cpp">'
    return "\n".join([head, f"<style>{STYLE}</style>", *body, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--flavour", default="native")
    args = parser.parse_args()
    args.svg.write_text(draw(json.loads(args.json.read_text()), args.flavour))


if __name__ == "__main__":
    main()
