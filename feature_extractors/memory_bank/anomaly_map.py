"""From patch distances to the anomaly map of an image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

BLUR_RADIUS = 4  # pixels; PatchCore's sigma
Blur = Literal["pil_8bit", "gaussian"]


def anomaly_map(distance: torch.Tensor, side: int, image_size: int, blur: Blur) -> np.ndarray:
    """(P,) patch distances, P = side * side -> (S, S) float32 map, blurred; higher = more anomalous."""
    grid = distance.reshape(1, 1, side, side)
    size = (image_size, image_size)
    smooth = torch.nn.functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return BLURS[blur](smooth[0, 0].cpu().numpy())


def _blur_8bit(image: np.ndarray) -> np.ndarray:
    """Blur as released: in 8 bits, truncated, relative to the map's maximum; an all-zero map stays zero."""
    peak = image.max()
    if peak == 0:
        return image
    gray = Image.fromarray((image / peak * 255).astype(np.uint8))
    blurred = np.asarray(gray.filter(ImageFilter.GaussianBlur(BLUR_RADIUS)), dtype=np.float32)
    return blurred / 255 * peak


def _blur_float(image: np.ndarray) -> np.ndarray:
    return gaussian_filter(image, BLUR_RADIUS)


BLURS = {"pil_8bit": _blur_8bit, "gaussian": _blur_float}
