"""Pictures of predictions: maps in colors, over images and on clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
import torch
from matplotlib import colormaps
from plyfile import PlyData, PlyElement
from scipy.ndimage import binary_dilation

from utils.files import atomic_path
from utils.image_files import write_png

COLOR_MAP = "jet"  # the field's habit
OVERLAY = 0.5  # share of the map's colors over the image
CONTOUR_COLOR = (255, 255, 255)
PLY_VERTEX = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]


def resize_map(anomaly_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bring a map (S, S) to `shape` (H, W), bilinear, as float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(anomaly_map, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(tensor, size=shape, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Write a map as a float32 tiff."""
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, anomaly_map.astype(np.float32))


def colored(anomaly_map: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Colors (H, W, 3) uint8 of a map (H, W); `limits`: the scores that get the first and the last color."""
    low, high = limits
    span = max(high - low, float(np.finfo(np.float32).tiny))
    relative = np.clip((anomaly_map - low) / span, 0, 1)
    return (colormaps[COLOR_MAP](relative)[..., :3] * 255).astype(np.uint8)


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, limits: tuple[float, float], threshold: float | None = None
) -> np.ndarray:
    """The map's colors (H, W) over an image (H, W, 3) uint8, with the contour of what lies above the threshold."""
    mixed = (OVERLAY * colored(anomaly_map, limits) + (1 - OVERLAY) * image).astype(np.uint8)
    if threshold is not None:
        above = anomaly_map > threshold
        mixed[binary_dilation(above) & ~above] = CONTOUR_COLOR
    return mixed


def write_picture(
    path: Path,
    image: np.ndarray,
    mask: np.ndarray | None,
    anomaly_map: np.ndarray,
    limits: tuple[float, float],
) -> None:
    """Write image (H, W, 3) uint8, mask (H, W) bool, where it is known, and map (H, W) as one png.

    `limits`: see `colored`; the same for a whole class, so that its pictures can be compared.
    """
    truth = [] if mask is None else [np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255]
    write_png(path, np.concatenate([image, *truth, overlay(image, anomaly_map, limits)], axis=1))


def write_colored_cloud(path: Path, cloud: np.ndarray, colors: np.ndarray) -> None:
    """Write the measured points of a cloud (H, W, 3) with their colors (H, W, 3) uint8 as a binary PLY."""
    measured = (cloud != 0).any(axis=2)
    vertices = np.empty(np.count_nonzero(measured), dtype=PLY_VERTEX)
    for i, name in enumerate("xyz"):
        vertices[name] = cloud[measured, i]
    for i, name in enumerate(("red", "green", "blue")):
        vertices[name] = colors[measured, i]
    with atomic_path(path) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(temporary))
