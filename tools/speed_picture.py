#!/usr/bin/env python3
"""Draws what compare_llama_cpp.py found: a bar per engine and format, and a line where the machine's limit is.

    python3 tools/speed_picture.py compare.json docs/speed.svg --flavour native
    python3 tools/speed_picture.py decode.json docs/speed.svg --prefill prefill.json

Decode is best seen behind a short prompt, prefill with a long one: each may come from a file of its own lengths, of the
same machine, model and threads. The titles say the lengths.
"""

from pathlib import Path
from xml.sax.saxutils import escape

from compare.results import other_settings, read, rows
from script import Arguments, Misused, Output, end

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


def draw(decode: dict, prefill: dict, flavour: str) -> str:
    """The picture of what two files have, which may be the same one."""
    titles = {
        "decode": f"Decode behind {decode['prompt']} tokens, tokens/s (limit: bandwidth)",
        "prefill": f"Prefill of {prefill['prompt']} tokens, tokens/s (limit: f32 FMA peak)",
    }
    drawn = {"decode": of_what(decode, flavour, "decode"), "prefill": of_what(prefill, flavour, "prefill")}
    # One file may have been measured without one of them; of two files each was named for something.
    lacking = [what for what in drawn if not drawn[what]]
    if lacking == list(drawn) or (lacking and decode is not prefill):
        there = flavours(prefill if lacking == ["prefill"] else decode)
        raise Misused(f"no {lacking[0]} of --flavour {flavour} was measured; there is {', '.join(there) or 'nothing'}")
    body = legend()
    for i, what in enumerate(drawn):
        if drawn[what]:
            body += panel(LEFT + i * (PANEL + 20), titles[what], drawn[what])
    machine = decode["machine"]
    foot = f"{decode['shape'].upper()} shape of Llama, random weights, {decode['threads']} threads, {machine['processor']}"
    foot += f" ({'AVX2 only' if flavour == 'avx2' else ', '.join(map(str, machine['features']))})"
    foot = escape(foot)
    body.append(f'<text class="small" x="{LEFT}" y="{TOP + HEIGHT + 54}">{foot}; numbers below the bars: ours ÷ theirs</text>')
    size = f'width="{WIDTH}" height="{TOP + HEIGHT + 66}" viewBox="0 0 {WIDTH} {TOP + HEIGHT + 66}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Speed beside llama.cpp">'
    return "\n".join([head, f"<style>{STYLE}</style>", *body, "</svg>", ""])


def of_what(found: dict, flavour: str, what: str) -> list[dict]:
    """One row per format: of several splits the first."""
    chosen = {}
    for row in rows(found["samples"]):
        if (row["flavour"], row["what"]) == (flavour, what):
            chosen.setdefault(row["format"], row)
    return list(chosen.values())


def flavours(found: dict) -> list[str]:
    return sorted({sample["flavour"] for sample in found["samples"]})


def main() -> int:
    parser = Arguments(__doc__)
    parser.add_argument("json", type=Path, help="what compare_llama_cpp.py --json wrote")
    parser.add_argument("svg", type=Path)
    parser.add_argument("--prefill", type=Path, metavar="JSON", help="where prefill is taken from; default: the same file")
    parser.add_argument("--flavour", default="native")
    args = parser.parse_args()
    decode = read(args.json)
    prefill = read(args.prefill) if args.prefill else decode
    other = other_settings(prefill, {key: decode[key] for key in ("machine", "shape", "threads")})
    if other:
        raise Misused(f"{args.prefill} has {other}: one picture would compare what cannot be compared")
    Output(args.svg).write(draw(decode, prefill, args.flavour))
    return 0


if __name__ == "__main__":
    end(main, failed=2)
