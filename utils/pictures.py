"""Pictures of predictions: image, ground truth and anomaly map side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
import torch
from matplotlib import colormaps

from utils.files import atomic_path
from utils.image_files import write_png

COLOR_MAP = "jet"  # the field's habit
OVERLAY = 0.5  # share of the map's colours over the image


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


def write_picture(
    path: Path,
    image: np.ndarray,
    mask: np.ndarray | None,
    anomaly_map: np.ndarray,
    limits: tuple[float, float],
) -> None:
    """Write image (H, W, 3) uint8, mask (H, W) bool, where it is known, and map (H, W) as one png.

    `limits`: the scores that get the first and the last colour, the same for a whole class, so that its
    pictures can be compared.
    """
    low, high = limits
    span = max(high - low, float(np.finfo(np.float32).tiny))
    relative = np.clip((anomaly_map - low) / span, 0, 1)
    colors = colormaps[COLOR_MAP](relative)[..., :3] * 255
    overlay = (OVERLAY * colors + (1 - OVERLAY) * image).astype(np.uint8)
    truth = [] if mask is None else [np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255]
    write_png(path, np.concatenate([image, *truth, overlay], axis=1))
