"""Promises of what is computed from measurements, and drawn of it."""

import unittest
import xml.etree.ElementTree as ElementTree

import bench_check
import compare_servers
import speed_picture
from compare.loads import gaps
from compare.results import rows, table
from compare.shapes import SHAPES
from script import Failed


def sample(engine: str, rate: float, fraction: float, split: str = "1x2") -> dict:
    found = {"engine": engine, "flavour": "native", "format": "q8_0", "what": "decode", "tokens_per_s": rate}
    found |= {"split": split} if engine == "anysplit" else {}
    return found | {"fraction": fraction, "read_gb_s": 30.0, "fma_gflop_s": 200.0, "peak_rss_bytes": 1 << 30}


BOTH = [sample("anysplit", r, r / 40) for r in (19, 30, 21)] + [sample("llama.cpp", r, r / 42) for r in (14, 10, 12)]

FOUND = {
    "machine": {"processor": "a processor of R&D <1>", "features": ["avx2"]},
    "shape": "1b",
    "threads": 2,
    "prompt": 64,
    "gen": 24,
    "batch_prompt": 32,
    "samples": BOTH,
}


class Results(unittest.TestCase):
    def test_a_row_has_medians_spreads_and_the_ratio_of_the_medians(self):
        (row,) = rows(BOTH)
        self.assertEqual((row["anysplit"]["tokens_per_s"], row["anysplit"]["min"], row["anysplit"]["max"]), (21, 19, 30))
        self.assertAlmostEqual(row["ratio"], 21 / 12)
        self.assertAlmostEqual(row["ratio_of_fractions"], (21 / 40) / (12 / 42))

    def test_every_split_is_compared_with_the_same_runs_of_the_peer(self):
        found = rows([*BOTH, sample("anysplit", 24, 0.6, "2x1")])
        self.assertEqual([(row["split"], row["ratio"]) for row in found], [("1x2", 21 / 12), ("2x1", 2.0)])
        self.assertIn("decode, 2x1", table(found))

    def test_what_was_not_measured_is_a_dash(self):
        text = table(rows([sample("llama.cpp", 12, 0.5)]))
        self.assertIn("| native | Q8_0 | decode | – | – | 12.0 (12.0–12.0) | 50 % | – | – |", text)

    def test_the_1b_shape_has_the_weights_that_its_name_says(self):
        shape = SHAPES["1b"]
        self.assertEqual(shape.layer_weights + shape.hidden * shape.vocab, 1_235_746_816)
        self.assertAlmostEqual(shape.decode_flops(0) / 1e9, 2.47, places=2)


class Servers(unittest.TestCase):
    def test_gaps_are_those_before_a_long_prompt_and_those_that_overlap_it(self):
        streams = {"start_times": [0.0, 1.0], "ttfts": [0.5, 0.5], "itls": [[0.1] * 30 + [0.3] * 5 + [0.1] * 9, [0.1] * 20 + [0.3] * 5]}
        # It comes at 3.5 s and has its token at 4.9 s.
        found = gaps({key: [*value, last] for (key, value), last in zip(streams.items(), [3.5, 1.4, []])})
        self.assertAlmostEqual(found["usual_ms"], 100)
        self.assertAlmostEqual(found["beside_ms"], 300)
        self.assertAlmostEqual(found["p99_by_usual"], 3)
        self.assertEqual(found["long_ttft_s"], 1.4)

    def test_streams_that_do_not_run_beside_all_of_a_long_prompt_are_no_result(self):
        lasting, brief = [0.1] * 60, [0.1] * 30
        for itls, starts, said in [
            ([lasting, brief], [0.0, 1.0, 3.5], "was over before"),
            ([lasting, []], [0.0, 1.0, 3.5], "was over before"),
            ([lasting, lasting], [0.0, 3.2, 3.5], "before all streams ran"),
            ([[9.0], [9.0]], [0.0, 1.0, 3.5], "before all streams ran"),
        ]:
            with self.assertRaisesRegex(Failed, said):
                gaps({"start_times": starts, "ttfts": [0.5, 0.5, 1.4], "itls": [*itls, []]})

    def test_the_table_has_the_ratio_of_medians_where_both_ran(self):
        ours = [{"what": "alone", "engine": "anysplit", "round": n, "rate": rate} for n, rate in enumerate([30, 10, 20])]
        theirs = [{"what": "alone", "engine": "llama-server", "round": 0, "rate": 16}]
        self.assertIn("| alone | rate | 20 (10–30) | 16 (16–16) | 1.25 |", compare_servers.table(ours + theirs))
        self.assertIn("| alone | rate | 20 (10–30) | – | – |", compare_servers.table(ours))


class Picture(unittest.TestCase):
    def test_it_has_a_bar_and_a_limit_for_each_engine(self):
        picture = ElementTree.fromstring(speed_picture.draw(FOUND, FOUND, "native"))
        shapes = [(part.tag.split("}")[1], part.get("class")) for part in picture]
        # One of each is the legend's.
        for kind in [("rect", "ours"), ("rect", "theirs")]:
            self.assertEqual(shapes.count(kind), 2)
        self.assertEqual(shapes.count(("line", "limit")), 3)

    def test_a_title_says_the_length_of_the_runs_below_it(self):
        prefill = FOUND | {"prompt": 512, "samples": [sample | {"what": "prefill"} for sample in BOTH]}
        picture = speed_picture.draw(FOUND, prefill, "native")
        self.assertIn("Decode behind 64 tokens", picture)
        self.assertIn("Prefill of 512 tokens", picture)
        self.assertNotIn("Prefill", speed_picture.draw(FOUND, FOUND, "native"))


class Check(unittest.TestCase):
    BASELINE = {"a": {"fraction": 0.5}, "b": {"fraction": 0.8}}

    def test_a_row_is_worse_beyond_the_tolerance_or_if_it_is_gone(self):
        worse = lambda **found: bench_check.worse(self.BASELINE, {k: {"fraction": v} for k, v in found.items()}, 0.1)
        self.assertEqual(worse(a=0.46, b=0.9), [])
        self.assertEqual(worse(a=0.44, b=0.9), ["a"])
        self.assertEqual(worse(b=0.8), ["a"])


if __name__ == "__main__":
    unittest.main()
