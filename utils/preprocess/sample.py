"""One sample of MVTec 3D-AD without its background: plane removed, padded to a square, largest cluster kept.

Steps and distances are those of the released preprocessing (3D-ADS, arXiv 2203.05550).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import NamedTuple, TypeVar

import numpy as np

from utils.plausibility import Unit
from utils.preprocess.clustering import dbscan
from utils.preprocess.plane import plane_distance, ransac_plane

BORDER_PIXELS = 10  # width of the strips that show the background only
POINTS_OF_A_PLANE = 3
SIDE_MULTIPLE = 100  # pixels
MILLIMETRES_A_METRE = np.float32(1000)
NO_PLANE, NO_POINTS, SCATTERED = "no background plane", "no points", "mostly scattered points"

Number = TypeVar("Number", int, float)


def _parameter(default: Number, text: str) -> Number:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Parameters:
    """What decides the result beside the data; ValueError where one is not above 0 (the seed: not below)."""

    plane_distance: float = _parameter(0.004, "points nearer than this, in m, support a RANSAC plane")
    plane_draw_size: int = _parameter(50, "points in a RANSAC draw")
    plane_draws: int = _parameter(1000, "most RANSAC draws")
    background_distance: float = _parameter(
        0.005, "points nearer to the plane than this, in m, are background"
    )
    cluster_eps: float = _parameter(0.006, "points nearer than this, in m, are DBSCAN neighbours")
    cluster_min_points: int = _parameter(30, "neighbours that make a DBSCAN core point")
    seed: int = _parameter(0, "seed of the RANSAC draws")

    def __post_init__(self) -> None:
        for item in fields(self):
            value, zero = getattr(self, item.name), item.name == "seed"
            if not (0 < value < math.inf or (zero and value == 0)):
                raise ValueError(f"--{item.name} {value}: must {'not be below' if zero else 'be above'} 0")
        if self.plane_draw_size < POINTS_OF_A_PLANE:
            raise ValueError(
                f"--plane_draw_size {self.plane_draw_size}: a plane takes {POINTS_OF_A_PLANE} points"
            )


class Report(NamedTuple):
    """What was found in a sample: existing points kept and dropped as other clusters, plane, oddities by kind."""

    kept: int
    dropped: int
    plane: list[float] | None
    odd: dict[str, str]


def preprocess_sample(
    cloud: np.ndarray, image: np.ndarray, parameters: Parameters, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Report]:
    """Cloud (S, S, 3) float32 and image (S, S, 3) uint8 of the part alone, from (H, W, 3) each; zero elsewhere.

    Points of the background and of smaller clusters become zero in both; pixels without a measurement keep their
    colour. Points that are not finite count as not measured. An empty cloud stays empty, a cloud without a
    plane keeps all its points for the clustering; both are reported.
    """
    cloud, image, odd = cloud.copy(), image.copy(), {}
    broken = ~np.isfinite(cloud).all(axis=2)
    if broken.any():
        cloud[broken] = 0
        odd["points not finite"] = f"{broken.sum()} taken as not measured"
    plane = background_plane(cloud, parameters, rng)
    if plane is not None:
        near = plane_distance(cloud.reshape(-1, 3), plane) < parameters.background_distance
        _erase(near.reshape(broken.shape) & cloud.any(axis=2), cloud, image)
    elif cloud.any():
        odd[NO_PLANE] = f"less than {parameters.plane_draw_size} points at the border, or in a line"
    kept, dropped = _keep_largest_cluster(cloud, image, parameters, odd)
    report = Report(kept, dropped, None if plane is None else plane.tolist(), odd)
    return pad_to_square(cloud), pad_to_square(image), report


def in_metres(cloud: np.ndarray, unit: Unit) -> np.ndarray:
    """The cloud (H, W, 3) float32 in metres; points that are missing stay (0, 0, 0)."""
    return cloud / MILLIMETRES_A_METRE if unit == "mm" else cloud


def background_plane(
    cloud: np.ndarray, parameters: Parameters, rng: np.random.Generator
) -> np.ndarray | None:
    """Plane (4,) of the points in the four border strips of a cloud (H, W, 3); see `plane.ransac_plane`."""
    b = BORDER_PIXELS
    strips = [cloud[:b], cloud[-b:], cloud[:, :b], cloud[:, -b:]]  # corners count twice, as released
    border = np.concatenate([strip.reshape(-1, 3) for strip in strips])
    border = border[border.all(axis=1)]
    return ransac_plane(
        border, parameters.plane_distance, parameters.plane_draw_size, parameters.plane_draws, rng
    )


def pad_to_square(pixels: np.ndarray) -> np.ndarray:
    """Zeros around (H, W) or (H, W, C), the smaller half first; side: the larger of H and W rounded up to 100."""
    side = square_side((pixels.shape[0], pixels.shape[1]))
    missing = [side - length for length in pixels.shape[:2]] + [0] * (pixels.ndim - 2)
    return np.pad(pixels, [(count // 2, count - count // 2) for count in missing])


def crop_from_square(square: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What `pad_to_square` padded: (S, S) or (S, S, C) -> the (H, W) pixels in it."""
    top, left = ((len(square) - length) // 2 for length in shape)
    return square[top : top + shape[0], left : left + shape[1]]


def square_side(shape: tuple[int, int]) -> int:
    """The larger of H and W rounded up to the next multiple of 100."""
    return -(-max(shape) // SIDE_MULTIPLE) * SIDE_MULTIPLE


def _keep_largest_cluster(
    cloud: np.ndarray, image: np.ndarray, parameters: Parameters, odd: dict[str, str]
) -> tuple[int, int]:
    """Erase all but the largest label, of which noise is one, as released; the points kept and dropped."""
    existing = cloud.all(axis=2)
    if not existing.any():
        odd[NO_POINTS] = "nothing above the background plane" if cloud.any() else "nothing measured"
        return 0, 0
    labels = dbscan(cloud[existing], parameters.cluster_eps, parameters.cluster_min_points)
    found, sizes = np.unique(labels, return_counts=True)
    largest, kept = int(found[np.argmax(sizes)]), int(sizes.max())
    clusters = int(np.count_nonzero(found >= 0))
    if largest < 0:
        odd[SCATTERED] = f"{kept} points of no cluster kept, {clusters} clusters dropped"
    elif clusters > 1:
        odd["several clusters"] = f"{clusters} clusters: {kept} points kept, {len(labels) - kept} dropped"
    other = np.zeros_like(existing)
    other[existing] = labels != largest
    _erase(other, cloud, image)
    return kept, len(labels) - kept


def _erase(where: np.ndarray, cloud: np.ndarray, image: np.ndarray) -> None:
    cloud[where] = 0
    image[where] = 0
