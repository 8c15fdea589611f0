"""What cannot work ends in one line with status 2, before anything is measured, and leaves files as they were."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tests.fake import FRACTION, fake_anysplit, fake_llama_cpp
from tests.test_results import BOTH, FOUND

TOOLS = Path(__file__).resolve().parent.parent


class Scripts(unittest.TestCase):
    """Runs a copy of the scripts, in a folder that is not the repository's root, with programs that measure nothing."""

    def setUp(self):
        there = tempfile.TemporaryDirectory()
        self.addCleanup(there.cleanup)
        root = Path(there.name)
        shutil.copytree(TOOLS, root / "tools", ignore=shutil.ignore_patterns("__pycache__", "golden", "demo_model"))
        self.tools, self.here, self.calls = root / "tools", root / "here", root / "calls"
        self.baselines = self.tools / "bench_baselines"
        self.here.mkdir()
        self.binary = fake_anysplit(root / "target/release/anysplit", self.calls)
        self.cache = fake_llama_cpp(root / "cache")

    def run_script(self, name: str, *arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, self.tools / name, *arguments]
        return subprocess.run(list(map(str, command)), cwd=self.here, capture_output=True, text=True)

    def compare(self, *arguments) -> subprocess.CompletedProcess:
        few = ["--shape", "s", "--formats", "bf16", "--threads", 2, "--repeats", 1, "--cache", self.cache]
        return self.run_script("compare_llama_cpp.py", *few, *arguments)

    def refused(self, done: subprocess.CompletedProcess, *words: str) -> None:
        lines = done.stderr.splitlines()
        self.assertEqual((done.returncode, done.stdout, len(lines)), (2, "", 1), done.stderr)
        self.assertEqual(lines[0].count("error:"), 1)
        for word in words:
            self.assertIn(word, lines[0])
        self.assertFalse(self.measured())

    def measured(self) -> list[str]:
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [call for call in calls if call.startswith("bench decode")]


class BenchCheck(Scripts):
    def baseline(self) -> Path:
        """The file of this machine."""
        self.assertEqual(self.run_script("bench_check.py", "--update").returncode, 0)
        self.calls.unlink()
        (path,) = self.baselines.glob("*-fake.json")
        return path

    def test_the_same_speed_passes_and_a_lower_one_fails(self):
        path = self.baseline()
        same = self.run_script("bench_check.py")
        self.assertEqual(same.returncode, 0, same.stderr)
        self.assertRegex(same.stdout, r"^(\d+) of \1 rows are within")
        found = json.loads(path.read_text())
        found["rows"] = {name: row | {"fraction": 2 * FRACTION} for name, row in found["rows"].items()}
        path.write_text(json.dumps(found))
        slower = self.run_script("bench_check.py")
        self.assertEqual((slower.returncode, slower.stdout.splitlines()[-1].split()[0]), (1, "0"))

    def test_a_row_that_nothing_is_stored_for_is_no_success(self):
        self.refused(self.run_script("bench_check.py"), "has nothing for 'bfloat16, 1 x ", "--update")
        self.baseline()
        self.refused(self.run_script("bench_check.py", "--quantizations", "fp8"), "has nothing for 'fp8")

    def test_a_damaged_baseline_is_found_before_measuring(self):
        path = self.baseline()
        for text in ["", "[]", "{}", '{"rows": {"a": {}}}', '{"rows": {"a": {"fraction": NaN}}}', "\0\xff"]:
            path.write_text(text, encoding="latin-1")
            self.refused(self.run_script("bench_check.py"), path.name)
            self.refused(self.run_script("bench_check.py", "--update"), path.name)

    def test_a_baseline_that_cannot_be_written_is_found_before_measuring(self):
        path = self.baseline()
        path.unlink()
        path.mkdir()
        self.refused(self.run_script("bench_check.py", "--update"), path.name)

    def test_options_that_cannot_work_are_refused(self):
        for value in ["0", "1", "-0.1", "nan", "inf", "x"]:
            self.refused(self.run_script("bench_check.py", f"--tolerance={value}"), "between 0 and 1")
        self.refused(self.run_script("bench_check.py", "--repeats", 0), "--repeats")
        self.refused(self.run_script("bench_check.py", "--quantizations", "int3"), "int3")
        for other in ["/bin/true", "/bin/echo", "/bin/false", "/nope", "."]:
            self.refused(self.run_script("bench_check.py", "--anysplit", other))

    def test_what_anysplit_says_is_said_once(self):
        self.baseline()
        self.binary.with_name("fails").touch()
        done = self.run_script("bench_check.py")
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stderr.splitlines()[-1], "error: anysplit bench decode: it broke")


class Compare(Scripts):
    def test_what_is_appended_has_the_same_settings(self):
        done = self.compare("--json", "a.json")
        self.assertEqual(done.returncode, 0, done.stderr)
        before = (self.here / "a.json").read_bytes()
        self.calls.unlink()
        others = ["--prompt-len", "64"], ["--gen-len", "8"], ["--threads", "1"], ["--shape", "1b"]
        for other in others:
            self.refused(self.compare("--json", "a.json", "--append", *other), "a.json")
        self.assertEqual((self.here / "a.json").read_bytes(), before)
        done = self.compare("--json", "a.json", "--append")
        self.assertEqual(done.returncode, 0, done.stderr)
        runs = {row[engine]["runs"] for row in json.loads((self.here / "a.json").read_text())["rows"] for engine in ("anysplit", "llama.cpp")}
        self.assertEqual(runs, {2})
        self.assertEqual([path.name for path in self.here.iterdir()], ["a.json"])

    def test_files_that_cannot_be_used_are_found_before_measuring(self):
        (self.here / "folder").mkdir()
        for path in ["folder", "nowhere/a.json", "/dev/null", "x" * 300]:
            self.refused(self.compare("--json", path), path)
        self.refused(self.compare("--append"), "--json")
        for text in ["", "{}", '{"samples": [{}]}', json.dumps(FOUND | {"samples": [{}]})]:
            (self.here / "damaged.json").write_text(text)
            self.refused(self.compare("--json", "damaged.json", "--append"), "damaged.json")
        self.refused(self.compare("--cache", self.binary / "nope"), "nope")
        self.refused(self.compare("--anysplit", "/bin/true"), "/bin/true")

    def test_options_that_cannot_work_are_refused(self):
        for option in ["--splits=foo", "--splits=0x1", "--splits=", "--gen-len=1", "--prompt-len=100000", "--gen-len=8192",
                       "--formats=q5", "--batches=0", "--what=", "--nope"]:
            self.refused(self.compare(option))

    def test_what_fails_is_left_out_and_the_rest_is_kept(self):
        self.binary.with_name("fails").touch()
        done = self.compare("--json", "a.json", "--repeats", 2)
        self.assertEqual(done.returncode, 1)
        self.assertIn("-- left out: anysplit bench decode: it broke", done.stderr.splitlines())
        self.assertTrue(done.stderr.splitlines()[-1].startswith("error: 2 of the measurements failed"))
        self.assertEqual(len(self.measured()), 2)
        engines = {sample["engine"] for sample in json.loads((self.here / "a.json").read_text())["samples"]}
        self.assertEqual(engines, {"llama.cpp"})
        # Where nothing is left, there is no empty table.
        done = self.compare("--json", "b.json", "--only", "anysplit")
        self.assertEqual((done.returncode, done.stdout, (self.here / "b.json").exists()), (1, "", False))


class CompareServers(Scripts):
    def compare(self, *arguments) -> subprocess.CompletedProcess:
        return self.run_script("compare_servers.py", "--shape", "s", "--repeats", 1, "--cache", self.cache, *arguments)

    def test_options_and_files_that_cannot_work_are_refused(self):
        for option in ["--what=nothing", "--what=", "--repeats=0", "--only=vllm", "--nope"]:
            self.refused(self.compare(option))
        self.refused(self.compare("--json", "nowhere/a.json"), "nowhere/a.json")
        self.refused(self.compare("--anysplit", "/bin/true"), "/bin/true")

    def test_a_server_that_does_not_start_is_left_out_and_says_why(self):
        self.binary.with_name("fails").touch()
        done = self.compare("--json", "a.json", "--only", "anysplit", "--what", "alone,prefix")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        said = [line for line in done.stderr.splitlines() if line.startswith("-- left out: ")]
        self.assertEqual(len(said), 2)
        self.assertIn("anysplit does not start: error: it broke", said[0])
        self.assertEqual(done.stderr.splitlines()[-1], "error: 2 runs failed; lines above say why")
        self.assertEqual(json.loads((self.here / "a.json").read_text())["runs"], [])


class Picture(Scripts):
    def test_files_that_cannot_be_drawn_are_refused(self):
        good = self.here / "good.json"
        good.write_text(json.dumps(FOUND))
        self.assertEqual(self.run_script("speed_picture.py", good, "x.svg").returncode, 0)
        self.refused(self.run_script("speed_picture.py", "/nonexistent", "y.svg"), "/nonexistent")
        self.refused(self.run_script("speed_picture.py", good, "nowhere/y.svg"), "nowhere/y.svg")
        self.refused(self.run_script("speed_picture.py", good, "y.svg", "--flavour", "avx2"), "native")
        for found in [{}, [], {"rows": []}, FOUND | {"samples": [BOTH[0] | {"fraction": 0}]}, FOUND | {"prompt": "x"}]:
            (self.here / "bad.json").write_text(json.dumps(found))
            self.refused(self.run_script("speed_picture.py", "bad.json", "y.svg"), "bad.json")
        (self.here / "other.json").write_text(json.dumps(FOUND | {"threads": 1}))
        self.refused(self.run_script("speed_picture.py", good, "y.svg", "--prefill", "other.json"), "threads 1 (not 2)")
        self.assertFalse((self.here / "y.svg").exists())


class CheckTrace(Scripts):
    def test_what_is_no_trace_is_refused(self):
        self.refused(self.run_script("check_trace.py", "missing.json"), "missing.json")
        self.refused(self.run_script("check_trace.py", "."))
        for text in ["", "{}", "x", "[]", '{"traceEvents": 1}', '{"traceEvents": [null]}']:
            (self.here / "t.json").write_text(text)
            self.refused(self.run_script("check_trace.py", "t.json"), "t.json")


class Clients(Scripts):
    def test_a_name_that_is_none_and_a_binary_that_is_not_there_are_refused(self) -> None:
        self.refused(self.run_script("clients/check", "openai", "nobody"), "'nobody'", "openai", "lm_eval")
        self.refused(self.run_script("clients/check", "--binary", self.here / "none"), "none", "--binary")

    def test_what_cannot_be_installed_is_told_and_is_no_misuse(self) -> None:
        empty = {"PATH": str(self.here), "XDG_CACHE_HOME": str(self.here)}
        command = [sys.executable, self.tools / "clients/check", "--binary", self.binary, "node"]
        done = subprocess.run(list(map(str, command)), env=empty, capture_output=True, text=True)
        self.assertEqual(done.returncode, 77, done.stderr)
        self.assertRegex(done.stderr, "error: there is no npm")


class Page(Scripts):
    def test_a_browser_that_is_not_there_is_told_and_is_no_misuse(self) -> None:
        env = os.environ | {"CHROMIUM": str(self.here / "none")}
        done = subprocess.run(["bash", self.tools / "page/check"], env=env, capture_output=True, text=True)
        self.assertEqual(done.returncode, 77, done.stderr)
        self.assertRegex(done.stderr, "missing: .*/none")


class Ci(unittest.TestCase):
    def test_only_a_check_that_says_so_is_skipped(self) -> None:
        text = (TOOLS.parent / ".ci/run").read_text()
        function = re.search(r"^where_possible\(\) {$.*?^}$", text, re.MULTILINE | re.DOTALL)[0]
        for status, ends, told in [(0, 0, "0 s"), (77, 0, "skipped"), (2, 1, "failed"), (1, 1, "failed"), (127, 1, "failed")]:
            script = f"set -euo pipefail; {function}; where_possible sh -c 'exit {status}'"
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
            self.assertEqual(done.returncode, ends, status)
            self.assertIn(told, done.stdout + done.stderr)
