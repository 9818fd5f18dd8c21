"""Pixel ROC AUC and AU-PRO of a class: one sort and searches against Python lists and walks through regions.

python benchmarks/metrics.py                         # 110 maps of 224 x 224, as a class has them
python benchmarks/metrics.py --maps 20
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.timing import compare
from tests.reference.metrics import plain_pixel_metrics
from utils.metrics import pixel_metrics

SIDE = 224
DEFECTIVE_SHARE = 0.8
REGIONS = 2  # of a defective sample
REGION_SIDE = (8, 40)  # pixels


def run(maps: int = 110, repeats: int = 3) -> list[dict[str, Any]]:
    """One row: both metrics over all pixels of `maps` test samples."""
    masks, scores = generated(maps)
    result = compare(
        partial(plain_pixel_metrics, masks, scores), partial(pixel_metrics, masks, scores), repeats
    )
    found = result.ours.pixel_rocauc, result.ours.au_pro
    errors = [abs(a - b) for a, b in zip(found, result.plain, strict=True)]
    size = f"{maps} maps of {SIDE} x {SIDE}"
    return [result.row("pixel ROC AUC + AU-PRO", size, f"within {errors[0]:.0e} and {errors[1]:.0e}")]


def generated(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n, S, S) bool with rectangular defects, and blurred noise that is larger in them, float32."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, SIDE, SIDE), dtype=bool)
    for mask in masks[: round(DEFECTIVE_SHARE * count)]:
        for _ in range(REGIONS):
            height, width = rng.integers(*REGION_SIDE, size=2)
            top, left = rng.integers(0, SIDE - REGION_SIDE[1], size=2)
            mask[top : top + height, left : left + width] = True
    noise = rng.standard_normal(masks.shape) + 2 * masks
    return masks, np.stack([gaussian_filter(image, 4) for image in noise]).astype(np.float32)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=110, help="test samples (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    args = parser.parse_args()
    for row in run(args.maps, args.repeats):
        print(row)


if __name__ == "__main__":
    main()
