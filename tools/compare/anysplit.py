"""Anysplit's measurements: `bench limits` and `bench decode`."""

import json
from dataclasses import dataclass
from pathlib import Path

from compare.steps import Failed, measure

# What keeps as many bits per weight as llama.cpp's format does.
FLAGS = {
    "bf16": ["--dtype", "bfloat16"],
    "f16": ["--dtype", "float16"],
    "q8_0": ["--quantization", "int8"],
    "q4_0": ["--quantization", "int4"],
}


class Refused(Failed):
    """This build cannot do it."""


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
    """A binary."""

    def __init__(self, binary: Path):
        self.binary = binary

    def version(self) -> str:
        return self._run(["--version"]).strip()

    def limits(self, threads: int) -> Limits:
        row = json.loads(self._run(["bench", "limits", "--threads", threads, "--json"]))["rows"][0]
        return Limits(row["read_gb_s"], row["fma_gflop_s"])

    def decode(self, model: Path, split: str, format: str, prompt: int, gen: int, batch: int, isa: str | None) -> dict:
        """The row of `bench decode`, of one run."""
        command = ["bench", "decode", "--model", model, "--splits", split, "--repeats", 1, "--json"]
        command += ["--prompt-len", prompt, "--gen-len", gen, "--batch-size", batch, *FLAGS[format]]
        command += ["--isa", isa] if isa else []
        return json.loads(self._run(command))["rows"][0]

    def _run(self, arguments: list) -> str:
        status, out, err, _ = measure([self.binary, *arguments])
        if status != 0:
            line = next((line for line in err.splitlines() if line.startswith("error")), f"status {status}")
            raise (Refused if status == 2 else Failed)(f"{self.binary.name} {arguments[1]}: {line}")
        return out
