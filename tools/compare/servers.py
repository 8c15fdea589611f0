"""Servers: started on a port, asked with `anysplit bench serve`, stopped."""

import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from compare.anysplit import Anysplit
from script import Failed

START_S = 120
STOP_S = 30


class Server:
    """A server and its children. Used by `with`, behind which it is gone."""

    def __init__(self, command: list, log: Path, ready: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.name, self.url, self.log = Path(command[0]).name, f"http://127.0.0.1:{port}", log
        self.ready = ready
        self.command = [*map(str, command), "--host", "127.0.0.1", "--port", str(port)]

    def __enter__(self) -> "Server":
        with open(self.log, "wb") as out:
            try:
                self.process = subprocess.Popen(self.command, stdout=out, stderr=out)
            except OSError as error:
                raise Failed(f"{self.command[0]}: {error.strerror}") from error
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                lines = self.log.read_text(errors="replace").strip().splitlines()
                raise Failed(f"{self.name} does not start: {lines[-1] if lines else 'it said nothing'} (all of it: {self.log})")
            time.sleep(0.1)
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _is_ready(self) -> bool:
        # While a server loads, it answers with an error.
        try:
            self._get(self.ready)
            return True
        except OSError:
            return False

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        """One of /metrics, of the only model that is served."""
        lines = self._get("/metrics").splitlines()
        found = next((line for line in lines if line.startswith(f"{name}{{")), None)
        if found is None:
            raise Failed(f"{self.url}/metrics has no {name}")
        return float(found.split()[-1])

    def ask(self, ours: Anysplit, *flags) -> dict:
        """One run of `bench serve`, with each request's times."""
        command = ["bench", "serve", "--base-url", self.url, "--ignore-eos", "--save-detailed", *flags]
        found = ours.json(command, ("output_throughput", "start_times", "ttfts", "itls", "errors"))
        failed = [error for error in found["errors"] if error]
        if failed:
            raise Failed(f"{len(failed)} requests to {self.name} failed: {failed[0]}")
        return found

    def peak_bytes(self) -> int:
        """What the server and its children had in memory at most, each for itself; files that they map are left out."""
        return sum(_peak_bytes(pid) for pid in _family(self.process.pid))


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return [pid, *(member for child in children for member in _family(child))]


def _peak_bytes(pid: int) -> int:
    facts = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    kilobytes = lambda key: int(facts[key].split()[0])
    return 1024 * (kilobytes("VmHWM") - kilobytes("RssFile"))
