"""Geometry of one cloud: farthest point sampling, neighbour groups and PFA against their plain forms.

python benchmarks/geometry.py                        # 20k points, 1024 groups of 128, 1152 channels
python benchmarks/geometry.py --points 50000
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.timing import compare
from models.alignment import Interpolation, align, alignment_operator
from models.point_transformer.point_ops import farthest_points, group_points
from tests.reference.alignment import plain_patches
from tests.reference.point_ops import plain_farthest_points, plain_neighbors, wavy_surface

IMAGE_SIZE, SIDE, CHANNELS = 224, 56, 1152


def run(
    num_points: int = 20000, num_group: int = 1024, group_size: int = 128, repeats: int = 5
) -> list[dict[str, Any]]:
    """One row a part."""
    points = wavy_surface(num_points)
    center_index = farthest_points(points, num_group)
    return [
        _sampling_row(points, num_group, repeats),
        _grouping_row(points, num_group, group_size, repeats),
        *(_alignment_row(points, points[center_index], name, repeats) for name in get_args(Interpolation)),
    ]


def _sampling_row(points: np.ndarray, num_group: int, repeats: int) -> dict[str, Any]:
    result = compare(
        lambda: plain_farthest_points(points, num_group), lambda: farthest_points(points, num_group), repeats
    )
    exactness = "equal indices" if np.array_equal(result.plain, result.ours) else "indices DIFFER"
    return result.row("farthest point sampling", f"{len(points)} -> {num_group}", exactness)


def _grouping_row(points: np.ndarray, num_group: int, group_size: int, repeats: int) -> dict[str, Any]:
    """Groups with their sampling on our side, neighbours of given centres on the plain side."""
    centers = points[farthest_points(points, num_group)]
    result = compare(
        lambda: points[plain_neighbors(points, centers, group_size)] - centers[:, None],
        lambda: group_points(points, num_group, group_size).groups,
        repeats,
    )
    plain, ours = (
        np.linalg.norm(groups.astype(np.float64), axis=2).max(1) for groups in (result.plain, result.ours)
    )
    exactness = (
        "equal radii" if np.array_equal(plain, ours) else f"radii within {np.abs(plain - ours).max():.0e} m"
    )
    return result.row("groups (sampling + kNN)", f"{num_group} x {group_size} of {len(points)}", exactness)


def _alignment_row(
    points: np.ndarray, centers: np.ndarray, interpolation: Interpolation, repeats: int
) -> dict[str, Any]:
    pixel_index = np.arange(len(points)) + (IMAGE_SIZE**2 - len(points)) // 2
    tokens = torch.randn(len(centers), CHANNELS, generator=torch.Generator().manual_seed(0))
    place = partial(
        alignment_operator, points, pixel_index, centers, image_size=IMAGE_SIZE, side=SIDE,
        interpolation=interpolation,
    )  # fmt: skip
    plain = partial(plain_patches, points, pixel_index, centers, image_size=IMAGE_SIZE, side=SIDE)
    result = compare(lambda: plain(tokens=tokens), lambda: align(place(), tokens).dense(), repeats)
    exact = plain(tokens=tokens.double())
    errors = [float((patches - exact).abs().max()) for patches in (result.ours, result.plain)]
    size = f"{len(points)} points, {len(centers)} x {CHANNELS} -> {SIDE**2}"
    return result.row(
        f"PFA, {interpolation} distances", size, f"error {errors[0]:.0e}, plain {errors[1]:.0e}"
    )


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=20000, help="points of the cloud (default %(default)s)")
    parser.add_argument("--groups", type=int, default=1024, help="groups (default %(default)s)")
    parser.add_argument("--group_size", type=int, default=128, help="points a group (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the median counts")
    args = parser.parse_args()
    for row in run(args.points, args.groups, args.group_size, args.repeats):
        print(row)


if __name__ == "__main__":
    main()
