"""The plain nearest bank row: the whole distance matrix at once."""

from __future__ import annotations

import torch


def released_nearest(query: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As the released code does it: all Q x n distances by matrix product, then their minimum."""
    distance, index = torch.cdist(query, bank).min(dim=1)
    return distance, index


def exact_nearest(query: torch.Tensor, bank: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences in float64, the lowest index on ties; row by row."""
    squares = [(bank.double() - row).square().sum(1) for row in query.double()]
    index = torch.stack([(row == row.min()).nonzero()[0, 0] for row in squares])
    distance = torch.stack([row.min().sqrt() for row in squares])
    return distance.float(), index
