"""Promises of the Grafana dashboard: it shows only what the server tells."""

import json
import re
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/anysplit.json").read_text())
SOURCES = "".join(path.read_text() for path in sorted((ROOT / "crates/server/src/metrics").glob("*.rs")))
# What OpenMetrics adds to the names of counters and histograms.
ADDED = re.compile(r"_(bucket|sum|count)$")


def panels() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def metrics(expression: str) -> list[str]:
    return re.findall(r"(?:anysplit:)?(\w+)\{", expression)


def is_told(name: str) -> bool:
    """Whether the server's sources have a metric of this name, as Prometheus stores it."""
    names = {name, ADDED.sub("", name), name.removesuffix("_total")}
    return any(f'"{known}"' in SOURCES or f'"anysplit:{known}"' in SOURCES for known in names)


class Dashboard(unittest.TestCase):
    def test_every_metric_is_one_that_the_server_tells(self) -> None:
        names = [name for expression in expressions() for name in metrics(expression)]
        self.assertGreater(len(set(names)), 15)
        self.assertEqual([name for name in names if not is_told(name)], [])
        self.assertFalse(is_told("num_requests_swapped"))

    def test_every_label_is_one_that_the_server_or_prometheus_gives(self) -> None:
        given = {"le", "instance"} | set(re.findall(r"finished_reason|model_name|rank|kind|status|handler", SOURCES))
        for expression in expressions():
            used = re.findall(r'(\w+)(?:=~|!=|=)"', expression) + re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression)))
            self.assertEqual(set(used) - given, set(), expression)

    def test_every_expression_is_balanced_and_keeps_to_what_was_selected(self) -> None:
        for expression in expressions():
            for pair in ("()", "{}", "[]"):
                self.assertEqual(expression.count(pair[0]), expression.count(pair[1]), expression)
            selected = expression.count('{model_name=~"$model_name", instance=~"$instance"')
            self.assertEqual(selected, len(metrics(expression)), expression)

    def test_panels_have_own_numbers_units_and_places(self) -> None:
        self.assertEqual(len({panel["id"] for panel in DASHBOARD["panels"]}), len(DASHBOARD["panels"]))
        taken = set()
        for panel in DASHBOARD["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken or at["x"] + at["w"] > 24, panel["title"])
            taken |= cells
        for panel in panels():
            self.assertTrue(panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"])


if __name__ == "__main__":
    unittest.main()
