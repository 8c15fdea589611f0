"""Anysplit's measurements: `bench limits` and `bench decode`."""

import json
from dataclasses import dataclass
from pathlib import Path

from compare.steps import measure
from script import ROOT, Failed, Misused

BUILT = ROOT / "target/release/anysplit"

# What keeps as many bits per weight as llama.cpp's format does.
FLAGS = {
    "bf16": ["--dtype", "bfloat16"],
    "f16": ["--dtype", "float16"],
    "q8_0": ["--quantization", "int8"],
    "q4_0": ["--quantization", "int4"],
}
LIMITS = ("read_gb_s", "fma_gflop_s")
RATES = ("decode_tokens_per_s", "prefill_tokens_per_s", "decode_roofline_fraction", "prefill_flops_fraction")


@dataclass(frozen=True)
class Limits:
    """Of so many threads, at some time."""

    read_gb_s: float
    fma_gflop_s: float

    def between(self, other: "Limits") -> "Limits":
        """The mean of two."""
        mean = lambda a, b: (a + b) / 2
        return Limits(mean(self.read_gb_s, other.read_gb_s), mean(self.fma_gflop_s, other.fma_gflop_s))


class Anysplit:
    """A binary. To make one fails if it is not Anysplit's."""

    def __init__(self, binary: Path):
        if not binary.exists():
            raise Misused(f"{binary} does not exist; build it with cargo build --release, or name it by --anysplit")
        self.binary = binary.absolute()
        try:
            self.version = self._run(["--version"]).strip()
        except Failed as failed:
            raise Misused(str(failed)) from failed
        if not self.version.startswith("anysplit "):
            raise Misused(f"{binary} is not Anysplit: it does not print its version; name the binary by --anysplit")

    def limits(self, threads: int) -> Limits:
        row = self.report(["bench", "limits", "--device", "cpu", "--threads", threads], LIMITS)["rows"][0]
        return Limits(*(row[key] for key in LIMITS))

    def decode(self, model: Path, split: str, format: str, prompt: int, gen: int, batch: int, isa: str | None) -> dict:
        """The row of `bench decode`, of one run."""
        command = ["bench", "decode", "--device", "cpu", "--model", model, "--splits", split, "--repeats", 1]
        command += ["--prompt-len", prompt, "--gen-len", gen, "--batch-size", batch, *FLAGS[format]]
        command += ["--isa", isa] if isa else []
        return self.report(command, (*LIMITS, *RATES, "peak_rss_bytes"))["rows"][0]

    def report(self, command: list, keys: tuple[str, ...]) -> dict:
        """What a command prints as JSON. It has rows, and each of them has `keys`."""
        found = self.json(command, ("rows",))
        if not found["rows"] or not all(key in row for row in found["rows"] for key in keys):
            raise Failed(f"{self._called(command)}: it does not print rows with {', '.join(keys)}; is it of another version?")
        return found

    def json(self, command: list, keys: tuple[str, ...]) -> dict:
        """What a command prints as JSON. It has `keys`."""
        text = self._run([*command, "--json"])
        try:
            found = json.loads(text)
            complete = all(key in found for key in keys)
        except (ValueError, TypeError):
            complete = False
        if not complete:
            raise Failed(f"{self._called(command)}: it does not print {', '.join(keys)}; is it of another version?")
        return found

    def _run(self, arguments: list) -> str:
        status, out, err, _ = measure([self.binary, *arguments])
        if status != 0:
            line = next((line for line in err.splitlines() if line.startswith("error: ")), f"status {status}")
            raise Failed(f"{self._called(arguments)}: {line.removeprefix('error: ')}")
        return out

    def _called(self, arguments: list) -> str:
        return " ".join([self.binary.name, *map(str, arguments[:2])])
