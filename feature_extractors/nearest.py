"""Nearest row of a memory bank, by chunked matrix products whose rounding is made good afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FLOAT32_ROUNDOFF = 2.0**-24
DISTANCES_AT_ONCE = {"cpu": 2**21, "cuda": 2**28}  # entries of the (Q, n) matrix: 8 MB, 1 GB
ALIGNED_ROWS = 64  # products with odd numbers of columns take MKL up to 1.4 times as long
QUERIES_AT_ONCE = {"cpu": 2**12, "cuda": 2**15}
PAIRS_AT_ONCE = {"cpu": 2**12, "cuda": 2**18}  # pairs measured exactly, each D float64 numbers


def nearest_rows(
    query: torch.Tensor,
    bank: torch.Tensor,
    *,
    bank_squares: torch.Tensor | None = None,
    distances_at_once: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distance of each query row to its nearest bank row, and that row's index; (Q,) and (Q,).

    query (Q, D) and bank (n, D) are float32 or float16, on one device. The matrix products only tell which
    pairs may be the nearest; those are measured again as differences in float64. So the index is that of
    float64, the lowest one on ties, and a bank row is at distance 0, not 0.005, from itself. Memory grows
    with `distances_at_once` (entries of the (Q, n) matrix), not with n. `bank_squares` (n,) float32 are the
    rows' `squared_norms`, for callers that ask often. Raises ValueError for an empty bank, for shapes that do
    not fit, and for NaN or infinity.
    """
    _check_shapes(query, bank)
    if bank_squares is None:
        bank_squares = squared_norms(bank)
    device = query.device.type
    budget = distances_at_once or DISTANCES_AT_ONCE[device]
    parts = []
    with full_precision(device):
        for queries in query.split(QUERIES_AT_ONCE[device]):
            block = max(1, budget // max(1, len(queries)))
            block -= block % ALIGNED_ROWS if block > ALIGNED_ROWS else 0
            parts.append(_nearest_of_chunk(queries.float(), bank, bank_squares, block))
    squared_distance = torch.cat([part[0] for part in parts])
    if not torch.isfinite(squared_distance).all() or not torch.isfinite(bank_squares).all():
        raise ValueError("query or bank: NaN or infinite features have no nearest row")
    return squared_distance.sqrt().float(), torch.cat([part[1] for part in parts])


def squared_norms(rows: torch.Tensor) -> torch.Tensor:
    """Squared length of each row in float32; (n, D) -> (n,). The rows are converted in chunks."""
    chunk = max(1, DISTANCES_AT_ONCE["cpu"] // max(1, rows.shape[1]))
    return torch.cat([part.float().square().sum(1) for part in rows.split(chunk)])


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
    nearest, or ties with it, and lies below the limit is left out: the bound allows for the rounding of the
    product in float32 and, with `slack`, for an arithmetic whose squared distances are off by that fraction.
    """
    shifted = torch.addmm(center_squares, query, centers.T, alpha=-2)  # squared distance - query_squares
    # |sum of D rounded products - exact| <= D u |x||c|; twice that covers the two norms as well.
    error = 2 * (query.shape[1] + 8) * FLOAT32_ROUNDOFF * (query_squares + center_squares.max())
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


def _nearest_of_chunk(
    query: torch.Tensor, bank: torch.Tensor, bank_squares: torch.Tensor, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distance (Q,) float64 to the nearest bank row, and its index (Q,)."""
    query_squares = squared_norms(query)
    best = query.new_full((len(query),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    for start in range(0, len(bank), block):
        rows = bank[start : start + block].float()
        limit = best.float() * (1 + 4 * FLOAT32_ROUNDOFF)  # rounded, but never below `best`
        squares = bank_squares[start : start + block]
        row, col = possible_nearest(query, query_squares, rows, squares, limit)
        distance = _exact_squares(query, row, rows, col)
        nearest = best.scatter_reduce(0, row, distance, "amin")
        winner = (distance == nearest[row]) & (distance < best[row])
        lowest = torch.full_like(index, len(bank)).scatter_reduce(0, row[winner], col[winner] + start, "amin")
        index = torch.where(nearest < best, lowest, index)
        best = nearest
    return best, index


def _exact_squares(
    query: torch.Tensor, row: torch.Tensor, bank: torch.Tensor, col: torch.Tensor
) -> torch.Tensor:
    """Squared distance of each pair from its difference, in float64; (pairs,)."""
    at_once = PAIRS_AT_ONCE[query.device.type]
    parts = [
        (query[r].double() - bank[c].double()).square().sum(1)
        for r, c in zip(row.split(at_once), col.split(at_once), strict=True)
    ]
    return torch.cat(parts)


def _check_shapes(query: torch.Tensor, bank: torch.Tensor) -> None:
    if query.ndim != 2 or bank.ndim != 2 or query.shape[1] != bank.shape[1]:
        raise ValueError(f"query {tuple(query.shape)} and bank {tuple(bank.shape)} must be (Q, D) and (n, D)")
    if len(bank) == 0:
        raise ValueError("bank: it has no rows, so nothing is nearest; fit it with at least one sample")
