"""Nearest row of a memory bank, by chunked matrix products whose rounding is made good afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from feature_extractors.memory_bank.nearest_filter import FLOAT32_ROUNDOFF, SMALLEST, BankFilter, make_filter

DISTANCES_AT_ONCE = {"cpu": 2**21, "cuda": 2**28}  # entries of the (Q, n) matrix: 8 MB, 1 GB
ALIGNED_ROWS = 64  # products with odd numbers of columns take MKL up to 1.4 times as long
QUERIES_AT_ONCE = {"cpu": 2**12, "cuda": 2**15}
PAIRS_AT_ONCE = 2**18  # D float64 numbers each, on a GPU
# Pairs of a query that a filter may leave; measuring more of them takes longer than all products.
UNFILTERED_PAIRS, UNFILTERED_SHARE = 4, 0.005
FILTER_TRIALS = 2  # blocks without success after which a filter is not asked again


@dataclass(frozen=True)
class BankIndex:
    """A bank's rows (n, D), float32 or float16, and what all searches in it need; build it with `of`.

    mean (D,) float32 is taken off before products, which lose fewer digits then; squares (n,) float32 are the
    squared lengths of rows - mean; the filter, where there is one, spares products.
    """

    rows: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor
    filter: BankFilter | None

    @classmethod
    def of(cls, rows: torch.Tensor) -> BankIndex:
        """Raises ValueError for an empty bank and for NaN or infinity."""
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(f"bank {tuple(rows.shape)}: it has no rows; fit it with at least one sample")
        parts = rows.split(max(1, DISTANCES_AT_ONCE["cpu"] // max(1, rows.shape[1])))
        mean = (sum(part.double().sum(0) for part in parts) / len(rows)).float()
        squares = torch.cat([squared_norms(part.float() - mean) for part in parts])
        if not torch.isfinite(squares).all():
            raise ValueError("bank: NaN or infinite features have no nearest row")
        return cls(rows, mean, squares, make_filter(rows, mean))


def nearest_rows(
    query: torch.Tensor, bank: BankIndex, *, distances_at_once: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distance of each query row to its nearest bank row, and that row's index; (Q,) and (Q,).

    query (Q, D) is float32 or float16, on the bank's device. The matrix products only tell which pairs may be
    the nearest; those are measured again as differences in float64. So the index is that of float64, the
    lowest one on ties, and a bank row is at distance 0, not 0.005, from itself. Memory grows with
    `distances_at_once` (entries of the (Q, n) matrix), not with n. Raises ValueError for shapes that do not
    fit, and for NaN or infinity.
    """
    if query.ndim != 2 or query.shape[1] != bank.rows.shape[1]:
        raise ValueError(
            f"query {tuple(query.shape)} and bank {tuple(bank.rows.shape)} must be (Q, D) and (n, D)"
        )
    device = query.device.type
    budget = distances_at_once or DISTANCES_AT_ONCE[device]
    parts = []
    with full_precision(device):
        for queries in query.split(QUERIES_AT_ONCE[device]):
            block = max(1, budget // max(1, len(queries)))
            block -= block % ALIGNED_ROWS if block > ALIGNED_ROWS else 0
            parts.append(_nearest_of_chunk(queries.float(), bank, block))
    squared_distance = torch.cat([part[0] for part in parts])
    if not torch.isfinite(squared_distance).all():
        raise ValueError("query: NaN or infinite features have no nearest row")
    return squared_distance.sqrt().float(), torch.cat([part[1] for part in parts])


def neighbours(bank: BankIndex, center: int, count: int) -> torch.Tensor:
    """Indices (count,) of the bank rows nearest to row `center`, itself first; by float64, the lowest on ties."""
    row = bank.rows[center : center + 1].float()
    with full_precision(row.device.type):
        bounds = _lower_bounds(bank, row)
    bounds[center] = -1
    nearest = torch.topk(bounds, count, largest=False).indices
    limit = _squares_to(bank, row, nearest).max()
    possible = (bounds <= _not_below(limit)).nonzero()[:, 0]  # ascending
    squares = _squares_to(bank, row, possible)
    squares[possible == center] = -1
    return possible[squares.argsort(stable=True)[:count]]


def squared_norms(rows: torch.Tensor) -> torch.Tensor:
    """Squared length of each row; (n, D) -> (n,)."""
    return rows.square().sum(1)


def possible_nearest(
    query: torch.Tensor,
    query_squares: torch.Tensor,
    centers: torch.Tensor,
    center_squares: torch.Tensor,
    squared_limit: torch.Tensor,
    slack: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (row, center) that may be the row's nearest and nearer than its limit; ascending by row, center.

    query (R, D) and centers (C, D) with their squared norms, and squared_limit (R,), are float32. No pair that is the
    nearest, or ties with it, and lies below the limit is left out: the bound allows for the rounding in float32
    of the product and of a vector taken off query and centers before, and, with `slack`, for an arithmetic whose
    squared distances are off by that fraction.
    """
    shifted = torch.addmm(center_squares, query, centers.T, alpha=-2)  # squared distance - query_squares
    # |sum of D rounded products - exact| <= D u |x||c|; twice that covers the two norms as well. What was taken
    # off adds u (|x| + |c|) to the distance, and below the smallest normal number nothing is certain.
    error = 2 * (query.shape[1] + 16) * (FLOAT32_ROUNDOFF * (query_squares + center_squares.max()) + SMALLEST)
    smallest = shifted.amin(1)
    limit = torch.minimum(smallest + query_squares + error, squared_limit)
    limit = limit * (1 + slack) + error - query_squares
    row = (smallest <= limit).nonzero()[:, 0]
    hit, center = (shifted[row] <= limit[row, None]).nonzero(as_tuple=True)
    return row[hit], center


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


def _nearest_of_chunk(query: torch.Tensor, bank: BankIndex, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance (Q,) float64 to the nearest bank row, and its index (Q,)."""
    centred = query - bank.mean
    squares = squared_norms(centred)
    bounded = None if bank.filter is None else bank.filter.bounded(query)
    trials = 0
    best = query.new_full((len(query),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    for start in range(0, len(bank.rows), block):
        part = slice(start, start + block)
        rows = bank.rows[part].float()
        limit, pairs = _not_below(best), None
        if bank.filter is not None and bounded is not None and trials < FILTER_TRIALS:
            pairs = _unfiltered(query, rows, *bank.filter.squared_distances(bounded, part), limit)
            trials += pairs is None
        if pairs is None:
            pairs = possible_nearest(centred, squares, rows - bank.mean, bank.squares[part], limit)
        row, col = pairs
        distance = _exact_squares(query, row, rows, col)
        nearest = best.scatter_reduce(0, row, distance, "amin")
        winner = (distance == nearest[row]) & (distance < best[row])
        lowest = torch.full_like(index, len(bank.rows)).scatter_reduce(
            0, row[winner], col[winner] + start, "amin"
        )
        index = torch.where(nearest < best, lowest, index)
        best = nearest
    return best, index


def _unfiltered(
    query: torch.Tensor, bank: torch.Tensor, shifted: torch.Tensor, shift: torch.Tensor, limit: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """As `possible_nearest` by lower bounds, shifted (Q, n) - shift (Q,); None if they leave too many pairs."""
    row = (shifted.amin(1) <= limit + shift).nonzero()[:, 0]
    if len(row) == 0:
        return row, row
    shifted, shift, limit = shifted[row], shift[row], limit[row]
    found = _exact_squares(query, row, bank, shifted.argmin(1))
    possible = shifted <= (torch.minimum(limit, _not_below(found)) + shift)[:, None]
    if torch.count_nonzero(possible) > len(row) * (UNFILTERED_PAIRS + UNFILTERED_SHARE * len(bank)):
        return None
    hit, col = possible.nonzero(as_tuple=True)
    return row[hit], col


def _lower_bounds(bank: BankIndex, row: torch.Tensor) -> torch.Tensor:
    """Lower bounds (n,) of the squared distances of row (1, D)."""
    if bank.filter is not None:
        shifted, shift = bank.filter.squared_distances(bank.filter.bounded(row), slice(None))
        return shifted[0] - shift
    parts = bank.rows.split(max(1, DISTANCES_AT_ONCE["cpu"] // row.shape[1]))
    squares = torch.cat([squared_norms(part.float() - row) for part in parts])
    return squares * (1 - 2 * (row.shape[1] + 2) * FLOAT32_ROUNDOFF)


def _squares_to(bank: BankIndex, row: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    rows = bank.rows[index].float()
    return _exact_squares(row, torch.zeros_like(index), rows, torch.arange(len(rows), device=rows.device))


def _not_below(squares: torch.Tensor) -> torch.Tensor:
    """float64 in float32: rounded, but never down."""
    return squares.float() * (1 + 4 * FLOAT32_ROUNDOFF) + SMALLEST


def _exact_squares(
    query: torch.Tensor, row: torch.Tensor, bank: torch.Tensor, col: torch.Tensor
) -> torch.Tensor:
    """Squared distance of each pair of float32 rows from its difference, in float64; (pairs,)."""
    if query.device.type == "cpu":
        squares = np.empty(len(row))
        _pair_squares(query.numpy(), row.numpy(), bank.numpy(), col.numpy(), squares)
        return torch.from_numpy(squares)
    parts = [
        (query[r].double() - bank[c].double()).square().sum(1)
        for r, c in zip(row.split(PAIRS_AT_ONCE), col.split(PAIRS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _pair_squares(query, row, bank, col, squares):  # type: ignore[no-untyped-def]
    for i in range(row.size):
        q, b = query[row[i]], bank[col[i]]
        total = 0.0
        for k in range(q.size):
            difference = np.float64(q[k]) - np.float64(b[k])
            total += difference * difference
        squares[i] = total
