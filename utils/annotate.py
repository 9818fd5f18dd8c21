"""What is drawn on pictures: contours, captions, color bars, frames."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

COLOR_MAP = "jet"  # the field's habit
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
SMALLEST_TEXT = 10  # pixels
BACKGROUND, TEXT_COLOR = 255, (20, 20, 20)
CONTOUR_PER_SIDE, THINNEST = 250, 2  # pixels of an image's side a pixel of a contour's width; at least
Color = tuple[int, int, int]


@lru_cache
def color_table() -> np.ndarray:
    """Colors (256, 3) uint8 of the color map, lowest first."""
    return (colormaps[COLOR_MAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


def colored(anomaly_map: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Colors (H, W, 3) uint8 of a map (H, W); `limits`: the scores that get the first and the last color."""
    low, high = limits
    span = max(high - low, float(np.finfo(np.float32).tiny))
    relative = np.clip((anomaly_map - low) / span, 0, 1)
    return color_table()[np.minimum(relative * 256, 255).astype(np.uint8)]


def with_contour(image: np.ndarray, inside: np.ndarray, color: Color) -> np.ndarray:
    """An image (H, W, 3) uint8 with a line around what is inside (H, W) bool; the inside stays visible."""
    drawn = image.copy()
    drawn[outline(inside, max(THINNEST, round(max(inside.shape) / CONTOUR_PER_SIDE)))] = color
    return drawn


def outline(inside: np.ndarray, width: int) -> np.ndarray:
    """Pixels (H, W) bool outside of `inside`, but at most `width` steps up, down, left and right from it."""
    grown = inside.copy()
    for _ in range(width if inside.any() else 0):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
    return grown & ~inside


def color_bar(height: int, limits: tuple[float, float]) -> np.ndarray:
    """The color scale (height, W, 3) uint8, the scores of its last and first color beside its ends."""
    size = text_size(height)
    labels = [f"{limit:.3g}" for limit in reversed(limits)]
    margin = size // 2
    widest = max(text_width(label, size) for label in labels)
    bar = np.full((height, 3 * margin + size + widest, 3), BACKGROUND, np.uint8)
    levels = np.linspace(255, 0, height).round().astype(int)
    bar[:, margin : margin + size] = color_table()[levels][:, None]
    canvas = Image.fromarray(bar)
    for label, anchor, y in zip(labels, ("lt", "lb"), (1, height - 2), strict=True):
        ImageDraw.Draw(canvas).text((2 * margin + size, y), label, TEXT_COLOR, font(size), anchor=anchor)
    return np.asarray(canvas)


def with_caption(picture: np.ndarray, text: str, size: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a line of text under it; it becomes wider where the line is."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    width = max(picture.shape[1], text_width(shown, size) + size)
    canvas = np.full((picture.shape[0] + 2 * size, width, 3), BACKGROUND, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    drawn = Image.fromarray(canvas)
    place = (size // 2, picture.shape[0] + size)
    ImageDraw.Draw(drawn).text(place, shown, TEXT_COLOR, font(size), anchor="lm")
    return np.asarray(drawn)


def text_size(height: int) -> int:
    """The letters' size that goes with a picture of this height."""
    return max(SMALLEST_TEXT, height // 28)


def text_width(text: str, size: int) -> int:
    return int(np.ceil(font(size).getlength(text)))


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, size)
