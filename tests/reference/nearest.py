"""The plain nearest bank row: the whole distance matrix at once."""

from __future__ import annotations

import torch


def released_nearest(query: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As the released code does it: all Q x n distances by matrix product, then their minimum."""
    distance, row_number = torch.cdist(query, rows).min(dim=1)
    return distance, row_number


def exact_nearest(query: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences in float64, the lowest row number on ties; query by query."""
    squares = [(rows.double() - one).square().sum(1) for one in query.double()]
    row_number = torch.stack([(each == each.min()).nonzero()[0, 0] for each in squares])
    distance = torch.stack([each.min().sqrt() for each in squares])
    return distance.float(), row_number


def exact_neighbors(rows: torch.Tensor, row: int, count: int) -> torch.Tensor:
    """Numbers (count,) of the rows nearest to row number `row`, itself first; the lowest on ties."""
    squares = (rows.double() - rows[row].double()).square().sum(1)
    squares[row] = -1
    return squares.argsort(stable=True)[:count]
