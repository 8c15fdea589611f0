"""Running other programs: a line before each, and a line instead of a traceback when one fails. And where they run."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from threading import Thread

from script import Failed


def say(text: str) -> None:
    print(f"-- {text}", file=sys.stderr, flush=True)


def run(what: str, command: list, log: Path, **options) -> None:
    """Runs a program whose output is only of interest if it fails."""
    say(what)
    with open(log, "wb") as out:
        try:
            status = subprocess.run(list(map(str, command)), stdout=out, stderr=out, **options).returncode
        except OSError as error:
            raise Failed(f"{what}: {command[0]}: {error.strerror}") from error
    if status != 0:
        lines = log.read_text(errors="replace").strip().splitlines()
        last = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "it said nothing")
        raise Failed(f"{what} failed: {last.strip()} (all of it: {log})")


def measure(command: list) -> tuple[int, str, str, int]:
    """Status, stdout, stderr and peak resident bytes of a program."""
    try:
        child = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    out, err = _drain(child)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, out, err, usage.ru_maxrss * 1024


def _drain(child: subprocess.Popen) -> tuple[str, str]:
    """Both pipes at once, so that neither fills up."""
    found = {}
    readers = [
        Thread(target=lambda name=name, pipe=pipe: found.update({name: pipe.read()}))
        for name, pipe in [("out", child.stdout), ("err", child.stderr)]
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return found["out"].decode(errors="replace"), found["err"].decode(errors="replace")


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
