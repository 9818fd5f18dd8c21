"""The training patches of one class and modality, held once, in the form that its memory bank needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from utils.structures import Patches

ROWS_PER_CHUNK = 8192  # rows that are in float64 or float32 at a time


@dataclass(frozen=True)
class Standardization:
    """x -> (x - mean) / std with scalars."""

    mean: float
    std: float

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows - self.mean) / self.std


class TrainingPatches:
    """Patches of n samples: rows (R, D), index (n * P,) the row of each patch, samples in order.

    `rows` is a tensor of the dtype that features are held in; standardising happens in place.
    """

    def __init__(self, rows: torch.Tensor, index: torch.Tensor, row_counts: list[int], side: int) -> None:
        self.rows = rows
        self.index = index
        self.side = side
        self._row_counts = row_counts

    @classmethod
    def collect(cls, samples: list[Patches]) -> TrainingPatches:
        """Join the samples' patches."""
        counts = [len(patches.rows) for patches in samples]
        index = [p.index + start for p, start in zip(samples, _starts(counts), strict=True)]
        return cls(torch.cat([p.rows for p in samples]), torch.cat(index), counts, samples[0].side)

    def __len__(self) -> int:
        return len(self._row_counts)

    def __iter__(self) -> Iterator[Patches]:
        """The samples' patches, as views, at least as float32."""
        dtype = torch.promote_types(self.rows.dtype, torch.float32)
        for index, start, count in zip(
            self.index.reshape(len(self), -1), _starts(self._row_counts), self._row_counts, strict=True
        ):
            yield Patches(self.rows[start : start + count].to(dtype), index - start, self.side)

    def first(self, count: int) -> TrainingPatches:
        """The first `count` samples, sharing memory with this."""
        counts = self._row_counts[:count]
        patches = len(self.index) // len(self)
        return TrainingPatches(
            self.rows[: sum(counts)], self.index[: patches * len(counts)], counts, self.side
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

    def standardize(self, by: Standardization) -> None:
        """Standardise all rows in place."""
        for chunk in self.rows.split(ROWS_PER_CHUNK):
            chunk.copy_(by.apply(chunk.float()))

    def _numel(self) -> int:
        return len(self.index) * self.rows.shape[1]

    def _weighted_chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """How many patches have each row, and the rows, in float64 chunks."""
        weights = torch.bincount(self.index, minlength=len(self.rows)).double()
        for weight, rows in zip(weights.split(ROWS_PER_CHUNK), self.rows.split(ROWS_PER_CHUNK), strict=True):
            yield weight, rows.double()


def _starts(counts: list[int]) -> list[int]:
    starts = [0]
    for count in counts[:-1]:
        starts.append(starts[-1] + count)
    return starts
