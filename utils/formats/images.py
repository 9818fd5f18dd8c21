"""Colour images and masks in common formats, as the 8-bit pixels that data sets hold, with a note on every change."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from utils.files import in_short, read_regular
from utils.formats.organised import FormatError, check_pixels
from utils.image_files import PNG_HEADER_BYTES, PNG_SIGNATURE, SampleFileError, check_png_pixels

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
LOSSY = ("JPEG", "MPO", "WEBP")
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
TURNED_ASIDE = (5, 6, 7, 8)  # orientations that swap width and height
MODE_NOTES = {  # Pillow's modes that lose or gain something on the way to RGB
    "1": "one bit a pixel made RGB",
    "L": "grey made RGB",
    "LA": "grey with alpha made RGB, alpha dropped",
    "PA": "palette with alpha made RGB, alpha dropped",
    "RGBA": "alpha dropped",
    "P": "palette made RGB",
    "CMYK": "CMYK made RGB",
    "YCbCr": "YCbCr made RGB",
}


class LoadedImage(NamedTuple):
    """pixels uint8, (H, W, 3) or (H, W) for a mask; notes on what was changed; whether EXIF swapped the sides."""

    pixels: np.ndarray
    notes: tuple[str, ...]
    turned_aside: bool = False


def read_image(path: Path) -> np.ndarray:
    """Pixels (H, W, 3) uint8, upright by the EXIF tag. Raises SampleFileError."""
    return load_image(path).pixels


def load_image(path: Path) -> LoadedImage:
    """A colour image, upright by the EXIF tag. Raises SampleFileError when the file can't be used."""
    image, notes, turned_aside = _open_upright(path)
    if image.mode in MODE_NOTES:
        notes.append(MODE_NOTES[image.mode])
    if image.mode.startswith("I"):
        pixels = _eight_bits(path, np.asarray(image), notes)
        return LoadedImage(np.repeat(pixels[..., None], 3, axis=2), tuple(notes), turned_aside)
    if image.mode not in ("RGB", *MODE_NOTES):
        raise SampleFileError(
            path, f"has pixels of mode {image.mode}", "save it as RGB with 8 bits a channel"
        )
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB warns of transparent palettes
    return LoadedImage(np.array(image.convert("RGB")), tuple(notes), turned_aside)


def load_mask(path: Path) -> LoadedImage:
    """A mask (H, W): codes of a grey image of 8 bits as they are, else 255 where any colour is not black.

    Raises SampleFileError when the file can't be used, or is lossy.
    """
    image, notes, turned_aside = _open_upright(path, lossless=True)
    if image.mode == "L":
        return LoadedImage(np.array(image), tuple(notes), turned_aside)
    if image.mode.startswith("I"):
        marked = np.asarray(image) != 0
    else:
        marked = np.asarray(image.convert("RGBA"))[..., :3].any(axis=2)
    notes.append("mask: every pixel that is not black made 255")
    return LoadedImage(np.where(marked, np.uint8(255), np.uint8(0)), tuple(notes), turned_aside)


def _open_upright(path: Path, lossless: bool = False) -> tuple[Image.Image, list[str], bool]:
    """The decoded image, notes on it, and whether EXIF swapped its sides."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise SampleFileError(path, f"can't be read ({error.strerror})", "check its name") from error
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check(image, lossless)
            if image.format == "PNG":
                check_png_pixels(content)
            stored = _orientation(image)  # of a tiff, which Pillow turns while it loads
            image.load()
            orientation = max(stored, _orientation(image))  # a png may tell it after its pixels
            upright = ImageOps.exif_transpose(image)
    except FormatError as error:
        raise SampleFileError(path, error.problem, error.remedy) from error
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise SampleFileError(
            path, f"is no readable image or cut short ({in_short(error)})", "save it as png or jpg again"
        ) from error
    notes = ["16 bits a channel made 8"] if _is_deep_color_png(content) else []
    if orientation in range(2, 9):
        notes.append(f"turned upright by its EXIF tag (orientation {orientation}): check that the cloud fits")
    return upright, notes, orientation in TURNED_ASIDE


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ORIENTATION, 1))


def _check(image: Image.Image, lossless: bool) -> None:
    check_pixels(*image.size)
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a camera's jpg with a preview
        raise FormatError("holds several pictures", "save the one that belongs to the cloud alone")
    if lossless and image.format in LOSSY:
        raise FormatError(
            f"is a {image.format} mask, whose nearly black pixels would count as defects",
            "save masks as png or bmp",
        )


def _eight_bits(path: Path, values: np.ndarray, notes: list[str]) -> np.ndarray:
    """The high byte of grey values of 16 bits."""
    if values.size and not 0 <= values.min() <= values.max() < 1 << 16:
        raise SampleFileError(path, "has grey values outside 16 bits", "save it with 8 bits a channel")
    pixels = (values.astype(np.uint16) >> 8).astype(np.uint8)
    notes.append(f"grey of 16 bits made RGB of 8, the brightest is now {pixels.max(initial=0)} of 255")
    return pixels


def _is_deep_color_png(content: bytes) -> bool:
    """A png of 16 bits with several channels, which Pillow reduces to 8 bits without a word."""
    header = content[:PNG_HEADER_BYTES]
    return (
        len(header) == PNG_HEADER_BYTES
        and header.startswith(PNG_SIGNATURE)
        and header[24] == 16
        and header[25] > 0
    )
