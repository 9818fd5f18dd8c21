"""Reading and writing a sample's three files (rgb png, xyz tiff, gt png) as data, with errors that name the file.

The files come from downloads and may be cut short, so whatever a decoder raises becomes one SampleFileError.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from utils.files import atomic_path

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER_BYTES = 26  # signature, IHDR's length and name, width, height, bit depth, colour type
PNG_COLOR_TYPES = {
    0: "gray",
    2: "RGB",
    3: "palette",
    4: "gray with alpha",
    6: "RGBA",
}  # PNG standard, table 8
PNG_COMPRESS_LEVEL = 4  # a third of level 6's time for 3 % more bytes, on a photograph
RESTORE = "restore the file from the downloaded archive"


IMAGE_SUFFIXES = {".png", ".tiff", ".tif", ".jpg", ".jpeg", ".bmp"}


class SampleFileError(ValueError):
    """A file of a sample can't be used; the message names the file, what is wrong and the remedy."""

    def __init__(self, path: str | Path, problem: str, remedy: str = RESTORE) -> None:
        super().__init__(
            path, problem, remedy
        )  # all arguments, so that it survives pickling between processes
        self.path, self.problem, self.remedy = Path(path), problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


def read_rgb(path: str | Path) -> np.ndarray:
    """Pixels of an 8-bit RGB png, (H, W, 3) uint8. Raises SampleFileError on any other file."""
    return _read_png(path, color="RGB", bit_depths=(8,))


def read_mask(path: str | Path) -> np.ndarray:
    """Pixels of a gray png of 8 bits, codes as they are, or of 1 bit (0 and 255), (H, W) uint8.

    MVTec 3D-AD codes the defect class in the gray value: anything above 0 is a defect.
    Raises SampleFileError on any other file.
    """
    return _read_png(path, color="gray", bit_depths=(1, 8))


def read_xyz(path: str | Path) -> np.ndarray:
    """Organised cloud of a tiff of one page, (H, W, 3) float32; float64 is rounded. Values are not judged.

    Raises SampleFileError when the file is unreadable, cut short, of another rank or of another dtype.
    """
    cloud = _read_tiff(path)
    if cloud.ndim != 3 or cloud.shape[2] != 3:
        raise SampleFileError(path, f"has shape {cloud.shape}, expected (height, width, 3)")
    if cloud.dtype.kind != "f" or cloud.dtype.itemsize < 4:
        raise SampleFileError(path, f"holds {cloud.dtype}, expected float32 coordinates")
    with np.errstate(
        over="ignore"
    ):  # beyond float32 becomes infinite, which is "no measurement" like any other
        return np.ascontiguousarray(cloud, dtype=np.float32)


def image_shape(path: str | Path) -> tuple[int, int]:
    """Height and width of an image, from its header. Raises SampleFileError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise SampleFileError(path, f"is no readable image ({error!r})") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """Png of (H, W, 3) or (H, W) uint8; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=PNG_COMPRESS_LEVEL)
    return buffer.getvalue()


def encode_xyz(cloud: np.ndarray) -> bytes:
    """Uncompressed tiff of an organised cloud (H, W, 3) float32; the same cloud gives the same bytes."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, cloud, photometric="rgb", metadata=None)
    return buffer.getvalue()


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) or (H, W) uint8 to `path` atomically; folders are made."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_png(pixels))


def write_xyz(path: str | Path, cloud: np.ndarray) -> None:
    """Write an organised cloud (H, W, 3) float32 to `path` atomically; folders are made."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_xyz(cloud))


def _read_png(path: str | Path, color: str, bit_depths: tuple[int, ...]) -> np.ndarray:
    content = _read_bytes(path)
    header = content[:PNG_HEADER_BYTES]
    if len(header) < PNG_HEADER_BYTES or not header.startswith(PNG_SIGNATURE):
        raise SampleFileError(path, "is not a png file")
    # Pillow reduces 16 bits to 8 and adds or drops channels without a word, so the header decides.
    bits, found = header[24], PNG_COLOR_TYPES.get(header[25], "of unknown colour type")
    if found != color or bits not in bit_depths:
        wanted = " or ".join(map(str, bit_depths))
        raise SampleFileError(path, f"is {found} with {bits} bits a channel, expected {color} with {wanted}")
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        return np.array(image.convert("L" if color == "gray" else "RGB"))
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise SampleFileError(path, f"is damaged or cut short ({error!r})") from error


def _read_tiff(path: str | Path) -> np.ndarray:
    content = _read_bytes(path)
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            page = tiff.pages.first
            ends = np.add(page.dataoffsets, page.databytecounts)
            if len(ends) == 0 or ends.max() > len(content):  # tifffile fills what is missing with zeros
                raise ValueError(f"the pixels end beyond the file's {len(content)} bytes")
            return page.asarray()
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise SampleFileError(path, f"is no readable tiff or cut short ({error!r})") from error


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SampleFileError(path, f"can't be read ({error.strerror})") from error


def foreign_images(folder: Path, suffix: str) -> list[Path]:
    """Images in a folder whose names do not end in `suffix`, sorted: nobody would read them."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix != suffix and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
