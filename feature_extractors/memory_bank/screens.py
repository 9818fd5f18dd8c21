"""Screening a bank: which pairs of queries and bank rows are worth measuring exactly.

`Screen` and `ScreenedQueries` are what a search asks for. `ProductScreen` answers by products of all dims, on any
device; `nearest_filter.FilterScreen` spares most of them on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from feature_extractors.memory_bank.products import (
    FLOAT32_ROUNDOFF,
    Pairs,
    possible_nearest,
    squared_norms,
)

VALUES_AT_ONCE = 2**21  # of a bank, in float32 or float64: 8 or 16 MB


class ScreenedQueries(Protocol):
    """Queries (Q, D) float32, prepared once for all blocks of a bank."""

    def pairs(self, block: slice, rows: torch.Tensor, limit: torch.Tensor) -> Pairs:
        """Pairs whose row may be the query's nearest of the block and nearer than its squared limit (Q,) float32.

        rows (n, D) are the bank's rows[block] in float32; row numbers count from the block's start. No pair below
        the limit that is the nearest, or ties with it, is left out.
        """


class Screen(Protocol):
    """What a search keeps of a bank besides its rows (n, D)."""

    def prepare(self, query: torch.Tensor) -> ScreenedQueries:
        """Queries (Q, D) float32, ready for `pairs`."""

    def lower_bounds(self, query: torch.Tensor) -> torch.Tensor:
        """Lower bounds (n,) float32 of the squared distances from one query (1, D) float32 to all rows."""


class ProductScreen:
    """Screens by products of all dims.

    mean (D,) float32 is subtracted before the products, which then lose fewer digits; squares (n,) float32 are the
    squared lengths of rows - mean, and NaN or infinite where a row is.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        parts = self._parts()
        self.mean = (sum(part.double().sum(0) for part in parts) / len(rows)).float()
        self.squares = torch.cat([squared_norms(part.float() - self.mean) for part in parts])

    def prepare(self, query: torch.Tensor) -> CenteredQueries:
        centered = query - self.mean
        return CenteredQueries(self, centered, squared_norms(centered))

    def lower_bounds(self, query: torch.Tensor) -> torch.Tensor:
        squares = torch.cat([squared_norms(part.float() - query) for part in self._parts()])
        return squares * (1 - 2 * (query.shape[1] + 2) * FLOAT32_ROUNDOFF)

    def _parts(self) -> tuple[torch.Tensor, ...]:
        return self.rows.split(max(1, VALUES_AT_ONCE // max(1, self.rows.shape[1])))


@dataclass(frozen=True)
class CenteredQueries:
    """Queries (Q, D) with the bank's mean subtracted, and their squared lengths (Q,)."""

    bank: ProductScreen
    query: torch.Tensor
    squares: torch.Tensor

    def pairs(self, block: slice, rows: torch.Tensor, limit: torch.Tensor) -> Pairs:
        centered = rows - self.bank.mean
        return possible_nearest(self.query, self.squares, centered, self.bank.squares[block], limit)
