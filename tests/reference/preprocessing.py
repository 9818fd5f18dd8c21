"""The released way of preprocessing, with Open3D's functions, and scenes to try it on.

Open3D is optional: its wheel needs system libraries that not every machine has. `OPEN3D` is None without them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

try:
    import open3d

    OPEN3D: Any = open3d
except (ImportError, OSError):
    OPEN3D = None

PLANE_NORMAL = np.array([-0.11, 0.35, 0.93]) / np.linalg.norm([-0.11, 0.35, 0.93])
PLANE_DEPTH_M = 0.61


def plain_plane(cloud: np.ndarray) -> np.ndarray:
    """Open3D's RANSAC plane (4,) of the border strips of a cloud (H, W, 3)."""
    border = np.concatenate(
        [strip.reshape(-1, 3) for strip in (cloud[:10], cloud[-10:], cloud[:, :10], cloud[:, -10:])]
    )
    border = border[np.all(border != 0, axis=1)]
    points = OPEN3D.geometry.PointCloud(OPEN3D.utility.Vector3dVector(border))
    plane, _ = points.segment_plane(distance_threshold=0.004, ransac_n=50, num_iterations=1000)
    return np.asarray(plane)


def plain_dbscan(points: np.ndarray, eps: float, min_points: int) -> np.ndarray:
    """Open3D's DBSCAN labels (N,) of points (N, 3)."""
    cloud = OPEN3D.geometry.PointCloud(OPEN3D.utility.Vector3dVector(points))
    return np.array(cloud.cluster_dbscan(eps=eps, min_points=min_points))


def plain_preprocess_sample(
    cloud: np.ndarray, image: np.ndarray, plane: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed cloud and image, in the released order of steps; `plane` replaces the one of RANSAC."""
    plane = plain_plane(cloud) if plane is None else plane
    points, colors = cloud.reshape(-1, 3).copy(), image.reshape(-1, 3).copy()
    distance = np.abs(np.hstack([points, np.ones((len(points), 1))]) @ plane)
    points[distance < 0.005] = 0
    colors[distance < 0.005] = 0
    cloud, image = _plain_pad(points.reshape(cloud.shape)), _plain_pad(colors.reshape(image.shape))

    points, colors = cloud.reshape(-1, 3), image.reshape(-1, 3)
    existing = np.nonzero(np.all(points != 0, axis=1))[0]
    labels = plain_dbscan(points[existing], eps=0.006, min_points=30)
    found, sizes = np.unique(labels, return_counts=True)
    other = existing[labels != found[np.argmax(sizes)]]
    points[other] = 0
    colors[other] = 0
    return cloud, image


def _plain_pad(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = max(math.ceil(height / 100) * 100, math.ceil(width / 100) * 100)
    padded = np.zeros((side, side, 3), dtype=pixels.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = pixels
    return padded


def make_scene(
    height: int, width: int, rng: np.random.Generator, stray_blob: bool = False, pitch: float = 1.5e-3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw cloud, image and the mask (H, W) of the part: a plateau in the middle of a tilted background plane.

    `pitch` is the distance of neighbouring pixels' points in metres; one pixel in fifty has no measurement.
    `stray_blob` adds a smaller object towards a corner.
    """
    side = min(height, width)
    v, u = np.mgrid[:height, :width]
    u, v = u - width / 2 + 0.25, v - height / 2 + 0.25  # never 0, which would mean no point
    x, y = u * pitch, v * pitch
    z = (PLANE_DEPTH_M - PLANE_NORMAL[0] * x - PLANE_NORMAL[1] * y) / PLANE_NORMAL[2]
    z += rng.normal(0, 2e-4, z.shape)
    part = np.hypot(u, v) < 0.25 * side
    z[part] -= 0.02
    if stray_blob:
        z[np.hypot(u + 0.32 * side, v + 0.32 * side) < 0.1 * side] -= 0.03
    cloud = np.stack([x, y, z], axis=2).astype(np.float32)
    cloud[rng.random((height, width)) < 0.02] = 0
    image = rng.integers(1, 256, (height, width, 3), dtype=np.uint8)
    return cloud, image, part
