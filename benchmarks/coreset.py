"""Greedy k-centre coreset: exact lazy batches against one pass over all rows per chosen row.

python benchmarks/coreset.py                         # 8k rows in full; 75k rows, the plain form extrapolated
python benchmarks/coreset.py --full                  # 75k rows in full: about half an hour, indices compared
python benchmarks/coreset.py --rows 765000           # a whole class of xyz patches, the plain form extrapolated
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import torch

from benchmarks.timing import Comparison, compare, timed
from feature_extractors.memory_bank.coreset import CoresetDtype, greedy_coreset
from tests.reference.coreset import confirmed_steps, plain_greedy_coreset, torch_norm
from utils.resources import peak_memory_mb, reset_peak_memory

DIM = 334  # of the projection of 765k rows
SHARE = 0.1  # --f_coreset
EMPTY_SHARE = 0.7  # of the xyz patches of real parts
COMPARED_ROWS = 8000
PLAIN_STEPS = 12  # timed where the plain form is extrapolated
DTYPES: tuple[CoresetDtype, ...] = ("float16", "float32")


def run(num_rows: int = 75000, repeats: int = 1, full: bool = False) -> list[dict[str, Any]]:
    """Two sizes of two kinds of rows in both arithmetics; the plain form calls torch's norm, as the release.

    At the large size the plain form is timed for PLAIN_STEPS choices and multiplied up, unless `full`; each
    of its passes costs the same.
    """
    rows = []
    for make in (gaussian, part_like):
        for dtype in DTYPES:
            rows.append(_compared(make, COMPARED_ROWS, dtype, repeats))
            rows.append((_compared if full else _extrapolated)(make, num_rows, dtype, repeats))
    return rows


def gaussian(size: int) -> torch.Tensor:
    """Rows without structure, (size, DIM): the hardest kind, all distances are alike."""
    return torch.randn(size, DIM, generator=torch.Generator().manual_seed(0))


def part_like(size: int) -> torch.Tensor:
    """Rows as a part has them, (size, DIM): clusters on few dimensions, noise, and empty patches."""
    generator = torch.Generator().manual_seed(0)
    normal = partial(torch.randn, generator=generator)
    hidden = 2 * normal(40, 24)[torch.randint(40, (size,), generator=generator)] + normal(size, 24)
    rows = hidden @ normal(24, DIM) / 24**0.5 + 0.05 * normal(size, DIM)
    rows[torch.rand(size, generator=generator) < EMPTY_SHARE] = 0
    return rows


def peak_memory(function: Callable[[], Any]) -> str | None:
    """Memory that the function adds at its peak; None where the system does not tell."""
    if not reset_peak_memory():
        return None
    before = peak_memory_mb() or 0.0
    function()
    return f"{((peak_memory_mb() or 0.0) - before) / 1000:.2f} GB"


def _compared(
    make: Callable[[int], torch.Tensor], size: int, dtype: CoresetDtype, repeats: int
) -> dict[str, Any]:
    rows, n = make(size), int(SHARE * size)
    plain = partial(plain_greedy_coreset, rows, n, dtype=dtype, norm=torch_norm)
    result = compare(plain, partial(greedy_coreset, rows, n, dtype=dtype), repeats)
    return _row(result, make, rows, n, dtype, _exactness(rows, result, dtype))


def _exactness(rows: torch.Tensor, result: Comparison, dtype: CoresetDtype) -> str:
    """Against torch's norm, whose float32 sums depend on the processor, and against exact sums."""
    n = len(result.ours)
    confirmed = confirmed_steps(rows, result.ours, dtype=dtype)
    exact = "equal indices" if confirmed == n else f"only {confirmed} of {n} choices right"
    equal = int((result.plain == result.ours).sum())
    common = int(torch.isin(result.ours, result.plain).sum())
    return f"{exact}; of {n} with torch.norm's sums {equal} equal, {common} the same rows"


def _extrapolated(
    make: Callable[[int], torch.Tensor], size: int, dtype: CoresetDtype, repeats: int
) -> dict[str, Any]:
    rows, n = make(size), int(SHARE * size)
    plain = partial(plain_greedy_coreset, rows, dtype=dtype, norm=torch_norm)
    steps = min(n, PLAIN_STEPS + 1)
    once, more = timed(partial(plain, 1))[0], timed(partial(plain, steps))[0]
    result = compare(lambda: None, partial(greedy_coreset, rows, n, dtype=dtype), repeats)
    step = (more - once) / (steps - 1)
    result = Comparison(once + step * (n - 1), result.ours_seconds, None, result.ours)
    return _row(result, make, rows, n, dtype, f"plain extrapolated from {steps - 1} of {n - 1} choices")


def _row(
    result: Comparison,
    make: Callable[[int], torch.Tensor],
    rows: torch.Tensor,
    n: int,
    dtype: CoresetDtype,
    exactness: str,
) -> dict[str, Any]:
    row = result.row(f"coreset, {make.__name__}, {dtype}", f"{len(rows)} x {DIM} -> {n}", exactness)
    return row | {"peak_memory": peak_memory(partial(greedy_coreset, rows, n, dtype=dtype))}


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=75000, help="rows of the large size (default 75000)")
    parser.add_argument("--repeats", type=int, default=1, help="runs, of which the median counts")
    parser.add_argument("--full", action="store_true", help="run the plain form in full at the large size")
    args = parser.parse_args()
    for row in run(args.rows, args.repeats, args.full):
        print(row, flush=True)


if __name__ == "__main__":
    main()
