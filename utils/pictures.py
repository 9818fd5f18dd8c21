"""Pictures of predictions: maps in colors, over images and on clouds; a class's at a glance."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from plyfile import PlyData, PlyElement

from utils.annotate import BACKGROUND, Color, color_bar, colored, text_size, with_caption, with_contour
from utils.files import atomic_path
from utils.image_files import write_png

OVERLAY = 0.5  # share of the map's colors over the image
THRESHOLD_COLOR: Color = (255, 255, 255)
TRUTH_COLOR: Color = (0, 255, 0)
PICTURE_RANGE = (0.5, 99.9)  # percentiles of a class's map values that get the first and the last color
LABEL_COLORS: dict[int | None, Color] = {0: (40, 140, 70), 1: (200, 40, 40), None: (130, 130, 130)}
THUMBNAIL_SIDE = 224  # of the longer side
CELL_SIDE, CELL_FRAME, CELL_TEXT = 150, 3, 11  # pixels, on a contact sheet
MOST_CELLS, CELLS_A_ROW = 200, 10
JPEG_QUALITY = 85
PLY_VERTEX = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]


@dataclass(frozen=True)
class MapScale:
    """How a class's maps are shown: the scores that get the first and the last color, and the pixel threshold."""

    limits: tuple[float, float]
    threshold: float | None = None

    @classmethod
    def of(cls, maps: np.ndarray, threshold: float | None = None) -> MapScale:
        """One that suits all the maps (n, S, S)."""
        low, high = np.percentile(maps, PICTURE_RANGE)
        return cls((float(low), float(high)), threshold)


def resize_map(anomaly_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bring a map (S, S) to `shape` (H, W), bilinear, as float32."""
    import torch  # slow to import; the report does without

    tensor = torch.from_numpy(np.ascontiguousarray(anomaly_map, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(tensor, size=shape, mode="bilinear", align_corners=False)[
        0, 0
    ].numpy()


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """Write a map as a float32 tiff."""
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, anomaly_map.astype(np.float32))


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, limits: tuple[float, float], threshold: float | None = None
) -> np.ndarray:
    """The map's colors (H, W) over an image (H, W, 3) uint8, with the contour of what lies above the threshold."""
    mixed = (OVERLAY * colored(anomaly_map, limits) + (1 - OVERLAY) * image).astype(np.uint8)
    return mixed if threshold is None else with_contour(mixed, anomaly_map > threshold, THRESHOLD_COLOR)


def write_picture(
    path: Path,
    image: np.ndarray,
    mask: np.ndarray | None,
    anomaly_map: np.ndarray,
    scale: MapScale,
    caption: str,
) -> None:
    """Write one png: image (H, W, 3) uint8, the contour of the mask (H, W) bool over it, where that is known, the map
    (H, W) over it with the color bar, and the caption under them.

    `scale`: the same for a whole class, so that its pictures can be compared.
    """
    size = text_size(image.shape[0])
    panels = [*side_by_side(image, mask, anomaly_map, scale), color_bar(image.shape[0], scale.limits)]
    write_png(path, with_caption(np.concatenate(panels, axis=1), caption, size))


def side_by_side(
    image: np.ndarray, mask: np.ndarray | None, anomaly_map: np.ndarray, scale: MapScale
) -> list[np.ndarray]:
    """The image, with the mask's contour where the mask is known, and with the map; each (H, W, 3) uint8."""
    truth = [] if mask is None else [with_contour(image, mask, TRUTH_COLOR)]
    return [image, *truth, overlay(image, anomaly_map, scale.limits, scale.threshold)]


def thumbnail(
    image: np.ndarray,
    mask: np.ndarray | None,
    anomaly_map: np.ndarray,
    scale: MapScale,
    side: int = THUMBNAIL_SIDE,
) -> tuple[np.ndarray, np.ndarray]:
    """Two small pictures: image (H, W, 3) with the contour of a mask of any size, and with a map of any size."""
    height, width = image.shape[:2]
    shrink = side / max(height, width)
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    heat = Image.fromarray(anomaly_map.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    truth = None
    if mask is not None:
        truth = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=bool)
    *_, shown, mapped = side_by_side(small, truth, np.asarray(heat), scale)
    return shown, mapped


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Jpeg of (H, W, 3) uint8; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def sheet_order(scores: np.ndarray) -> list[int]:
    """The samples of a contact sheet, highest score first; of too many, evenly spaced ones."""
    order = np.argsort(-scores, kind="stable")
    places = np.linspace(0, len(order) - 1, min(len(order), MOST_CELLS)).round().astype(int)
    return order[places].tolist()


def sheet_cell(picture: np.ndarray, label: int | None, caption: str) -> np.ndarray:
    """A small picture, at most CELL_SIDE a side, framed by the color of its label, with a caption under it."""
    height, width = picture.shape[:2]
    cell = np.full((CELL_SIDE + 2 * CELL_FRAME, CELL_SIDE + 2 * CELL_FRAME, 3), BACKGROUND, np.uint8)
    cell[: height + 2 * CELL_FRAME, : width + 2 * CELL_FRAME] = LABEL_COLORS[label]
    cell[CELL_FRAME : CELL_FRAME + height, CELL_FRAME : CELL_FRAME + width] = picture
    side = cell.shape[1]
    return with_caption(cell, caption, CELL_TEXT)[:, :side]


def write_contact_sheet(path: Path, cells: Sequence[np.ndarray]) -> None:
    """Write one png with all cells (H, W, 3) uint8, one or more of one size, in rows."""
    columns = min(len(cells), CELLS_A_ROW)
    blank = np.full_like(cells[0], BACKGROUND)
    filled = [*cells, *[blank] * (-len(cells) % columns)]
    rows = [np.concatenate(filled[i : i + columns], axis=1) for i in range(0, len(filled), columns)]
    write_png(path, np.concatenate(rows))


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
