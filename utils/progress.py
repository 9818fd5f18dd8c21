"""How far a piece of work is, on stderr: a bar on a terminal, elsewhere a line every tenth of the work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

LINES = 10  # that a piece of work writes where there is no terminal
BYTES = "B"  # the unit that is shown in MB (10^6 bytes)

Advance = Callable[[int], object]
Item = TypeVar("Item")


@contextmanager
def progress(
    title: str, total: int | None, unit: str = "sample", *, done: int = 0, shown: bool = True
) -> Iterator[Advance]:
    """Around work on `total` units (None: unknown), of which `done` were done before.

    Yields what is called with the number of units that are newly done.
    """
    if not shown or total == 0 or sys.stderr is None:  # None where it was closed
        yield lambda count: None
    elif sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=title, unit=unit, unit_scale=unit == BYTES) as bar:
            yield bar.update
    else:
        yield ProgressLines(title, total, unit, done).advance


class ProgressLines:
    """Writes a line whenever another tenth of the work is done; none where nobody knows how much it is."""

    def __init__(self, title: str, total: int | None, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.done_before = done
        self.start = time.monotonic()

    def advance(self, count: int) -> None:
        """`count` units are newly done."""
        tenths_before = self._tenths()
        self.done += count
        if self._tenths() > tenths_before:
            print(self._line(), file=sys.stderr, flush=True)

    def _tenths(self) -> int:
        return self.done * LINES // self.total if self.total else 0

    def _line(self) -> str:
        total = self.total or 0
        seconds = time.monotonic() - self.start
        left = seconds * (total - self.done) / max(1, self.done - self.done_before)
        ending = f"{left:.0f} s left" if self.done < total else f"took {seconds:.0f} s"
        return f"{self.title}: {self._amounts(total)}, {ending}"

    def _amounts(self, total: int) -> str:
        if self.unit == BYTES:
            return f"{self.done / 1e6:.1f} of {total / 1e6:.1f} MB"
        plural = {"batch": "batches"}.get(self.unit, f"{self.unit}s")
        return f"{self.done} of {total} {self.unit if total == 1 else plural}"


def tracked(
    outcomes: Iterable[Item], total: int, title: str, unit: str = "sample", *, shown: bool = True
) -> Iterator[Item]:
    """The outcomes of `total` pieces of work as they come, with progress."""
    with progress(title, total, unit, shown=shown) as advance:
        for outcome in outcomes:
            advance(1)
            yield outcome
