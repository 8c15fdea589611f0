"""What the scripts here share: a line instead of a traceback, and files that fail before the work, not after it."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Callable, NoReturn

ROOT = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """What went wrong, in a line."""


class Misused(Failed):
    """What could not have worked with these options and files, so that nothing was done."""


class Unavailable(Failed):
    """What is needed and can't be had here. Who runs all checks skips one that says so."""

    STATUS = 77


class Arguments(argparse.ArgumentParser):
    """A parser that says what is wrong in a line."""

    def __init__(self, about: str):
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise Misused(f"{message}; see --help")


def end(main: Callable[[], int], failed: int = 1) -> NoReturn:
    """Runs a script, and exits with the status that `main` gives, with 2 if it was misused, with that of what is unavailable, or
    with `failed`."""
    try:
        sys.exit(main())
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, Misused) else Unavailable.STATUS if isinstance(error, Unavailable) else failed)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(failed)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def positive(text: str) -> int:
    """An argument."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def some(known) -> Callable[[str], list[str]]:
    """An argument: a list of what is known."""

    def parse(text: str) -> list[str]:
        for part in text.split(","):
            if part not in known:
                raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(known)}")
        return text.split(",")

    return parse


def read_json(path: Path):
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise Misused(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Misused(f"{path} is not JSON: {error}") from error


class Output:
    """A file that will be written: whole, or it stays as it was. To make one fails if writing would."""

    def __init__(self, path: Path):
        self.path = path
        # A link stays one. A device is refused: renaming would replace it.
        self.target = Path(os.path.realpath(path))
        self.part = self.target.with_name(f".{self.target.name}.{os.getpid()}.part")
        try:
            if self.target.exists() and not self.target.is_file():
                raise Misused(f"{path} is no file, and so cannot be written; name another")
            self._write_part("")
            self.part.unlink()
        except OSError as error:
            raise Misused(f"{path} cannot be written: {error.strerror}") from error

    def write(self, text: str) -> None:
        try:
            self._write_part(text)
            self.part.replace(self.target)
        except OSError as error:
            raise Failed(f"{self.path} cannot be written: {error.strerror}") from error
        finally:
            self.part.unlink(missing_ok=True)

    def _write_part(self, text: str) -> None:
        self.part.write_text(text, encoding="utf-8")


def make_folder(path: Path) -> Path:
    """Makes a folder that can be written to, unless it is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misused(f"{path} cannot be made a folder: {error.strerror}") from error
    Output(path / "probe")
    return path
