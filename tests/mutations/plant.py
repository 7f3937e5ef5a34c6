"""What a mutation is, and how it finds its place in a tree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".py", ".cpp", ".hpp")


class BrokenError(Exception):
    """A mutation that says nothing about the tests: its text or its tests are not there, or it does not compile."""


@dataclass(frozen=True)
class Mutation:
    """One mistake, and the tests that ought to notice it.

    Attributes:
        name: Of the mistake, as a list shows it.
        kind: What sort of mistake it is.
        old: Text that stands once in the package or its benchmarks. Any run of blanks in it stands for any other, line
            ends too.
        new: What takes its place.
        tests: Names of test files, each followed by `: ` and what pytest's `-k` takes, unless all of its tests are
            meant.
        instead: Further pairs of old and new text, for trees in which the first is written otherwise.
    """

    name: str
    kind: str
    old: str
    new: str
    tests: tuple[str, ...]
    instead: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Planted:
    """A file, and its text with and without the mistake."""

    path: Path
    text: str
    before: str
    line: int

    @property
    def compiled(self) -> bool:
        """Whether the mistake is in the C++ core."""
        return self.path.suffix != ".py"


def plant(mutation: Mutation, package: Path) -> Planted:
    """The one file of the package, or of its benchmarks, that holds the text of a mutation, changed.

    Raises:
        BrokenError: There is no such place, or there are several; or what comes of it is no Python.
    """
    folders = (package, package.parent / "benchmarks")
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES)
    texts = {path: path.read_text() for path in paths}
    for old, new in ((mutation.old, mutation.new), *mutation.instead):
        pattern = re.compile(r"\s+".join(map(re.escape, old.split())))
        found = [(path, match) for path, text in texts.items() for match in pattern.finditer(text)]
        if len(found) > 1:
            raise BrokenError(f"the text is there {len(found)} times")
        if found:
            path, match = found[0]
            text = texts[path][: match.start()] + new + texts[path][match.end() :]
            if path.suffix == ".py":
                _compile(text, path)
            return Planted(path, text, texts[path], texts[path].count("\n", 0, match.start()) + 1)
    raise BrokenError("the text is not there")


def _compile(text: str, path: Path) -> None:
    try:
        compile(text, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise BrokenError(f"the mistake is one of syntax ({error})") from None
