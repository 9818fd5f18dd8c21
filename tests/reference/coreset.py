"""The plain greedy k-centre: one pass over all rows per chosen row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numba import njit

from feature_extractors.memory_bank.coreset import _rounded
from feature_extractors.memory_bank.greedy import _distance, _is_beyond

Norm = Callable[[torch.Tensor], torch.Tensor]


def exact_norm(differences: torch.Tensor) -> torch.Tensor:
    """Length of each row: squares summed in float64, rounded to at least float32, the root once more; (U,)."""
    precision = torch.promote_types(differences.dtype, torch.float32)
    squares = differences.double().square().sum(1).to(precision)
    return torch.from_numpy(np.sqrt(squares.numpy())).to(differences.dtype)  # torch's root may be 1 ulp off


def torch_norm(differences: torch.Tensor) -> torch.Tensor:
    """What the released code calls; the order of its float32 sums depends on the processor."""
    return torch.linalg.norm(differences, dim=1)


def plain_greedy_coreset(rows: torch.Tensor, n: int, *, dtype: str, norm: Norm = exact_norm) -> torch.Tensor:
    """Indices (n,) of the chosen rows, in the order of their choice."""
    if dtype == "float32":
        rows = rows.float()
    nearest = norm(rows - rows[:1]).to(getattr(torch, dtype))
    rows = rows.to(getattr(torch, dtype))
    chosen = [0]
    for _ in range(n - 1):
        nearest = torch.minimum(nearest, norm(rows - rows[chosen[-1]]))
        chosen.append(int(torch.argmax(nearest)))
        nearest[chosen[-1]] = 0
    return torch.tensor(chosen)


def confirmed_steps(rows: torch.Tensor, chosen: torch.Tensor, *, dtype: str) -> int:
    """How many of the choices the plain loop, in `exact_norm`'s arithmetic, would make after those before them.

    Goes row by row, not choice by choice, so that sizes for which the loop takes an hour take a minute.
    """
    rounded, first = _rounded(rows, np.arange(len(rows)), getattr(torch, dtype))
    farthest = _farthest_at_each_step(rounded, first, chosen.numpy(), dtype == "float16")
    return int((farthest == chosen.numpy()).sum())


@njit(cache=True)
def _farthest_at_each_step(rows, first, chosen, half):  # type: ignore[no-untyped-def]
    largest = np.full(chosen.size, -1, np.float32)
    farthest = np.zeros(chosen.size, np.int64)
    buffer = np.empty(rows.shape[1], np.float32)
    for row in range(len(rows)):
        distance = min(first[row], _distance(rows[row], rows[chosen[0]], buffer, half))
        for step in range(1, chosen.size):
            if distance > largest[step]:
                largest[step], farthest[step] = distance, row
            limit = distance * distance * np.float32(1.004)  # float16 is off by less
            if distance > 0 and not _is_beyond(rows[row], rows[chosen[step]], limit):
                distance = min(distance, _distance(rows[row], rows[chosen[step]], buffer, half))
    return farthest
