"""Who is told how a fit or an evaluation goes; nothing that is computed depends on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from utils.progress import Advance, progress
from utils.resources import Stopwatch, peak_memory_mb, reset_peak_memory


class Observer:
    """Is told of stages, progress and odd samples. This one only warns of samples that are left out."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around each stage: extract_train, fit_banks, fit_decision, predict, metrics."""
        yield

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Around work on `total` samples; yields what is called with the number of those that are newly done."""
        yield lambda count: None

    def remark(self, sample: str, text: str) -> None:
        """Something is odd about a sample, which is used all the same."""

    def left_out(self, sample: str, reason: str) -> None:
        """A sample can't be used."""
        warnings.warn(f"left out {sample}: {reason}", stacklevel=2)


@dataclass
class ClassReport(Observer):
    """Shows a class's progress on the screen, if `shown`, and remembers what is to be reported of it."""

    shown: bool = True
    metrics: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    remarks: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=Stopwatch)
    memory_mb: dict[str, float | None] = field(default_factory=dict)
    doubt: str | None = None  # why the results can't be trusted

    def __post_init__(self) -> None:
        reset_peak_memory()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with self.watch.stage(name):
            yield
        self.memory_mb[name] = peak_memory_mb()

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        with progress(title, total, shown=self.shown) as advance:
            yield advance

    def remark(self, sample: str, text: str) -> None:
        self.remarks.append({"path": sample, "remark": text})
        tqdm.write(f"{sample}: {text}")

    def left_out(self, sample: str, reason: str) -> None:
        self.skipped.append({"path": sample, "reason": reason})
        tqdm.write(f"left out {sample}: {reason}")

    def as_dict(self) -> dict[str, Any]:
        """The class's entry in results.json."""
        return {
            **self.metrics,
            "seconds": {name: round(value, 3) for name, value in self.watch.seconds.items()},
            "memory_mb": self.memory_mb,
            "peak_memory_mb": peak_memory_mb(),
            "counts": self.counts,
            "remarks": self.remarks,
            "skipped_samples": self.skipped,
            "doubt": self.doubt,
        }
