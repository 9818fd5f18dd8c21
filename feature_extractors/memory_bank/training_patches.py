"""The training patches of one class and modality, held once, in the form that its memory bank needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from utils.structures import Patches

ROWS_PER_CHUNK = 8192  # rows that are in float64 or float32 at a time
ROOM_FACTOR = 1.25  # of a collector's buffer: for samples with more rows than the first


@dataclass(frozen=True)
class Standardization:
    """x -> (x - mean) / std with scalars; without them x -> x."""

    mean: float = 0.0
    std: float = 1.0

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """Standardised rows, at least as float32; a new tensor, unless there is nothing to do."""
        exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return exact if self == NO_STANDARDIZATION else (exact - self.mean) / self.std


NO_STANDARDIZATION = Standardization()


class TrainingPatches:
    """Patches of n samples: rows (R, D), row_of_patch (n * P,), samples in order.

    `rows` is a tensor of the dtype that features are held in; nothing here changes it.
    """

    def __init__(
        self, rows: torch.Tensor, row_of_patch: torch.Tensor, row_counts: list[int], side: int
    ) -> None:
        self.rows = rows
        self.row_of_patch = row_of_patch
        self.side = side
        self._row_counts = row_counts

    @classmethod
    def collect(cls, samples: list[Patches]) -> TrainingPatches:
        """Join the samples' patches."""
        collector = PatchCollector(len(samples))
        for patches in samples:
            collector.add(patches)
        return collector.joined()

    def __len__(self) -> int:
        return len(self._row_counts)

    def __iter__(self) -> Iterator[Patches]:
        """The samples' patches, as views."""
        per_sample = self.row_of_patch.reshape(len(self), -1)
        for row_of_patch, start, count in zip(
            per_sample, _starts(self._row_counts), self._row_counts, strict=True
        ):
            yield Patches(self.rows[start : start + count], row_of_patch - start, self.side)

    def first(self, count: int) -> TrainingPatches:
        """The first `count` samples, sharing memory with this."""
        counts = self._row_counts[:count]
        num_patches = len(self.row_of_patch) // len(self)
        return TrainingPatches(
            self.rows[: sum(counts)], self.row_of_patch[: num_patches * len(counts)], counts, self.side
        )

    def mean(self) -> float:
        """Scalar mean over all patches."""
        total = sum(float((w * r.sum(dim=1)).sum()) for w, r in self._weighted_chunks())
        return total / self._numel()

    def std(self) -> float:
        """Scalar unbiased standard deviation over all patches."""
        mean = self.mean()
        total = sum(float((w * (r - mean).square_().sum(dim=1)).sum()) for w, r in self._weighted_chunks())
        return (total / (self._numel() - 1)) ** 0.5

    def _numel(self) -> int:
        return len(self.row_of_patch) * self.rows.shape[1]

    def _weighted_chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """How many patches have each row, and the rows, in float64 chunks."""
        weights = torch.bincount(self.row_of_patch, minlength=len(self.rows)).double()
        for weight, rows in zip(weights.split(ROWS_PER_CHUNK), self.rows.split(ROWS_PER_CHUNK), strict=True):
            yield weight, rows.double()


class PatchCollector:
    """Joins patches sample by sample, so that no feature is held twice.

    `dtype` is that of the joined rows, None = that of the first sample's. `expected` samples need no copy of
    what is there already, as long as they have few more rows than the first; room that stays empty is not
    touched, so a CPU never backs it with memory.
    """

    def __init__(self, expected: int, dtype: torch.dtype | None = None) -> None:
        self._expected = expected
        self._dtype = dtype
        self._buffer: torch.Tensor | None = None
        self._row_of_patch: list[torch.Tensor] = []
        self._row_counts: list[int] = []
        self._side = 0

    def __len__(self) -> int:
        return len(self._row_counts)

    def add(self, patches: Patches) -> None:
        start = sum(self._row_counts)
        end = start + len(patches.rows)
        self._room_for(end, patches.rows)[start:end] = patches.rows
        self._row_of_patch.append(patches.row_of_patch + start)
        self._row_counts.append(len(patches.rows))
        self._side = patches.side

    def joined(self) -> TrainingPatches:
        """What was added, at least one sample; the collector is of no more use."""
        assert self._buffer is not None, "no sample was added"
        rows = self._buffer[: sum(self._row_counts)]
        return TrainingPatches(rows, torch.cat(self._row_of_patch), self._row_counts, self._side)

    def _room_for(self, rows: int, like: torch.Tensor) -> torch.Tensor:
        """The buffer, of at least so many rows; made as `like` when there is none."""
        buffer = self._buffer
        if buffer is None:
            size = int(ROOM_FACTOR * rows * self._expected)
            buffer = torch.empty(size, like.shape[1], dtype=self._dtype or like.dtype, device=like.device)
        elif rows > len(buffer):
            larger = buffer.new_empty(int(ROOM_FACTOR * rows), buffer.shape[1])
            larger[: len(buffer)] = buffer
            buffer = larger
        self._buffer = buffer
        return buffer


def _starts(counts: list[int]) -> list[int]:
    starts = [0]
    for count in counts[:-1]:
        starts.append(starts[-1] + count)
    return starts
