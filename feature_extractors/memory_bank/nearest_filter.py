"""A screen that needs a tenth of the dims, for banks on the CPU whose rows have structure.

In the bank's principal directions, with the length of what lies outside them as one more coordinate, no pair is
farther apart than in full: |q - b|^2 = |Pq - Pb|^2 + |q' - b'|^2 >= |Pq - Pb|^2 + (|q'| - |b'|)^2. Few bank rows
are nearer than that to a patch, so hardly any product of all dims is needed. The bound always holds; where rows
have no structure it is too loose to be of use, and such banks get no filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from feature_extractors.memory_bank.products import (
    FLOAT32_ROUNDOFF,
    SMALLEST_NORMAL,
    Pairs,
    exact_squares,
    rounded_up,
    squared_norms,
)
from feature_extractors.memory_bank.screens import ProductScreen, ScreenedQueries

DIRECTIONS = (
    127  # 128 coordinates with the rest's length; they leave fewer than 2 pairs a patch on real features
)
MIN_EXPLAINED = 0.5  # share of a bank's variance in its directions; rows of noise reach 0.2
MIN_ROWS = 1024  # products with fewer rows cost less than the filter
ROWS_OF_BASIS = 4096  # enough to find the directions; the bound holds for any
ROWS_AT_ONCE = 4096
# Pairs a query that the filter may leave in a block; measuring more takes longer than all products.
PAIRS_LEFT, SHARE_LEFT = 4, 0.005
FILTER_TRIALS = 2  # blocks that it fails on before the products take over for these queries


@dataclass(frozen=True)
class FilterScreen:
    """The bank's rows in coordinates (n, k + 1) float32, in which distances are lower bounds.

    squares (n,) are the coordinates' squared lengths; basis (D, k) float64, orthonormal, holds the directions;
    products takes over where the filter fails.
    """

    products: ProductScreen
    basis: torch.Tensor
    coordinates: torch.Tensor
    squares: torch.Tensor

    def prepare(self, query: torch.Tensor) -> FilteredQueries:
        return FilteredQueries(self, query, self.products.prepare(query))

    def lower_bounds(self, query: torch.Tensor) -> torch.Tensor:
        coordinates = _coordinates(query, self.products.mean, self.basis)
        return self.shifted_bounds(coordinates, slice(None))[0] - self.shift(coordinates)

    def shifted_bounds(self, coordinates: torch.Tensor, block: slice) -> torch.Tensor:
        """Lower bounds (Q, n) of squared distances to the rows of a block, too large by the query's `shift`."""
        return torch.addmm(self.squares[block], coordinates, self.coordinates[block].T, alpha=-2)

    def shift(self, coordinates: torch.Tensor) -> torch.Tensor:
        """The rounding that the bounds allow for, less the query's squared length; (Q, k + 1) -> (Q,)."""
        squares = squared_norms(coordinates)
        # the sums' rounding as in `possible_nearest`, and that of the coordinates, at most 10 units each
        unit = FLOAT32_ROUNDOFF * (squares + self.squares.max()) + SMALLEST_NORMAL
        return 2 * (coordinates.shape[1] + 32) * unit - squares


class FilteredQueries:
    """Queries (Q, D) float32 for the filter, and ready for the products, should it leave too many pairs."""

    def __init__(self, bank: FilterScreen, query: torch.Tensor, products: ScreenedQueries) -> None:
        self._bank = bank
        self._query = query
        self._products = products
        self._coordinates = _coordinates(query, bank.products.mean, bank.basis)
        self._shift = bank.shift(self._coordinates)
        self._trials = FILTER_TRIALS

    def pairs(self, block: slice, rows: torch.Tensor, limit: torch.Tensor) -> Pairs:
        if self._trials:
            pairs = self._few_pairs(block, rows, limit)
            if pairs is not None:
                return pairs
            self._trials -= 1
        return self._products.pairs(block, rows, limit)

    def _few_pairs(self, block: slice, rows: torch.Tensor, limit: torch.Tensor) -> Pairs | None:
        """The pairs that the bounds leave; None if these are too many."""
        bounds = self._bank.shifted_bounds(self._coordinates, block)
        below = bounds.amin(1) <= limit + self._shift
        number = below.nonzero()[:, 0]  # of the queries that may find a row here
        if len(number) == 0:
            return number, number
        bounds = bounds[number]
        measured = exact_squares(self._query, rows, (number, bounds.argmin(1)))
        limit = torch.minimum(limit[number], rounded_up(measured)) + self._shift[number]
        possible = bounds <= limit[:, None]
        if torch.count_nonzero(possible) > len(number) * (PAIRS_LEFT + SHARE_LEFT * len(rows)):
            return None
        hit, row_number = possible.nonzero(as_tuple=True)
        return number[hit], row_number


def make_filter(products: ProductScreen) -> FilterScreen | None:
    """The filter of a bank; None for one that is on a GPU, is small, has few dims or no structure."""
    rows, mean = products.rows, products.mean
    if rows.device.type != "cpu" or len(rows) < MIN_ROWS or rows.shape[1] <= 2 * DIRECTIONS:
        return None
    centered = rows[:: -(-len(rows) // ROWS_OF_BASIS)].float() - mean
    variance, directions = torch.linalg.eigh(centered.T @ centered)  # ascending
    if not variance[-DIRECTIONS:].sum() > MIN_EXPLAINED * variance.sum():
        return None
    basis = torch.linalg.qr(directions[:, -DIRECTIONS:].double()).Q  # orthonormal to float64's last digits
    coordinates = _coordinates(rows, mean, basis)
    return FilterScreen(products, basis, coordinates, squared_norms(coordinates))


def _coordinates(rows: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Position along the directions and distance from them; (R, D), (D,), (D, k) -> (R, k + 1) float32."""
    return torch.cat([_coordinates_of(part, mean, basis) for part in rows.split(ROWS_AT_ONCE)])


def _coordinates_of(rows: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    centered = rows.float().double() - mean  # float64 rows are searched as float32
    inside = centered @ basis
    rest = (squared_norms(centered) - squared_norms(inside)).clamp(min=0).sqrt()
    return torch.cat([inside, rest[:, None]], dim=1).float()
