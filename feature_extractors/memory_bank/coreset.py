"""Coreset of a memory bank: sparse random projection, then greedy k-centre (PatchCore, algorithm 1)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

from feature_extractors.memory_bank.greedy import farthest_first
from feature_extractors.memory_bank.training_patches import Standardization

CoresetDtype = Literal["float16", "float32"]

ROWS_AT_ONCE = 4096


def sparse_projection(
    rows: torch.Tensor,
    standardization: Standardization,
    *,
    n_samples: int,
    eps: float,
    random_state: int | np.random.RandomState,
) -> torch.Tensor:
    """Standardise rows (U, D) and project them with a sparse random matrix to (U, d) float64, on their device.

    Gives what scikit-learn's `SparseRandomProjection(eps=eps)` gives for a tensor of `n_samples` rows, the
    repeated ones among them left out of `rows`: d is Johnson and Lindenstrauss's bound for `n_samples`, and
    the arithmetic is float64, whatever the tensor's type. Where d exceeds D (or is 0, for a single row) the
    rows are only standardised and `random_state` is not drawn from. Raises ValueError for eps outside (0, 1).
    """
    if not 0 < eps < 1:
        raise ValueError(f"--coreset_eps {eps}: the distortion must lie between 0 and 1, both excluded")
    size = int(johnson_lindenstrauss_min_dim(n_samples, eps=eps))
    if not 0 < size <= rows.shape[1]:
        return standardization.apply(rows)
    projection = SparseRandomProjection(size, eps=eps, random_state=random_state)
    projection.fit(np.zeros((1, rows.shape[1])))
    projected = torch.empty((len(rows), size), dtype=torch.float64, device=rows.device)
    for part, target in zip(rows.split(ROWS_AT_ONCE), projected.split(ROWS_AT_ONCE), strict=True):
        standardized = standardization.apply(part).double().cpu().numpy()
        target.copy_(torch.from_numpy(projection.transform(standardized)))
    return projected


def greedy_coreset(
    rows: torch.Tensor, n: int, *, index: torch.Tensor | None = None, dtype: CoresetDtype = "float16"
) -> torch.Tensor:
    """Item indices (n,) int64 of a greedy k-centre over T items, from item 0, the lowest index on ties.

    Item t has the row rows[index[t]] of rows (U, d); without `index` (T,) every row is an item. The result is
    that of one pass over all items per choice, in the arithmetic that `greedy` describes: with "float16" (as
    released) the distances to item 0 are measured in the precision of `rows` first, then rounded. When n
    exceeds the number of distinct items, item 0 fills the rest. Raises ValueError for no rows, for n outside
    1..T, for NaN or infinity, and where a distance could leave the range of `dtype`.
    """
    count = len(rows) if index is None else len(index)
    if count == 0:
        raise ValueError("coreset: there are no rows to choose from; the bank needs at least one sample")
    if not 1 <= n <= count:
        raise ValueError(f"--f_coreset: {n} of {count} rows are to be kept; choose f so that at least one is")
    first_item, order = _first_items(index, count)
    rounded, first_distance = _rounded(rows, order, getattr(torch, dtype))
    chosen = farthest_first(rounded, first_distance, n, half=dtype == "float16", device=rows.device)
    return torch.from_numpy(first_item[chosen]).to(rows.device)


def _first_items(index: torch.Tensor | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest item of each row in use, ascending, and those rows: ties then go to the lowest item."""
    if index is None:
        return np.arange(count), np.arange(count)
    row, first_item = np.unique(index.cpu().numpy(), return_index=True)
    ascending = np.argsort(first_item)
    return first_item[ascending], row[ascending]


def _rounded(rows: torch.Tensor, order: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The rows in `order`, rounded to `dtype`, and their distances to the first, as float32 on the host."""
    rounded = np.empty((len(order), rows.shape[1]), np.float32)
    distance = np.empty(len(order), np.float32)
    precision = torch.promote_types(rows.dtype, torch.float32) if dtype == torch.float16 else dtype
    selection = torch.from_numpy(order)
    origin = rows[int(order[0])].to("cpu", precision)
    for start in range(0, len(order), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        values = rows[selection[part].to(rows.device)].to("cpu", precision)
        squares = (values - origin).double().square().sum(1).to(precision)
        root = np.sqrt(squares.numpy())  # correctly rounded, which torch's root on the CPU is not
        distance[part] = torch.from_numpy(root).to(dtype)
        rounded[part] = values.to(dtype)
    _check_range(rounded, distance, dtype)
    return rounded, distance


def _check_range(rounded: np.ndarray, distance: np.ndarray, dtype: torch.dtype) -> None:
    """Two rows are at most twice as far apart as the farther one is from item 0."""
    largest = min(torch.finfo(dtype).max, math.sqrt(torch.finfo(torch.float32).max))
    if not (np.isfinite(rounded).all() and 2 * float(distance.max()) < largest):
        remedy = "" if dtype == torch.float32 else "; --coreset_dtype float32 has more range"
        raise ValueError(
            f"coreset: features are NaN or infinite, or farther from the first than {largest / 2:g}{remedy}"
        )
