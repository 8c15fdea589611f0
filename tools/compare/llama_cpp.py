"""llama.cpp: its sources, its programs, its files, its measurements."""

import json
import os
import platform
import shutil
import tarfile
import venv
from pathlib import Path
from subprocess import CalledProcessError

from compare.steps import measure, run, say
from script import Failed, Misused, make_folder

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anysplit" / "compare"
# Of llama-cpp-python.
VERSION = "0.3.36"
# What the virtual environment has: a build system, and what writes weights.
PACKAGES = ["cmake", "ninja", "numpy", "gguf"]
PROGRAMS = ["llama-bench", "llama-batched-bench", "llama-quantize"]
SERVER = "llama-server"
# Only programs that are named, with what llama.cpp chooses by default otherwise.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
X86 = ["GGML_SSE42", "GGML_AVX", "GGML_AVX2", "GGML_BMI2", "GGML_FMA", "GGML_F16C"]
FLAVOURS = {
    "native": {"GGML_NATIVE": "ON"},
    "avx2": {"GGML_NATIVE": "OFF"} | dict.fromkeys(X86, "ON"),
}


class LlamaCpp:
    """In a cache folder: everything is made once."""

    def __init__(self, cache: Path, version: str):
        self.cache, self.version = cache, version
        self.logs = make_folder(cache / "logs")

    def python(self) -> Path:
        """The virtual environment's Python."""
        home = self.cache / "venv"
        if not (home / "ready").exists():
            say(f"making a virtual environment in {home}")
            try:
                venv.create(home, clear=True, with_pip=True)
            except CalledProcessError as error:
                raise Failed(f"{home}: this Python makes no virtual environments ({error}); is its venv installed?") from error
            pip = [home / "bin/python", "-m", "pip", "install", "--disable-pip-version-check"]
            run("installing " + ", ".join(PACKAGES), pip + PACKAGES, self.logs / "pip.log")
            (home / "ready").touch()
        return home / "bin/python"

    def sources(self) -> Path:
        """What llama-cpp-python's source distribution carries of llama.cpp."""
        home = self.cache / f"llama.cpp-{self.version}"
        if home.exists():
            return home
        download = self.cache / "download"
        package = f"llama-cpp-python=={self.version}"
        shutil.rmtree(download, ignore_errors=True)
        command = [self.python(), "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "llama-cpp-python", "-d", download, package]
        run(f"fetching the sources of {package}", command, self.logs / "download.log")
        archive = next(download.glob("*.tar.gz"), None)
        if archive is None:
            raise Failed(f"the package index has no source distribution of {package}; try --llama-cpp-python VERSION")
        part = self.cache / "unpacking"
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(archive) as tar:
            inside = [m for m in tar.getmembers() if "/vendor/llama.cpp/" in m.name]
            tar.extractall(part, members=inside, filter="data")
        found = next(part.glob("*/vendor/llama.cpp"), None)
        if found is None:
            raise Failed(f"{archive.name} carries no llama.cpp; try another --llama-cpp-python VERSION")
        found.rename(home)
        shutil.rmtree(part)
        shutil.rmtree(download)
        return home

    def programs(self, flavour: str, names: list[str] = PROGRAMS) -> Path:
        """The folder of programs built for a flavour."""
        home = self.cache / f"bin-{self.version}" / flavour
        if all((home / program).exists() for program in names):
            return home
        if flavour != "native" and platform.machine() not in ("x86_64", "AMD64"):
            raise Misused(f"--flavours {flavour} is of x86-64 processors; give native")
        tools = self.python().parent
        sources, build = self.sources(), self.cache / "build"
        path = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        # One folder for all flavours: only the kernels differ, and are compiled again.
        defined = dict.fromkeys(X86, "OFF") | OPTIONS | FLAVOURS[flavour]
        command = [tools / "cmake", "-S", sources, "-B", build, "-G", "Ninja"]
        command += [f"-D{name}={value}" for name, value in defined.items()]
        run(f"configuring llama.cpp ({flavour})", command, self.logs / f"cmake-{flavour}.log", env=path)
        command = [tools / "cmake", "--build", build, "--target", *names]
        run(
            f"building llama.cpp ({flavour}); the first time it takes minutes",
            command,
            self.logs / f"build-{flavour}.log",
            env=path,
        )
        home.mkdir(parents=True, exist_ok=True)
        for program in names:
            shutil.copy2(build / "bin" / program, home)
        return home

    def checkpoint(self, shape: str) -> Path:
        """A folder with random weights in bfloat16."""
        return self._weights(shape)[0]

    def model(self, shape: str, format: str, flavour: str) -> Path:
        """The same weights as a GGUF file."""
        base = self._weights(shape)[1]
        path = base.with_name(f"{shape}-{format}.gguf")
        if not path.exists():
            part = path.with_suffix(".part")
            command = [self.programs(flavour) / "llama-quantize", base, part, format.upper()]
            run(f"converting {shape} to {format.upper()}", command, self.logs / f"quantize-{shape}-{format}.log")
            part.rename(path)
        return path

    def _weights(self, shape: str) -> tuple[Path, Path]:
        folder, path = self.cache / "weights" / shape, self.cache / "gguf" / f"{shape}-bf16.gguf"
        if not ((folder / "config.json").exists() and path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            command = [self.python(), "-m", "compare.weights", shape, folder, path]
            tools = Path(__file__).parent.parent
            run(f"making random weights of {shape}", command, self.logs / f"weights-{shape}.log", cwd=tools)
        return folder, path

    def bench(self, flavour: str, model: Path, threads: int, prompt: int, gen: int, depth: int) -> dict:
        """Prefill of `prompt` tokens, or decode of `gen` tokens behind `depth` others: llama-bench, once."""
        command = [self.programs(flavour) / "llama-bench", "-m", model, "-t", threads, "-r", 1, "-o", "jsonl"]
        out, rss = self._measure(command + ["-p", prompt, "-n", gen, "-d", depth])
        return {"tokens_per_s": _number(command, out, "avg_ts"), "peak_rss_bytes": rss}

    def batched_bench(self, flavour: str, model: Path, threads: int, prompt: int, gen: int, batch: int) -> dict:
        """Decode of several sequences at a time: llama-batched-bench, once."""
        command = [self.programs(flavour) / "llama-batched-bench", "-m", model, "-t", threads, "-tb", threads]
        command += ["-c", batch * (prompt + gen), "-npp", prompt, "-ntg", gen, "-npl", batch]
        out, rss = self._measure(command + ["--output-format", "jsonl"])
        return {"tokens_per_s": _number(command, out, "speed_tg"), "peak_rss_bytes": rss}

    def _measure(self, command: list) -> tuple[str, int]:
        status, out, err, rss = measure(command)
        if status != 0:
            lines = [line for line in (err + out).splitlines() if line.strip()]
            raise Failed(f"{Path(command[0]).name}: status {status}: {lines[-1] if lines else 'it said nothing'}")
        return out, rss


def _number(command: list, out: str, key: str) -> float:
    """Of the one line of JSON that a benchmark prints."""
    try:
        return json.loads(next(line for line in out.splitlines() if line.startswith("{")))[key]
    except (StopIteration, ValueError, KeyError) as error:
        raise Failed(f"{Path(command[0]).name}: it prints no {key}; try another --llama-cpp-python VERSION") from error


def weight_bytes(python: Path, model: Path) -> int:
    """Bytes of a GGUF file's tensors."""
    code = "import sys, gguf; print(sum(int(t.n_bytes) for t in gguf.GGUFReader(sys.argv[1]).tensors))"
    status, out, err, _ = measure([python, "-c", code, model])
    if status != 0:
        raise Failed(f"{model}: {(err.strip().splitlines() or ['cannot be read'])[-1]}")
    return int(out)
