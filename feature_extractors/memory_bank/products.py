"""Squared distances between rows: bounds from float32 matrix products, and exact values of single pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numba import njit

FLOAT32_ROUNDOFF = 2.0**-24
SMALLEST_NORMAL = 2.0**-126  # of float32; smaller products are inexact or 0
PAIRS_AT_ONCE = 2**18  # D float64 numbers each, on a GPU

Pairs = tuple[torch.Tensor, torch.Tensor]  # query numbers and row numbers, (pairs,) int64 each


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """float32 products in float32: no TF32, no bfloat16, no autocast; the settings are restored afterwards."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def squared_norms(rows: torch.Tensor) -> torch.Tensor:
    """Squared length of each row; (n, D) -> (n,)."""
    return rows.square().sum(1)


def possible_nearest(
    query: torch.Tensor,
    query_squares: torch.Tensor,
    rows: torch.Tensor,
    row_squares: torch.Tensor,
    squared_limit: torch.Tensor,
    slack: float = 0.0,
) -> Pairs:
    """Pairs whose row may be the query's nearest and nearer than its limit; ascending by query, then row.

    query (Q, D) and rows (n, D) with their squared norms, and squared_limit (Q,), are float32. No pair below the
    limit that is the nearest, or ties with it, is left out. The bound covers the float32 rounding of the product
    and of a vector subtracted from query and rows beforehand. `slack` widens it by that fraction, for callers
    whose own arithmetic measures squared distances with such an error.
    """
    shifted = torch.addmm(row_squares, query, rows.T, alpha=-2)  # squared distance - query_squares
    # |sum of D rounded products - exact| <= D u |x||c|; twice that covers the two norms as well. The subtraction
    # adds u (|x| + |c|) to the distance. Below the smallest normal number rounding is absolute, not relative.
    unit = FLOAT32_ROUNDOFF * (query_squares + row_squares.max()) + SMALLEST_NORMAL
    error = 2 * (query.shape[1] + 16) * unit
    smallest = shifted.amin(1)
    limit = torch.minimum(smallest + query_squares + error, squared_limit)
    limit = limit * (1 + slack) + error - query_squares
    query_number = (smallest <= limit).nonzero()[:, 0]
    hit, row_number = (shifted[query_number] <= limit[query_number, None]).nonzero(as_tuple=True)
    return query_number[hit], row_number


def rounded_up(squares: torch.Tensor) -> torch.Tensor:
    """float64 squares as float32 numbers that are not smaller."""
    return squares.float() * (1 + 4 * FLOAT32_ROUNDOFF) + SMALLEST_NORMAL


def exact_squares(query: torch.Tensor, rows: torch.Tensor, pairs: Pairs) -> torch.Tensor:
    """Squared distance of each pair of float32 rows, from their difference in float64; (pairs,)."""
    query_number, row_number = pairs
    if query.device.type == "cpu":
        squares = np.empty(len(row_number))
        _pair_squares(query.numpy(), query_number.numpy(), rows.numpy(), row_number.numpy(), squares)
        return torch.from_numpy(squares)
    parts = [
        (query[q].double() - rows[r].double()).square().sum(1)
        for q, r in zip(query_number.split(PAIRS_AT_ONCE), row_number.split(PAIRS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _pair_squares(query, query_number, rows, row_number, squares):  # type: ignore[no-untyped-def]
    for i in range(row_number.size):
        a, b = query[query_number[i]], rows[row_number[i]]
        total = 0.0
        for k in range(a.size):
            difference = np.float64(a[k]) - np.float64(b[k])
            total += difference * difference
        squares[i] = total
