"""A made-up Eyecandies sample: a disc that floats above the ground, and the files of its download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.reference.eyecandies import plain_points

SIDE = 64
GROUND_Y, TOP_Y = 2.15, 2.03  # y points down
NEAREST, FARTHEST = 2.0, 5.0


def camera_pose(tilt_degrees: float = 45.0) -> np.ndarray:
    """A camera above the ground that looks at it at an angle, where Eyecandies' camera stands."""
    angle = np.radians(tilt_degrees)
    pose = np.eye(4)
    pose[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[1:3, 3] = -3 * np.sin(angle), 3 * np.cos(angle) + 0.1
    return pose


def scene(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (SIDE, SIDE) of a flat disc that floats above the ground, and the disc's pixels."""
    rays = plain_points(np.full((SIDE, SIDE), 2.0), pose) - plain_points(np.full((SIDE, SIDE), 1.0), pose)
    origin = plain_points(np.full((SIDE, SIDE), 1.0), pose) - rays
    rows, columns = np.mgrid[:SIDE, :SIDE]
    disc = (rows - 36) ** 2 + (columns - 30) ** 2 < 100
    return (np.where(disc, TOP_Y, GROUND_Y) - origin[..., 1]) / rays[..., 1], disc


def write_sample(data: Path, stem: str, defect: bool = False) -> None:
    data.mkdir(parents=True, exist_ok=True)
    pose = camera_pose()
    depth, _ = scene(pose)
    levels = ((depth - NEAREST) / (FARTHEST - NEAREST) * 65535).round().astype(np.uint16)
    Image.fromarray(levels).save(data / f"{stem}_depth.png")
    (data / f"{stem}_info_depth.yaml").write_text(f"normalization:\n  max: {FARTHEST}\n  min: {NEAREST}\n")
    np.savetxt(data / f"{stem}_pose.txt", pose)
    image = np.random.default_rng(int(stem)).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(image).save(data / f"{stem}_image_4.png")
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[36, 30] = 1 if defect else 0  # a single pixel of the lowest value
    Image.fromarray(mask).save(data / f"{stem}_mask.png")
