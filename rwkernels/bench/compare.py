"""Two runs row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rwkernels.bench.results import Row, Run
from rwkernels.bench.summary import number, seconds_text


@dataclass(frozen=True)
class Change:
    """A row that two runs have in common.

    The verdict is on the ratio to the peer of the same run where there is one, which a busy or another machine changes
    least, else on the time; a change is one if the quartiles of the two do not overlap and it is 10 % or more.
    """

    before: Row
    now: Row

    @property
    def time(self) -> float:
        """Time now over time before."""
        return self.now.median / self.before.median

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer now, over that before; None for the peer itself."""
        same = self.now.peer == self.before.peer != self.now.contender
        if not same or self.now.ratio is None or not self.before.ratio:
            return None
        return self.now.ratio / self.before.ratio

    @property
    def verdict(self) -> str:
        """One of "slower", "faster" and "same"."""
        ratio = self.ratio
        if ratio is None:
            change, ends = 1 / self.time, [*self.before.quartiles, *self.now.quartiles]
        else:
            kept = (self.before.ratio_low, self.before.ratio_high, self.now.ratio_low, self.now.ratio_high)
            change, ends = ratio, [math.nan if end is None else end for end in kept]
        a, b, c, d = ends
        apart = b < c or d < a  # never where one is not known
        if not apart or 1 / 1.1 < change < 1.1:
            return "same"
        return "faster" if change > 1 else "slower"

    def cells(self) -> list[str]:
        """For a table."""
        ratio = self.ratio
        return [
            self.now.name,
            seconds_text(self.before.median),
            seconds_text(self.now.median),
            f"{self.time:.2f}×",
            "" if ratio is None or self.before.ratio is None else f"{number(self.before.ratio)}×",
            "" if ratio is None or self.now.ratio is None else f"{number(self.now.ratio)}×",
            "" if ratio is None else f"{ratio:.2f} {self.verdict if self.verdict != 'same' else ''}".strip(),
        ]


def changes(before: Run, now: Run, ours_only: bool = True) -> Sequence[Change]:
    """The rows of this package that both runs have, slower ones first. Runs of different scales share few."""
    earlier = {row.name: row for row in before.rows if row.ranked}
    found = [
        Change(earlier[row.name], row)
        for row in now.rows
        if row.ranked and row.name in earlier and (row.ours or not ours_only)
    ]
    order = {"slower": 0, "faster": 1, "same": 2}
    return sorted(found, key=lambda change: order[change.verdict])
