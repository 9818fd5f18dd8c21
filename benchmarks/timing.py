"""Timing a plain and a fast form against each other, and the row of the table that comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """Median seconds of both forms and what each returned last."""

    plain_seconds: float
    ours_seconds: float
    plain: Any
    ours: Any

    def row(self, part: str, size: str, exactness: str) -> dict[str, Any]:
        """The comparison as a row of the benchmark table."""
        return {
            "part": part,
            "size": size,
            "plain": _readable(self.plain_seconds),
            "ours": _readable(self.ours_seconds),
            "ratio": round(self.plain_seconds / self.ours_seconds, 1),
            "exactness": exactness,
            "peak_memory": None,
        }


def compare(plain: Callable[[], Any], ours: Callable[[], Any], repeats: int) -> Comparison:
    """Run both forms in turn, so that both see the same load, after one run of ours to warm up."""
    ours()
    plain_runs, ours_runs = [], []
    for _ in range(repeats):
        seconds, plain_result = _timed(plain)
        plain_runs.append(seconds)
        seconds, ours_result = _timed(ours)
        ours_runs.append(seconds)
    return Comparison(median(plain_runs), median(ours_runs), plain_result, ours_result)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def _readable(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
