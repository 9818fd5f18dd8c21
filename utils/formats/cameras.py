"""Camera models: the ray of each pixel, for depth images. Pixel (0, 0) is the middle of the upper left one."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from utils.files import in_short, read_regular
from utils.image_files import SampleFileError

LONGEST_FILE = 100_000  # bytes; a calibration has a few hundred
UNDISTORTION_STEPS = 50
UNDISTORTION_PX = 0.01  # largest error of an inverted distortion
HALCON_DIVISION = "area_scan_division"


class CameraError(ValueError):
    """Parameters that describe no camera."""


@dataclass(frozen=True)
class PinholeCamera:
    """Focal lengths and principal point in pixels; Brown's distortion, k radial and p tangential, as in OpenCV."""

    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    width: int | None = None
    height: int | None = None

    POSITIVE: ClassVar[tuple[str, ...]] = ("fx", "fy")

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of its images, where known."""
        return _known_size(self.width, self.height)

    def directions(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x / z and y / z of pixels. Raises CameraError where the distortion can't be inverted."""
        distorted = (columns - self.cx) / self.fx, (rows - self.cy) / self.fy
        x, y = distorted
        for _ in range(UNDISTORTION_STEPS if any((self.k1, self.k2, self.k3, self.p1, self.p2)) else 0):
            radial, dx, dy = self._distortion(x, y)
            x, y = (distorted[0] - dx) / radial, (distorted[1] - dy) / radial
        radial, dx, dy = self._distortion(x, y)
        error = np.hypot(
            self.fx * (x * radial + dx - distorted[0]), self.fy * (y * radial + dy - distorted[1])
        )
        if not (error < UNDISTORTION_PX).all():
            raise CameraError(
                f"the distortion can't be undone at {np.count_nonzero(~(error < UNDISTORTION_PX))} pixels"
            )
        return x, y

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows (N,) of points (N, 3) in the camera's frame."""
        x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
        radial, dx, dy = self._distortion(x, y)
        return self.fx * (x * radial + dx) + self.cx, self.fy * (y * radial + dy) + self.cy

    def _distortion(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):  # what diverges is found by its error
            r2 = x * x + y * y
            radial = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
            dx = 2 * self.p1 * x * y + self.p2 * (r2 + 2 * x * x)
            dy = self.p1 * (r2 + 2 * y * y) + 2 * self.p2 * x * y
        return radial, dx, dy


@dataclass(frozen=True)
class DivisionCamera:
    """HALCON's area_scan_division, as in MVTec 3D-AD's camera_parameters.json.

    focus, sx and sy (pixel pitch) in metres, kappa in 1 / m^2, cx and cy in pixels. With (u, v) the distorted place
    on the chip in metres, the undistorted one is (u, v) / (1 + kappa (u^2 + v^2)) = focus (x, y) / z.
    """

    focus: float
    kappa: float
    sx: float
    sy: float
    cx: float
    cy: float
    image_width: int | None = None
    image_height: int | None = None

    POSITIVE: ClassVar[tuple[str, ...]] = ("focus", "sx", "sy")

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of its images, where known."""
        return _known_size(self.image_width, self.image_height)

    def directions(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x / z and y / z of pixels. Raises CameraError where the distortion can't be inverted."""
        u, v = (columns - self.cx) * self.sx, (rows - self.cy) * self.sy
        scale = (1 + self.kappa * (u * u + v * v)) * self.focus
        if not (scale > 0).all():
            raise CameraError(f"the distortion can't be undone at {np.count_nonzero(~(scale > 0))} pixels")
        return u / scale, v / scale

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns and rows (N,) of points (N, 3) in the camera's frame; NaN where the lens sees no such point."""
        u, v = self.focus * points[:, 0] / points[:, 2], self.focus * points[:, 1] / points[:, 2]
        with np.errstate(invalid="ignore"):
            scale = 2 / (1 + np.sqrt(1 - 4 * self.kappa * (u * u + v * v)))
        return u * scale / self.sx + self.cx, v * scale / self.sy + self.cy


Camera = PinholeCamera | DivisionCamera


def read_camera(path: Path) -> Camera:
    """The camera of a JSON file: fx, fy, cx, cy and k1 ... p2, or HALCON's parameters. Raises SampleFileError."""
    remedy = (
        "it must hold the keys fx, fy, cx, cy (with k1, k2, k3, p1, p2, width, height where known), or those of "
        "MVTec 3D-AD's camera_parameters.json"
    )
    try:
        values = _read_object(path)
        kind = values.pop("camera_type", None)
        if kind not in (None, HALCON_DIVISION):
            raise CameraError(f"camera_type {kind!r} is not known, only {HALCON_DIVISION}")
        model = DivisionCamera if kind else PinholeCamera
        _check_keys(values, model)
        return model(**values)
    except OSError as error:
        raise SampleFileError(path, f"can't be read ({error.strerror})", "name the camera's file") from error
    except (CameraError, ValueError, OverflowError, RecursionError) as error:
        raise SampleFileError(path, f"is no camera's JSON ({in_short(str(error))})", remedy) from error


@lru_cache(maxsize=2)
def pixel_directions(camera: Camera, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """x / z and y / z of all pixels, (H, W) float64 each. Raises CameraError."""
    columns, rows = np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64)[:, None]
    x, y = camera.directions(*np.broadcast_arrays(columns, rows))
    x.flags.writeable = y.flags.writeable = False
    return x, y


def _read_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LONGEST_FILE:
        raise CameraError(f"{path.stat().st_size} bytes are too many")
    values = json.loads(read_regular(path).decode("utf-8-sig"))
    if not isinstance(values, dict):
        raise CameraError("it holds no object of keys and numbers")
    return values


def _check_keys(values: dict[str, Any], model: type) -> None:
    known = {item.name: item.default is MISSING for item in fields(model)}
    if missing := [name for name, needed in known.items() if needed and name not in values]:
        raise CameraError(f"{', '.join(missing)} missing")
    if unknown := sorted(set(values) - set(known)):
        raise CameraError(f"keys that are not known and would change the result unseen: {', '.join(unknown)}")


def _check_numbers(camera: Any) -> None:
    for item in fields(camera):
        value = getattr(camera, item.name)
        if item.default is None and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CameraError(f"{item.name} {value!r} is not a finite number")
        if value <= 0 and (item.name in camera.POSITIVE or item.default is None):
            raise CameraError(f"{item.name} {value!r} is not above 0")


def _known_size(width: int | None, height: int | None) -> tuple[int, int] | None:
    return None if width is None or height is None else (int(width), int(height))
