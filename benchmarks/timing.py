"""Timing a plain and a fast form against each other, and the rows of the table that come of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

COLUMNS = ("part", "size", "plain", "ours", "ratio", "exactness", "peak_memory")


@dataclass(frozen=True)
class Comparison:
    """Median seconds of both forms and what each returned last."""

    plain_seconds: float
    ours_seconds: float
    plain: Any
    ours: Any

    def row(self, part: str, size: str, exactness: str) -> dict[str, Any]:
        """The comparison as a row of the benchmark table."""
        return time_row(part, size, self.plain_seconds, self.ours_seconds, exactness)


def compare(plain: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> Comparison:
    """Run both forms in turn, so that both see the same load, after one run of ours to warm up."""
    ours()
    plain_runs, ours_runs = [], []
    for _ in range(repeats):
        seconds, plain_result = timed(plain)
        plain_runs.append(seconds)
        seconds, ours_result = timed(ours)
        ours_runs.append(seconds)
    return Comparison(median(plain_runs), median(ours_runs), plain_result, ours_result)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one run, and what it returned."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def wait_for(device: torch.device) -> None:
    """Wait until a GPU is done, so that the clock sees the work."""
    if device.type == "cuda":
        import torch  # slow to import, and run_all.py, which wants the columns, needs none of it

        torch.cuda.synchronize(device)


def table_row(part: str, size: str, **cells: Any) -> dict[str, Any]:
    """A row of the table; columns without a cell are empty."""
    return dict.fromkeys(COLUMNS) | {"part": part, "size": size} | cells


def time_row(part: str, size: str, plain: float, ours: float, exactness: str) -> dict[str, Any]:
    """A row of two times in seconds."""
    times = {"plain": _readable(plain), "ours": _readable(ours), "ratio": round(plain / ours, 1)}
    return table_row(part, size, **times, exactness=exactness)


def _readable(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
