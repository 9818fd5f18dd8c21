"""Greedy k-center by exact lazy batches: the result of one pass over all rows per chosen row, without the passes.

A row's distance to the chosen rows only falls, so a distance measured earlier is an upper bound. A batch takes
the `CANDIDATES` rows of largest bound, brings them up to date and chooses greedily among them, as long as the
best of them comes before the first row left out. All other rows wait until their bound is among the largest.
One matrix product finds the pairs of a batch that may matter; these are measured with the arithmetic of the
loop, on the host whatever the device:

    float16: rows are rounded to float16, each difference is rounded to float16;
    both: squares are summed exactly (float64) and the sum is rounded to float32, its root to float32,
    and with float16 once more to float16.

The released code sums in float32 in an order that depends on the device; the exact sum depends on none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit

from feature_extractors.memory_bank.products import (
    FLOAT32_ROUNDOFF,
    full_precision,
    possible_nearest,
    squared_norms,
)

CANDIDATES = 2048
CHOSEN_AT_ONCE = {"cpu": 512, "cuda": 8192}  # columns of the product: 4 MB and 64 MB with all candidates
EARLY_EXIT = 64  # dimensions summed between two looks at the limit
LEAST_BOUND = np.float32(1e-30)  # squares of smaller differences may be 0 in float32
# A difference rounded to float16 is off by 2**-11 of itself, a square by 2**-10, two of them are compared;
# float32 only rounds the sum.
SLACK = {True: 2.0**-9 + 2.0**-12, False: 2.0**-20}


@dataclass
class _Cover:
    """What is known of the distance between the rows and the chosen ones.

    rows (U, d) float32 on the host; device_rows the same on the device of the products; mean (d,) is subtracted
    before products, which then lose fewer digits; distance (U,) float32 to the nearest of the first `seen` (U,)
    chosen rows, an upper bound of that to all; chosen (n,) row numbers, of which `count` are known.
    """

    rows: np.ndarray
    device_rows: torch.Tensor
    mean: torch.Tensor
    distance: np.ndarray
    seen: np.ndarray
    chosen: np.ndarray
    count: int
    half: bool

    def centered(self, row_number: np.ndarray) -> torch.Tensor:
        return self.device_rows[torch.from_numpy(row_number).to(self.mean.device)] - self.mean


def farthest_first(
    rows: np.ndarray, first_distance: np.ndarray, n: int, *, half: bool, device: torch.device
) -> np.ndarray:
    """Numbers (n,) int64 of the rows chosen from row 0 on, the lowest row number on ties.

    rows (U, d) float32, with `half` already rounded to float16; first_distance (U,) float32 to row 0 as the
    first pass measures it. Once every row coincides with a chosen one, row 0 is repeated, as in the loop.
    """
    cover = _start(rows, first_distance, n, half, device)
    with full_precision(device.type):
        while cover.count < n and cover.distance.any():
            candidates, boundary = _largest(cover.distance, CANDIDATES)
            _refresh(cover, candidates)
            _choose(cover, candidates, boundary)
    return cover.chosen


def _start(rows: np.ndarray, first_distance: np.ndarray, n: int, half: bool, device: torch.device) -> _Cover:
    # The first pass of the loop measures row 0 once more and keeps the smaller: in float16 it may differ.
    distance = first_distance.copy()
    everything = np.arange(len(rows))
    _measure_pairs(rows, everything, np.zeros_like(everything), distance, half)
    device_rows = torch.from_numpy(rows).to(device)
    seen = np.ones(len(rows), np.int64)
    return _Cover(
        rows, device_rows, device_rows.mean(0), distance, seen, np.zeros(n, np.int64), count=1, half=half
    )


def _largest(distance: np.ndarray, size: int) -> tuple[np.ndarray, tuple[float, int]]:
    """The `size` first rows by (distance descending, row number ascending), as ascending row numbers.

    Also the boundary (distance, row number): rows left out do not come before it in that order.
    """
    if size >= len(distance):
        return np.arange(len(distance)), (0.0, -1)
    value = np.partition(distance, -size)[-size]
    above = np.flatnonzero(distance > value)
    ties = np.flatnonzero(distance == value)
    taken = size - len(above)
    first_out = ties[taken] if taken < len(ties) else len(distance)
    return np.sort(np.concatenate([above, ties[:taken]])), (float(value), int(first_out))


def _refresh(cover: _Cover, candidates: np.ndarray) -> None:
    """Bring the candidates' distances up to date with all chosen rows."""
    stale = candidates[cover.seen[candidates] < cover.count]
    stale = stale[np.argsort(cover.seen[stale], kind="stable")]
    if not len(stale):
        return
    seen, query = cover.seen[stale], cover.centered(stale)
    squares = squared_norms(query)
    step = CHOSEN_AT_ONCE[query.device.type]
    for start in range(int(seen[0]), cover.count, step):
        chosen = cover.chosen[start : min(start + step, cover.count)]
        behind = int(np.searchsorted(seen, start + len(chosen)))
        _lower(cover, stale[:behind], query[:behind], squares[:behind], chosen)
    cover.seen[stale] = cover.count


def _lower(
    cover: _Cover, row_number: np.ndarray, query: torch.Tensor, squares: torch.Tensor, chosen: np.ndarray
) -> None:
    """Lower the distances of rows (R,), `query` (R, d) when centered, to their nearest of the `chosen` ones."""
    chosen_rows = cover.centered(chosen)
    limit = torch.from_numpy(cover.distance[row_number]).to(query.device).square()
    chosen_squares = squared_norms(chosen_rows)
    which, nearest = possible_nearest(query, squares, chosen_rows, chosen_squares, limit, SLACK[cover.half])
    pairs = row_number[which.cpu().numpy()], chosen[nearest.cpu().numpy()]
    _measure_pairs(cover.rows, *pairs, cover.distance, cover.half)


def _choose(cover: _Cover, candidates: np.ndarray, boundary: tuple[float, int]) -> None:
    """Choose among the candidates until none comes before the boundary."""
    distance, seen = cover.distance[candidates], cover.seen[candidates]
    skip = np.float32(1 + SLACK[cover.half] + (cover.rows.shape[1] + 8) * FLOAT32_ROUNDOFF)
    cover.count = _choose_kernel(
        cover.rows[candidates],
        candidates,
        distance,
        seen,
        boundary,
        cover.chosen,
        cover.count,
        skip,
        cover.half,
    )
    cover.distance[candidates], cover.seen[candidates] = distance, seen


@njit(cache=True)
def _choose_kernel(rows, row_number, distance, seen, boundary, chosen, count, skip, half):  # type: ignore[no-untyped-def]
    """Fill `chosen` from position `count`; returns the new count. Candidates that fall behind are dropped."""
    active, best = _before(np.arange(row_number.size), row_number, distance, boundary)
    while best >= 0 and count < chosen.size:
        chosen[count] = row_number[best]
        count += 1
        distance[best] = 0
        _measure_active(rows, active, best, distance, skip, half)
        seen[active] = count
        active, best = _before(active, row_number, distance, boundary)
    return count


@njit(cache=True)
def _before(active, row_number, distance, boundary):  # type: ignore[no-untyped-def]
    """The active positions that come before the boundary, and the first of them (-1: none above 0)."""
    kept = np.empty_like(active)
    size = 0
    best = -1
    for position in active:
        value = distance[position]
        if value > boundary[0] or (value == boundary[0] and row_number[position] < boundary[1]):
            kept[size] = position
            size += 1
            if value > (distance[best] if best >= 0 else 0):
                best = position
    return kept[:size], best


@njit(cache=True)
def _measure_active(rows, active, chosen, distance, skip, half):  # type: ignore[no-untyped-def]
    """Lower the distances of the candidates at the active positions to the one just chosen."""
    buffer = np.empty(rows.shape[1], np.float32)
    for position in active:
        limit = distance[position]
        bound = limit * limit * skip
        if bound < LEAST_BOUND or not _is_beyond(rows[position], rows[chosen], bound):
            distance[position] = min(limit, _distance(rows[position], rows[chosen], buffer, half))


@njit(cache=True)
def _measure_pairs(rows, left, right, distance, half):  # type: ignore[no-untyped-def]
    """Lower distance[left] to the distance between rows `left` and `right`, pair by pair."""
    buffer = np.empty(rows.shape[1], np.float32)
    for a, b in zip(left, right):  # noqa: B905  (Numba's zip has no `strict`)
        distance[a] = min(distance[a], _distance(rows[a], rows[b], buffer, half))


@njit(cache=True, fastmath={"reassoc", "contract"})
def _is_beyond(a, b, limit):  # type: ignore[no-untyped-def]
    """Whether the squared distance, in float32 in any order, reaches the limit."""
    total = np.float32(0)
    for start in range(0, a.size, EARLY_EXIT):
        for k in range(start, min(start + EARLY_EXIT, a.size)):
            difference = a[k] - b[k]
            total += difference * difference
        if total >= limit:
            return True
    return False


@njit(cache=True)
def _distance(a, b, buffer, half):  # type: ignore[no-untyped-def]
    """Distance in the arithmetic of the loop, see the head of this file."""
    for k in range(a.size):
        buffer[k] = a[k] - b[k]
    if half:
        _round_to_half(buffer)
    root = np.sqrt(np.float32(_sum_of_squares(buffer)))
    return _half(root) if half else root


@njit(cache=True)
def _round_to_half(values):  # type: ignore[no-untyped-def]
    """Round float32 to float16's 11 significant bits in place, ties to even.

    Differences of float16 numbers are multiples of its smallest one, so its subnormal range needs no care.
    """
    bits = values.view(np.int32)
    for k in range(bits.size):
        odd = (bits[k] >> np.int32(13)) & np.int32(1)
        bits[k] = (bits[k] + np.int32(0xFFF) + odd) & np.int32(~0x1FFF)


@njit(cache=True, fastmath={"reassoc"})
def _sum_of_squares(values):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(values.size):
        total += np.float64(values[k]) * np.float64(values[k])
    return total


@njit(cache=True)
def _half(value):  # type: ignore[no-untyped-def]
    """A non-negative float32 rounded to float16, as float32; ties to even."""
    exponent = math.frexp(value)[1]
    unit = math.ldexp(1.0, max(exponent - 11, -24))  # last place of float16, also in its subnormal range
    return np.float32(np.rint(value / unit) * unit)
