"""A lower bound on the distances to a memory bank from a tenth of the dims, where the bank has structure.

In the bank's principal directions, with the length of what lies outside them as one more coordinate, no pair is
farther apart than in full: |q - b|^2 = |Pq - Pb|^2 + |q' - b'|^2 >= |Pq - Pb|^2 + (|q'| - |b'|)^2. Few bank rows
are nearer than that to a patch, so products of all dims are hardly needed. The bound is exact; where rows have no
structure it is loose, and there is no filter for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FLOAT32_ROUNDOFF = 2.0**-24
SMALLEST = 2.0**-126  # normal float32; smaller products are inexact or 0
DIRECTIONS = 127  # with the rest's length 128 coordinates; below 2 pairs a patch are left on real features
MIN_EXPLAINED = 0.5  # share of a bank's variance in its directions; 0.2 in rows of noise
MIN_ROWS = 1024  # products with fewer rows cost less than the filter
ROWS_OF_BASIS = 4096  # enough to find the directions; any directions are right
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class BankFilter:
    """Principal directions basis (D, k) float64 and mean (D,) of a bank; its `bounded` rows (n, k + 1)."""

    mean: torch.Tensor
    basis: torch.Tensor
    rows: torch.Tensor
    squares: torch.Tensor

    def bounded(self, rows: torch.Tensor) -> torch.Tensor:
        """Coordinates (R, k + 1) float32 of rows (R, D), in which distances are lower bounds."""
        return torch.cat([_bounded(part, self.mean, self.basis) for part in rows.split(ROWS_AT_ONCE)])

    def squared_distances(self, bounded: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower bounds of squared distances, from `bounded` (Q, k + 1) to the bank's `part`, as two terms.

        Returns shifted (Q, n) and shift (Q,): shifted - shift is no more than the squared distance.
        """
        shifted = torch.addmm(self.squares[part], bounded, self.rows[part].T, alpha=-2)
        squares = bounded.square().sum(1)
        # the sums' rounding as in `possible_nearest`, and that of the coordinates, at most 10 units each
        unit = FLOAT32_ROUNDOFF * (squares + self.squares.max()) + SMALLEST
        error = 2 * (bounded.shape[1] + 32) * unit
        return shifted, error - squares


def make_filter(bank: torch.Tensor, mean: torch.Tensor) -> BankFilter | None:
    """The filter of a bank (n, D) with mean (D,); None for one that is small, without structure, or on a GPU."""
    if bank.device.type != "cpu" or len(bank) < MIN_ROWS or bank.shape[1] <= 2 * DIRECTIONS:
        return None
    centred = bank[:: -(-len(bank) // ROWS_OF_BASIS)].float() - mean
    variance, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    if not variance[-DIRECTIONS:].sum() >= MIN_EXPLAINED * variance.sum():
        return None
    basis = torch.linalg.qr(directions[:, -DIRECTIONS:].double()).Q  # orthonormal to float64's last digits
    rows = torch.cat([_bounded(part, mean, basis) for part in bank.split(ROWS_AT_ONCE)])
    return BankFilter(mean, basis, rows, rows.square().sum(1))


def _bounded(rows: torch.Tensor, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    centred = rows.double() - mean
    inside = centred @ basis
    rest = (centred.square().sum(1) - inside.square().sum(1)).clamp(min=0).sqrt()
    return torch.cat([inside, rest[:, None]], dim=1).float()
