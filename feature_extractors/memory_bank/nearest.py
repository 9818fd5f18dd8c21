"""Nearest row of a memory bank: float32 products find the pairs that may be nearest, float64 decides."""

from __future__ import annotations

import torch

from feature_extractors.memory_bank.nearest_filter import make_filter
from feature_extractors.memory_bank.products import exact_squares, full_precision, rounded_up
from feature_extractors.memory_bank.screens import ProductScreen, Screen

DISTANCES_AT_ONCE = {"cpu": 2**21, "cuda": 2**28}  # entries of the (Q, n) matrix: 8 MB, 1 GB
QUERIES_AT_ONCE = {"cpu": 2**12, "cuda": 2**15}
ALIGNED_ROWS = 64  # MKL takes up to 1.4 times as long for products with odd numbers of columns


class NearestRows:
    """Search among the rows (n, D) of a bank, float32, float16 or float64; the latter are searched as float32.

    Distances are Euclidean and measured as differences in float64, so the row found is that of float64, the lowest
    row number on ties, and a bank row is at distance 0, not 0.005, from itself. Raises ValueError for an empty bank
    and for NaN or infinity.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(f"bank {tuple(rows.shape)}: it has no rows; fit it with at least one sample")
        products = ProductScreen(rows)
        if not torch.isfinite(products.squares).all():
            raise ValueError("bank: NaN or infinite features have no nearest row")
        self.rows = rows
        self._screen: Screen = make_filter(products) or products

    def nearest(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance (Q,) float32 of each query to its nearest bank row, and that row's number (Q,) int64.

        query (Q, D) is of a type that rows may have, on the bank's device. Memory grows with DISTANCES_AT_ONCE,
        not with n. Raises ValueError for shapes that do not fit, and for NaN or infinity.
        """
        if query.ndim != 2 or query.shape[1] != self.rows.shape[1]:
            raise ValueError(
                f"query {tuple(query.shape)} and bank {tuple(self.rows.shape)} must be (Q, D) and (n, D)"
            )
        device = query.device.type
        with full_precision(device):
            found = [self._nearest_of_chunk(part.float()) for part in query.split(QUERIES_AT_ONCE[device])]
        squares, row_number = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not torch.isfinite(squares).all():
            raise ValueError("query: NaN or infinite features have no nearest row")
        return squares.sqrt().float(), row_number

    def around(self, row: int, count: int) -> torch.Tensor:
        """Numbers (count,) of the bank rows nearest to row number `row`, itself first; the lowest on ties."""
        query = self.rows[row : row + 1].float()
        with full_precision(query.device.type):
            bounds = self._screen.lower_bounds(query)
        bounds[row] = -1
        limit = self._squares(query, torch.topk(bounds, count, largest=False).indices).max()
        row_number = (bounds <= rounded_up(limit)).nonzero()[:, 0]  # ascending
        squares = self._squares(query, row_number)
        squares[row_number == row] = -1
        return row_number[squares.argsort(stable=True)[:count]]

    def _nearest_of_chunk(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distance (Q,) float64 to the nearest bank row, and its number (Q,)."""
        queries = self._screen.prepare(query)
        best = query.new_full((len(query),), torch.inf, dtype=torch.float64)
        best_row = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        size = _rows_at_once(query)
        for start in range(0, len(self.rows), size):
            block = slice(start, start + size)
            rows = self.rows[block].float()
            pairs = queries.pairs(block, rows, rounded_up(best))
            squares = exact_squares(query, rows, pairs)
            query_number, row_number = pairs
            nearest = best.scatter_reduce(0, query_number, squares, "amin")
            won = (squares == nearest[query_number]) & (squares < best[query_number])
            lowest = torch.full_like(best_row, len(self.rows)).scatter_reduce(
                0, query_number[won], row_number[won] + start, "amin"
            )
            best_row = torch.where(nearest < best, lowest, best_row)
            best = nearest
        return best, best_row

    def _squares(self, query: torch.Tensor, row_number: torch.Tensor) -> torch.Tensor:
        """Squared distances (r,) float64 of one query (1, D) to bank rows by their numbers (r,)."""
        rows = self.rows[row_number].float()
        each = torch.arange(len(rows), device=rows.device)
        return exact_squares(query, rows, (torch.zeros_like(each), each))


def _rows_at_once(query: torch.Tensor) -> int:
    size = max(1, DISTANCES_AT_ONCE[query.device.type] // max(1, len(query)))
    return size - size % ALIGNED_ROWS if size > ALIGNED_ROWS else size
