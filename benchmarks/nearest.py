"""Nearest bank row of one sample's patches: chunks, empty patches once, against the whole distance matrix.

python benchmarks/nearest.py                         # 3136 queries, half of them empty, 76k x 1152 bank
python benchmarks/nearest.py --rows 8000             # the bank of a tenth of the class
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import torch

from benchmarks.coreset import peak_memory
from benchmarks.timing import Comparison, compare
from feature_extractors.nearest import nearest_rows, squared_norms
from tests.plain_nearest import released_nearest
from utils.structures import Patches

PATCHES, DIM = 3136, 1152
EMPTY_SHARE = 0.5


def run(num_rows: int = 76000, repeats: int = 3) -> list[dict[str, Any]]:
    """One row for features without structure and one for clusters; the plain form's memory stands beside ours."""
    return [_row(structured, num_rows, repeats) for structured in (False, True)]


def _row(structured: bool, num_rows: int, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    bank = _features(num_rows, structured, generator)
    filled = round(PATCHES * (1 - EMPTY_SHARE))
    rows = torch.cat([torch.zeros(1, DIM), _features(filled, structured, generator)])
    patches = Patches(rows, (torch.arange(PATCHES) - (PATCHES - filled - 1)).clamp(min=0), side=56)
    squares, dense = squared_norms(bank), patches.dense()
    plain = partial(released_nearest, dense, bank)
    ours = partial(_nearest_patches, patches, bank, squares)
    result = compare(plain, ours, repeats)
    name = "clusters" if structured else "gaussian"
    size = f"{PATCHES} ({PATCHES - filled} empty) x {num_rows} x {DIM}"
    memory = f"{peak_memory(ours)} (plain {peak_memory(plain)})"
    return result.row(f"nearest bank row, {name}", size, _exactness(result)) | {"peak_memory": memory}


def _features(size: int, structured: bool, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(size, DIM, generator=generator)
    if not structured:
        return noise
    centers = torch.randn(200, DIM, generator=torch.Generator().manual_seed(1))
    return centers[torch.randint(200, (size,), generator=generator)] + 0.2 * noise


def _nearest_patches(
    patches: Patches, bank: torch.Tensor, squares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    distance, index = nearest_rows(patches.rows, bank, bank_squares=squares)
    return distance[patches.index], index[patches.index]


def _exactness(result: Comparison) -> str:
    equal = int((result.plain[1] == result.ours[1]).sum())
    error = float((result.plain[0] - result.ours[0]).abs().max())
    indices = "equal indices" if equal == PATCHES else f"{equal} of {PATCHES} indices equal"
    return f"{indices}, distances within {error:.0e}"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=76000, help="rows of the bank (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    args = parser.parse_args()
    for row in run(args.rows, args.repeats):
        print(row, flush=True)


if __name__ == "__main__":
    main()
