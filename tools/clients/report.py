"""One line for each check, and what they come to."""

import sys
import traceback
from typing import Callable


class Checks:
    """The checks of a client. A check is a function that raises if its promise, which is its name, does not hold."""

    def __init__(self, client: str):
        self.client = client
        self.failed = 0

    def run(self, promise: Callable, *args) -> None:
        """Runs a check and prints its line."""
        name = f"{self.client}: {promise.__name__.replace('_', ' ')}"
        try:
            promise(*args)
        except Exception as error:
            self.failed += 1
            at = traceback.extract_tb(error.__traceback__)
            here = next((frame for frame in reversed(at) if frame.filename == promise.__code__.co_filename), at[-1])
            said = " ".join(str(error).split())[:400] or here.line
            print(f"FAILED  {name}: {type(error).__name__} in line {here.lineno}: {said}", flush=True)
        else:
            print(f"ok      {name}", flush=True)

    def end(self) -> None:
        """Ends the process: with 1 if a check failed."""
        sys.exit(1 if self.failed else 0)


def equal(found, expected) -> None:
    """Raises with both values if they differ."""
    if found != expected:
        raise AssertionError(f"{found!r:.180} is not {expected!r:.180}")
