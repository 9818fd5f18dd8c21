"""What all readers of organised clouds share: options, limits, the grid of a list of points, metres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from utils.formats.cameras import Camera

MAX_PIXELS = 2**26  # 8192 x 8192; a file that claims more is damaged, and is refused before memory is taken
METRES_PER_UNIT = {"m": 1.0, "mm": 1e-3}
ON_AXIS_M = 1e-12  # stands for an x or y of exactly 0, by which readers of data sets recognise missing points


class FormatError(ValueError):
    """The content of a file can't be used: what is wrong with it, and the remedy. Whoever knows the path adds it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy


@dataclass(frozen=True)
class CloudOptions:
    """What sensor files don't say of themselves.

    size is the flags' (width, height), image_size that of the colour image, which is taken where neither the flags
    nor the file name a size. camera and depth_scale (metres a unit) are for depth images.
    """

    unit: Literal["auto", "m", "mm"] = "auto"
    size: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None
    camera: Camera | None = None
    depth_scale: float | None = None


@dataclass(frozen=True)
class StoredCloud:
    """points (H, W, 3) float as stored, colors (H, W, 3) uint8 where the file has them."""

    points: np.ndarray
    colors: np.ndarray | None = None
    in_metres: bool = False  # whatever the unit of the other files


def check_pixels(width: int, height: int) -> None:
    """Raises FormatError when no sensor has that many pixels, or none."""
    if not (width >= 1 and height >= 1 and width * height <= MAX_PIXELS):
        raise FormatError(
            f"claims {width}x{height} pixels, at most {MAX_PIXELS} in all are read", "export it again"
        )


def grid_size(count: int, stated: tuple[int, int] | None, options: CloudOptions) -> tuple[int, int]:
    """(width, height) of a list of `count` points in row-major order: by flags, by the file, or by the image.

    Raises FormatError when points were dropped, so that nothing tells which pixel a point belongs to.
    """
    claims: dict[str, tuple[int, int] | None]
    if options.size is not None:
        claims = {"--width and --height": options.size}
    else:
        claims = {"the file": stated, "the image": options.image_size}
    named = {source: size for source, size in claims.items() if size is not None}
    for width, height in named.values():
        if width * height == count:
            return width, height
    wanted = "; ".join(f"{source}: {w}x{h} = {w * h}" for source, (w, h) in named.items())
    raise FormatError(
        f"holds {count} points, which are not one a pixel ({wanted or 'no width and height known'})",
        'if the sensor dropped points without a measurement, export with "organised" or "keep invalid points" on; '
        "else name the sensor's --width and --height",
    )


def rows_of(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H * W, C) -> (H, W, C), rows first."""
    width, height = size
    return values.reshape(height, width, values.shape[1])


def in_metres(points: np.ndarray, unit: Literal["m", "mm"]) -> np.ndarray:
    """(H, W, 3) as stored -> float32 metres with (0, 0, 0) where nothing was measured.

    A point is measured where its coordinates are finite and z is not 0; an x or y of exactly 0 becomes ON_AXIS_M.
    """
    scale = METRES_PER_UNIT[unit]
    with np.errstate(over="ignore", invalid="ignore"):
        cloud = points.astype(np.float32) if scale == 1 else (points * np.float64(scale)).astype(np.float32)
        measured = np.isfinite(cloud).all(axis=2) & (cloud[..., 2] != 0)
    cloud[measured] = np.where(cloud[measured] == 0, np.float32(ON_AXIS_M), cloud[measured])
    cloud[~measured] = 0
    return cloud
