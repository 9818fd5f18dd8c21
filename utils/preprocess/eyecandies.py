"""The geometry of Eyecandies: from a rendered depth image to the organised cloud of the object alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from utils.files import in_short
from utils.image_files import SampleFileError, check_png_pixels

FOCAL_LENGTH_PX, FOCAL_LENGTH_WIDTH = 711.11, 512  # Eyecandies' camera, at the width that it renders
DEPTH_LEVELS = 65535  # of a 16-bit png
GROUND_CLEARANCE = 0.02  # the crop of M3DM's release, in the scene's units, with the ground turned horizontal
FARTHEST_FROM_FRONT = 1.8
FARTHEST_ASIDE = 1.0
METRES_PER_UNIT = 0.1
ON_AXIS_M = 1e-12  # stands for a coordinate of exactly 0, by which readers recognise missing points


def read_depth(path: Path, limits_path: Path) -> np.ndarray:
    """Depth along the optical axis, (H, W) float64 in the scene's units; the yaml file has its limits.

    Raises SampleFileError.
    """
    try:
        content = path.read_bytes()
        check_png_pixels(content)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            mode, levels = image.mode, np.array(image, dtype=np.float64)
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise SampleFileError(path, f"can't be read as a png ({in_short(error)})") from error
    if not mode.startswith("I"):  # Pillow's modes of 16 bits and more
        raise SampleFileError(path, f"has mode {mode}, expected one channel of 16 bits")
    nearest, farthest = _depth_range(limits_path)
    return levels / DEPTH_LEVELS * (farthest - nearest) + nearest


def read_pose(path: Path) -> np.ndarray:
    """The camera's pose, an invertible matrix (4, 4). Raises SampleFileError."""
    try:
        pose = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except Exception as error:  # damaged bytes may raise anything
        raise SampleFileError(path, f"can't be read as a matrix ({in_short(error)})") from error
    if pose.shape != (4, 4) or not np.isfinite(pose).all() or abs(np.linalg.det(pose)) < 1e-9:
        raise SampleFileError(path, f"holds no invertible 4x4 matrix but one of shape {pose.shape}")
    return pose


def unproject(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """World points (H, W, 3) of a depth image (H, W): depth * inv(K T) [u, v, 1, 1/depth], T = pose (4, 4)."""
    height, width = depth.shape
    back = np.linalg.inv(intrinsics(height, width) @ pose)[:3]
    u, v = np.arange(width), np.arange(height)[:, None]
    return np.stack([depth * (a * u + (b * v + c)) + d for a, b, c, d in back], axis=-1)


def intrinsics(height: int, width: int) -> np.ndarray:
    """The pinhole camera K (4, 4), principal point in the middle; another width is the same view resampled."""
    focal = FOCAL_LENGTH_PX * width / FOCAL_LENGTH_WIDTH
    camera = np.eye(4)
    camera[0, 0] = camera[1, 1] = focal
    camera[:2, 2] = width / 2, height / 2
    return camera


def object_pixels(points: np.ndarray) -> np.ndarray:
    """Which pixels (H, W) of a scene (H, W, 3) show the object: above the ground, not beside or behind.

    The ground runs through the middle of the first and of the last image row; y points down, and heights and
    distances are taken from the last row's point after a rotation about x that makes the ground horizontal.
    """
    middle = points.shape[1] // 2
    back, front = points[0, middle], points[-1, middle]
    run, rise = back[2] - front[2], back[1] - front[1]
    cos, sin = np.array([run, rise]) / np.hypot(run, rise)
    down, away = points[..., 1] - front[1], points[..., 2] - front[2]
    on_ground = cos * down - sin * away > -GROUND_CLEARANCE
    behind = sin * down + cos * away > FARTHEST_FROM_FRONT
    return ~(on_ground | behind | (np.abs(points[..., 0]) > FARTHEST_ASIDE))


def object_cloud(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Organised cloud (H, W, 3) float32 in metres, axes as in MVTec 3D-AD, (0, 0, 0) wherever no object is."""
    points = unproject(depth, pose)
    kept = object_pixels(points)
    turned = points[kept][:, [0, 2, 1]] * (METRES_PER_UNIT, -METRES_PER_UNIT, METRES_PER_UNIT)
    cloud = np.zeros(points.shape, dtype=np.float32)
    cloud[kept] = np.where(turned == 0, ON_AXIS_M, turned)
    return cloud


def _depth_range(path: Path) -> tuple[float, float]:
    try:
        text = path.read_text(encoding="utf-8")
        limits = yaml.load(text, Loader=yaml.BaseLoader)[
            "normalization"
        ]  # scalars stay text, nothing is expanded
        nearest, farthest = float(limits["min"]), float(limits["max"])
    except Exception as error:  # damaged text may raise anything in a decoder
        raise SampleFileError(path, f"gives no normalization with min and max ({in_short(error)})") from error
    if not 0 < nearest <= farthest < np.inf:
        raise SampleFileError(path, f"has min {nearest} and max {farthest}, expected 0 < min <= max")
    return nearest, farthest
