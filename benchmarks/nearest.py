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
from feature_extractors.memory_bank.nearest import NearestRows
from tests.reference.nearest import released_nearest
from utils.structures import Patches

PATCHES, DIM = 3136, 1152
EMPTY_SHARE = 0.5
SURFACE_DIM = 6


def run(num_rows: int = 76000, repeats: int = 3) -> list[dict[str, Any]]:
    """One row a kind of features; the plain form's memory stands beside ours."""
    return [_row(kind, num_rows, repeats) for kind in FEATURES]


def _row(kind: str, num_rows: int, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    bank = FEATURES[kind](num_rows, generator)
    filled = round(PATCHES * (1 - EMPTY_SHARE))
    rows = torch.cat([torch.zeros(1, DIM), FEATURES[kind](filled, generator)])
    patches = Patches(rows, (torch.arange(PATCHES) - (PATCHES - filled - 1)).clamp(min=0), side=56)
    plain = partial(released_nearest, patches.dense(), bank)
    ours = partial(_nearest_patches, patches, NearestRows(bank))
    result = compare(plain, ours, repeats)
    size = f"{PATCHES} ({PATCHES - filled} empty) x {num_rows} x {DIM}"
    memory = f"{peak_memory(ours)} (plain {peak_memory(plain)})"
    return result.row(f"nearest bank row, {kind}", size, _exactness(result)) | {"peak_memory": memory}


def _gaussian(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(size, DIM, generator=generator)


def _clusters(size: int, generator: torch.Generator) -> torch.Tensor:
    centers = torch.randn(200, DIM, generator=torch.Generator().manual_seed(1))
    chosen = torch.randint(200, (size,), generator=generator)
    return centers[chosen] + 0.2 * _gaussian(size, generator)


def _on_a_surface(size: int, generator: torch.Generator) -> torch.Tensor:
    """Near a curved surface of few dimensions, as the patches of one kind of part are."""
    seeds = torch.Generator().manual_seed(1)
    bend, spread = torch.randn(SURFACE_DIM, 256, generator=seeds), torch.randn(256, DIM, generator=seeds)
    position = torch.randn(size, SURFACE_DIM, generator=generator)
    return torch.sin(position @ bend / SURFACE_DIM**0.5) @ spread / 16 + 0.1 * _gaussian(size, generator)


FEATURES = {"gaussian": _gaussian, "clusters": _clusters, "on a surface": _on_a_surface}


def _nearest_patches(patches: Patches, bank: NearestRows) -> tuple[torch.Tensor, torch.Tensor]:
    distance, row_number = bank.nearest(patches.rows)
    return distance[patches.row_of_patch], row_number[patches.row_of_patch]


def _exactness(result: Comparison) -> str:
    equal = int((result.plain[1] == result.ours[1]).sum())
    error = float((result.plain[0] - result.ours[0]).abs().max())
    rows = "equal rows" if equal == PATCHES else f"{equal} of {PATCHES} rows equal"
    return f"{rows}, distances within {error:.0e}"


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
