"""Promises of the page at / that its sources show: it loads nothing from elsewhere, and text is never markup."""

import re
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "crates/server/page"
EMBEDDED = set(re.findall(r'\("([^"]+)", "[^"]+", include_bytes!', (ROOT / "crates/server/src/routes/page.rs").read_text()))
FILES = {path.name: path.read_text() for path in PAGE.iterdir()}


class Page(unittest.TestCase):
    def test_every_file_is_in_the_binary_and_every_file_that_one_names_is_there(self) -> None:
        self.assertEqual(EMBEDDED, set(FILES))
        for name, text in FILES.items():
            named = re.findall(r'from "\./([\w.]+)"', text) + re.findall(r'(?:src|href)="/?page/([^"]+)"', text)
            self.assertEqual(set(named) - EMBEDDED, set(), name)

    def test_nothing_is_loaded_from_elsewhere(self) -> None:
        for name, text in FILES.items():
            # A namespace is a name, not an address.
            addresses = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"')]*", text)) - {"http://www.w3.org/2000/svg"}
            self.assertEqual(addresses, set(), name)
            self.assertNotRegex(text, r"@import|url\(", name)

    def test_text_never_becomes_markup_or_code(self) -> None:
        for name, text in FILES.items():
            self.assertNotRegex(text, r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", name)

    def test_the_policy_has_nothing_to_refuse(self) -> None:
        for name in (name for name in FILES if name.endswith(".html")):
            self.assertNotRegex(FILES[name], r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)", name)


if __name__ == "__main__":
    unittest.main()
