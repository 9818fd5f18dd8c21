"""All metrics of a class: one sort and searches against Python lists and walks through regions and thresholds.

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

from benchmarks.timing import Comparison, compare
from tests.reference.metrics import plain_metrics, plain_pixel_metrics
from utils.metrics import METRICS, Predictions

SIDE = 224
DEFECTIVE_SHARE = 0.8
REGIONS = 2  # of a defective sample
REGION_SIDE = (8, 40)  # pixels


def run(maps: int = 110, repeats: int = 3) -> list[dict[str, Any]]:
    """Rows: the two pixel metrics of the release, then all metrics, over all pixels of `maps` test samples."""
    masks, scores = generated(maps)
    labels, image_scores = np.asarray(masks.any(axis=(1, 2))), scores.max(axis=(1, 2))
    size = f"{maps} maps of {SIDE} x {SIDE}"

    def ours(keys: tuple[str, ...]) -> list[float | None]:
        predictions = Predictions(labels, image_scores, masks, scores)
        return [metric.function(predictions) for metric in METRICS if metric.key in keys]

    released = compare(
        partial(plain_pixel_metrics, masks, scores), partial(ours, ("pixel_rocauc", "au_pro")), repeats
    )
    every = compare(
        lambda: list(plain_metrics(labels, image_scores, masks, scores).values()),
        partial(ours, tuple(metric.key for metric in METRICS)),
        repeats=1,  # the plain form takes most of a minute
    )
    return [
        released.row("pixel ROC AUC + AU-PRO", size, _difference(released)),
        every.row(f"all {len(METRICS)} metrics", size, _difference(every)),
    ]


def _difference(result: Comparison) -> str:
    return f"within {max(abs(a - b) for a, b in zip(result.ours, result.plain, strict=True)):.0e}"


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
