"""`anysplit serve`, started on a free port for as long as a check needs it."""

import os
import queue
import re
import subprocess
import threading

BINARY = os.environ.get("ANYSPLIT_BINARY", "target/release/anysplit")
MODEL = "anysplit-demo"
# For the built-in model, on a slow machine that does other things too.
START_S = 60


class Server:
    """A server with these flags; its `url` ends in no slash. Used by `with`, behind which it is gone."""

    def __init__(self, *flags: str):
        command = [BINARY, "serve", "--port", "0", *flags]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANYSPLIT_")}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=kept)
        self.lines: list[str] = []
        found: queue.Queue = queue.Queue()
        # Read to its end, so that the server never waits for a reader.
        threading.Thread(target=self._read, args=(found,), daemon=True).start()
        try:
            self.url = found.get(timeout=START_S)
        except queue.Empty:
            self.url = None
        if self.url is None:
            self.process.kill()
            raise RuntimeError(f"{' '.join(command)} did not start: {' / '.join(self.lines[-3:]) or 'it said nothing'}")

    def _read(self, found: queue.Queue) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            listening = re.search(r"listening on (http://\S+)", line)
            if listening:
                found.put(listening[1])
        found.put(None)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
