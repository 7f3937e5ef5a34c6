"""Plants mistakes into a copy of the working tree, one at a time, and looks whether the tests notice.

    python tests/mutations                      # all of them: half an hour on two cores
    python tests/mutations maps losses          # those of two areas
    python tests/mutations core-border-of-rows  # one
    python tests/mutations --list

A mistake that no test notices is shown as SURVIVED, and makes the command end with 1: a test is missing, or too weak.
Where the text that a mistake replaces is not there, or its tests are not, it is shown as broken, and the command ends
with 2.

Every mistake names its own tests, and only these run, up to the first that fails. A test that hangs or that takes the
process down has noticed too. Mistakes in C++ are compiled in one build folder, which needs CMake, a compiler and
nanobind, and for one instruction set; all others run with the core of the installed package. First of all, the chosen
tests have to pass without any mistake.

The working tree itself is not touched. The mistakes are listed in `planted/`, by area.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from plant import BrokenError, Mutation, Planted, plant
from planted import AREAS
from tree import PACKAGE, Tree, checkout, installed_core

NOTICED = {"failed": "caught", "crashed": "caught (crash)", "timeout": "caught (timeout)", "passed": "SURVIVED"}
_LONGEST_BASELINE = 1800.0  # seconds, of a file


@dataclass(frozen=True)
class Case:
    """A mutation, and where it is planted."""

    area: str
    mutation: Mutation
    planted: Planted | None
    broken: str = ""


@dataclass(frozen=True)
class Verdict:
    """A line of the table."""

    area: str
    name: str
    kind: str
    place: str
    verdict: str
    seconds: float
    by: str


def arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="python tests/mutations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chosen", nargs="*", metavar="NAME", help="names of mistakes or areas (default: all)")
    parser.add_argument("--list", action="store_true", help="list the mistakes and where they would go, and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the table as JSON as well")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests without a mistake first")
    parser.add_argument("--timeout", type=float, default=240.0, metavar="SECONDS", help="of the tests of one mistake")
    parser.add_argument("--core", type=Path, metavar="FILE", help="compiled core (default: the installed package's)")
    return parser.parse_args()


def choose(wanted: Sequence[str]) -> list[tuple[str, Mutation]]:
    """The mutations of these names or areas, or all; raises `ValueError` for a name that is neither."""
    every = [(area, mutation) for area, mutations in AREAS.items() for mutation in mutations]
    names = [mutation.name for _, mutation in every]
    if len(set(names)) < len(names):
        raise ValueError(f"names: expected each once, got {sorted({n for n in names if names.count(n) > 1})}")
    unknown = set(wanted) - set(names) - set(AREAS)
    if unknown:
        raise ValueError(f"NAME: expected names or areas ({', '.join(AREAS)}), got {', '.join(sorted(unknown))}")
    return [(area, one) for area, one in every if not wanted or area in wanted or one.name in wanted]


def place(area: str, mutation: Mutation, package: Path) -> Case:
    """A mutation with its place in a package."""
    try:
        return Case(area, mutation, plant(mutation, package))
    except BrokenError as error:
        return Case(area, mutation, None, str(error))


def in_turn(cases: Iterable[Case]) -> list[Case]:
    """Those in Python first; those in C++ file by file, so that a file is compiled once for two that follow."""
    compiled = [case for case in cases if case.planted is not None and case.planted.compiled]
    others = [case for case in cases if case not in compiled]
    return others + sorted(compiled, key=lambda case: case.planted.path if case.planted else Path())


def joined(tests: Iterable[str]) -> list[str]:
    """The same tests, each file once."""
    by_file: dict[str, list[str]] = {}
    for test in tests:
        name, _, chosen = test.partition(": ")
        by_file.setdefault(name, []).append(chosen)
    return [
        name if "" in chosen else f"{name}: " + " or ".join(f"({one})" for one in dict.fromkeys(chosen))
        for name, chosen in by_file.items()
    ]


def baseline(tree: Tree, cases: Sequence[Case]) -> bool:
    """Whether the tests of all cases pass as the copy is."""
    good = True
    for test in joined(test for case in cases if case.planted for test in case.mutation.tests):
        try:
            found = tree.test([test], _LONGEST_BASELINE)
        except BrokenError as error:  # what is broken of it, its own mistakes show
            print(f"baseline  broken    {error}", flush=True)
            continue
        print(f"baseline  {found.outcome:<8} {found.seconds:6.1f} s  {test.partition(': ')[0]}", flush=True)
        if found.outcome != "passed":
            print(found.output[-4000:], file=sys.stderr)
            good = False
    return good


def judge(tree: Tree, case: Case, timeout: float) -> Verdict:
    """Plants one mistake, runs its tests, and takes it out again."""
    start = time.monotonic()
    by, where = "", ""
    if case.planted is None:
        verdict, by = "broken", case.broken
    else:
        where = f"{case.planted.path.relative_to(tree.root)}:{case.planted.line}"
        tree.write(case.planted)
        try:
            if case.planted.compiled:
                tree.place_core(tree.build_core())
            found = tree.test(case.mutation.tests, timeout)
            verdict, by = NOTICED[found.outcome], found.first
        except BrokenError as error:
            verdict, by = "broken", str(error)
        finally:
            tree.restore(case.planted)
    return Verdict(case.area, case.mutation.name, case.mutation.kind, where, verdict, time.monotonic() - start, by)


def run(cases: Sequence[Case], tree: Tree, options: argparse.Namespace) -> list[Verdict] | None:
    """The verdicts of all cases; None if the tests fail without a mistake."""
    verdicts: list[Verdict] = []
    compiled = [case for case in cases if case.planted is not None and case.planted.compiled]
    others = [case for case in cases if case not in compiled]
    for part in (others, compiled):
        if part and part is compiled:
            tree.place_core(tree.build_core())
        if part and not options.no_baseline and not baseline(tree, part):
            return None
        for case in part:
            verdicts.append(judge(tree, case, options.timeout))
            print(line(verdicts[-1]), flush=True)
    return verdicts


def line(verdict: Verdict) -> str:
    """One line of the table."""
    name = f"{verdict.area:<13}{verdict.name:<44}{verdict.kind:<22}"
    return f"{name}{verdict.verdict:<17}{verdict.seconds:6.1f} s  {verdict.by}"


def summary(verdicts: Sequence[Verdict], seconds: float) -> str:
    """The counts, and what has to be looked at."""
    survived = [one for one in verdicts if one.verdict == "SURVIVED"]
    broken = [one for one in verdicts if one.verdict == "broken"]
    caught = len(verdicts) - len(survived) - len(broken)
    lines = [f"{len(verdicts)} mistakes in {seconds / 60:.1f} minutes: {caught} caught, {len(survived)} survived, "
             f"{len(broken)} broken"]  # fmt: skip
    lines += [f"SURVIVED  {one.name} ({one.place})" for one in survived]
    lines += [f"broken    {one.name}: {one.by}" for one in broken]
    return "\n".join(lines)


def main() -> int:
    """Runs the command. 0 if all mistakes were noticed, 1 if one survived, 2 if one could not be tried."""
    options = arguments()
    try:
        chosen = choose(options.chosen)
    except ValueError as error:
        print(f"tests/mutations: {error}", file=sys.stderr)
        return 2
    if options.list:
        cases = [place(area, mutation, checkout() / PACKAGE) for area, mutation in chosen]
        for case in cases:
            found = case.planted
            where = f"{found.path.relative_to(checkout())}:{found.line}" if found else f"broken: {case.broken}"
            print(f"{case.area:<13}{case.mutation.name:<44}{case.mutation.kind:<22}{where}")
        print(f"{len(cases)} mistakes")
        return 2 if any(case.planted is None for case in cases) else 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the copy is removed then too
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rwkernels-mutations-") as folder:
        tree = Tree(Path(folder), options.core or installed_core())
        cases = in_turn([place(area, mutation, tree.package) for area, mutation in chosen])
        verdicts = run(cases, tree, options)
    if verdicts is None:
        print("tests/mutations: the tests fail without a mistake", file=sys.stderr)
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in verdicts], indent=1) + "\n")
    print(summary(verdicts, time.monotonic() - start))
    if any(one.verdict == "SURVIVED" for one in verdicts):
        return 1
    return 2 if any(one.verdict == "broken" for one in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
