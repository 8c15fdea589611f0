"""Programs that answer as the measured ones do, and measure nothing."""

import sys
from pathlib import Path

# Of the limit, in every row.
FRACTION = 0.5
ANYSPLIT = """
import json, os, sys
arguments = sys.argv[1:]
with open(CALLS, "a") as calls:
    print(*arguments, file=calls)
limits = {"read_gb_s": 30.0, "fma_gflop_s": 200.0}
if arguments == ["--version"]:
    print("anysplit 0.1.0")
elif arguments[:2] == ["bench", "limits"]:
    print(json.dumps({"isa": "fake", "rows": [limits]}))
elif os.path.exists(os.path.join(os.path.dirname(sys.argv[0]), "fails")):
    sys.exit("error: it broke")
else:
    value = lambda name: arguments[arguments.index(name) + 1].split(",")
    rates = {"decode_tokens_per_s": 20.0, "prefill_tokens_per_s": 90.0, "peak_rss_bytes": 1 << 30}
    fractions = {"decode_roofline_fraction": FRACTION, "prefill_flops_fraction": FRACTION}
    row = limits | rates | fractions | {"spread": {name: [FRACTION, FRACTION] for name in fractions}}
    places = [(*map(int, split.split("x")), int(batch)) for split in value("--splits") for batch in value("--batch-size")]
    print(json.dumps({"rows": [row | dict(zip(("tp", "threads_per_rank", "batch"), place)) for place in places]}))
"""
BENCH = """print('{"avg_ts": 10.0}')"""
BATCHED_BENCH = """print('{"speed_tg": 30.0}')"""


def fake_anysplit(path: Path, calls: Path) -> Path:
    """It appends its arguments to `calls`, and fails to measure if a file `fails` lies beside it."""
    return _program(path, ANYSPLIT.replace("CALLS", repr(str(calls))).replace("FRACTION", str(FRACTION)))


def fake_llama_cpp(cache: Path) -> Path:
    """A cache folder in which all is ready for the shape s in bf16."""
    programs = cache / "bin-0.3.36/native"
    _program(programs / "llama-bench", BENCH)
    _program(programs / "llama-batched-bench", BATCHED_BENCH)
    _program(programs / "llama-quantize", "")
    _program(cache / "venv/bin/python", "print(1 << 30)")  # the bytes of a file of weights
    for file in ["venv/ready", "weights/s/config.json", "gguf/s-bf16.gguf"]:
        (cache / file).parent.mkdir(parents=True, exist_ok=True)
        (cache / file).touch()
    return cache


def _program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -ISu\n{text}")
    path.chmod(0o755)
    return path
