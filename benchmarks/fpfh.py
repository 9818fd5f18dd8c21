"""FPFH features of one cloud, normals included: Open3D on one thread against ours, which has one by design.

python benchmarks/fpfh.py                            # wavy clouds of about 7k, 13k and 20k points
python benchmarks/fpfh.py --points 50000
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ["OMP_NUM_THREADS"] = "1"  # read when Open3D is loaded

from benchmarks.timing import compare
from models.fpfh.descriptors import fpfh_features
from tests.reference.fpfh import open3d_fpfh, wavy_cloud

COVERED = 0.2 * math.pi  # share of a wavy cloud's pixels that hold a point


def run(num_points: tuple[int, ...] = (7000, 13000, 20000), repeats: int = 7) -> list[dict[str, Any]]:
    """One row a size; ImportError with the remedy where Open3D cannot be imported."""
    return [_row(wavy_cloud(round(math.sqrt(size / COVERED))), repeats) for size in num_points]


def _row(points: np.ndarray, repeats: int) -> dict[str, Any]:
    result = compare(lambda: open3d_fpfh(points), lambda: fpfh_features(points), repeats)
    differing = (result.plain != result.ours).any(axis=1).mean()
    exactness = "equal to the last bit" if differing == 0 else f"{differing:.2%} of the points DIFFER"
    return result.row("FPFH, plain = Open3D on one thread", f"{len(points)} points", exactness)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--points", type=int, nargs="+", default=[7000, 13000, 20000], help="sizes of the clouds"
    )
    parser.add_argument("--repeats", type=int, default=7, help="runs, of which the median counts")
    args = parser.parse_args()
    for row in run(tuple(args.points), args.repeats):
        print(row)


if __name__ == "__main__":
    main()
