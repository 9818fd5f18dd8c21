"""The plain greedy k-centre: one pass over all rows per chosen row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

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
