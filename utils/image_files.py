"""Reading and writing a sample's three files (rgb png, xyz tiff, gt png) as data, with errors that name the file.

The files come from downloads and cameras: they may be cut short, of another kind than their names say, or huge. So
sizes and types are checked before anything is decoded, and whatever a decoder raises becomes one SampleFileError.
"""

from __future__ import annotations

import io
import logging
import math
import stat
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np
import tifffile
from PIL import Image

from utils.file_kinds import CONVERT, kind_of
from utils.files import atomic_path, in_short

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")  # the latter two are BigTIFF's
PNG_HEADER_BYTES = 26  # signature, IHDR's length and name, width, height, bit depth, colour type
PNG_COLOR_TYPES = {
    0: "gray",
    2: "RGB",
    3: "palette",
    4: "gray with alpha",
    6: "RGBA",
}  # PNG standard, table 8
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the same table
PNG_COMPRESS_LEVEL = 4  # a third of level 6's time for 3 % more bytes, on a photograph
MAX_PIXELS = 10**8  # of an image: ten times a large sensor's; its float32 cloud takes 1.2 GB
MAX_BYTES = 24 * MAX_PIXELS + 2**20  # of a file: three float64 a pixel, and room for a header
DEFLATE = frozenset({8, 32946})  # tiff's numbers for zlib's compression
UNPACKED = 1  # its number for none
COMPRESSIONS = DEFLATE | {UNPACKED, 5, 32773}  # none, LZW (with tifffile's optional codecs) and PackBits
DEFLATE_RATIO = 1032  # zlib makes nothing smaller than this
RESTORE = "restore the file from the downloaded archive"
UNCOMPRESSED = "write it uncompressed or with zlib"
SHRINK = "crop or shrink it first"


logging.getLogger("tifffile").disabled = True  # what it has to say of a damaged file, SampleFileError says

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

    Raises SampleFileError when the file is unreadable, cut short, too large, of several pages, of another rank or
    of another dtype.
    """
    cloud = _read_tiff(path)
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
        raise SampleFileError(path, f"is no readable image ({in_short(error)})") from error


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
    if not header.startswith(PNG_SIGNATURE):
        _refuse_kind(path, content, "is not a png file")
    if len(header) < PNG_HEADER_BYTES:
        raise SampleFileError(path, f"is cut short: it has {len(header)} bytes")
    _check_pixels(path, int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big"))
    # Pillow reduces 16 bits to 8 and adds or drops channels without a word, so the header decides.
    bits, found = header[24], PNG_COLOR_TYPES.get(header[25], "of unknown colour type")
    if found != color or bits not in bit_depths:
        wanted = f"{color} with {' or '.join(map(str, bit_depths))}"
        raise SampleFileError(path, f"is {found} with {bits} bits a channel, expected {wanted}", CONVERT)
    try:
        check_png_pixels(content)
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        return np.array(image.convert("L" if color == "gray" else "RGB"))
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise SampleFileError(path, f"is damaged or cut short ({in_short(error)})") from error


def _read_tiff(path: str | Path) -> np.ndarray:
    content = _read_bytes(path)
    if not content.startswith(TIFF_SIGNATURES):
        _refuse_kind(path, content, "is no readable tiff")
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            page = tiff.pages.first
            _check_page(path, page, len(tiff.pages))
            check_tiff_pixels(page, content)
            return page.asarray()
    except SampleFileError:
        raise
    except Exception as error:  # damaged bytes may raise anything in a decoder
        if "imagecodecs" in str(error):  # tifffile's optional package
            problem = f"has a compression that is not read ({in_short(error)})"
            raise SampleFileError(path, problem, UNCOMPRESSED) from error
        raise SampleFileError(path, f"is no readable tiff or cut short ({in_short(error)})") from error


def _check_page(path: str | Path, page: tifffile.TiffPage, num_pages: int) -> None:
    """Raise SampleFileError unless the header promises a cloud, before its pixels are decoded."""
    _check_pixels(path, page.imagewidth, page.imagelength * page.imagedepth)
    if num_pages > 1:
        raise SampleFileError(
            path, f"has {num_pages} pages, expected one", "write x, y and z as the three channels of one page"
        )
    if len(page.shape) == 2:
        problem = f"has shape {page.shape} of {page.dtype}, like a depth image, expected (height, width, 3)"
        raise SampleFileError(path, problem, CONVERT)
    if len(page.shape) != 3 or page.shape[2] != 3:
        remedy = "write x, y and z as the last axis"
        raise SampleFileError(path, f"has shape {page.shape}, expected (height, width, 3)", remedy)
    if page.compression not in COMPRESSIONS:
        raise SampleFileError(
            path, in_short(f"has compression {page.compression!r}, which is not read"), UNCOMPRESSED
        )
    if page.dtype is None or page.dtype.kind != "f" or page.dtype.itemsize < 4:
        remedy = "write coordinates as float32"
        raise SampleFileError(path, f"holds {page.dtype}, expected float32 coordinates", remedy)


def check_png_pixels(content: bytes) -> None:
    """Raise ValueError when a png's bytes can't hold the pixels that its header promises.

    Pillow itself fills what is missing with zeros where the compressed data ends in good order.
    """
    header = content[:PNG_HEADER_BYTES].ljust(PNG_HEADER_BYTES, b"\0")
    width, height = int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
    bits = header[24] * PNG_CHANNELS.get(header[25], 1)
    if -(-width * bits // 8) * height > DEFLATE_RATIO * len(content):
        raise ValueError(f"{len(content)} bytes can't hold {width}x{height} pixels")


def check_tiff_pixels(page: tifffile.TiffPage, content: bytes) -> None:
    """Raise ValueError unless the file holds the pixels that its header promises, and no more.

    tifffile itself fills strips or tiles that are missing with zeros, however many they are.
    """
    ends = np.add(page.dataoffsets, page.databytecounts)
    if len(ends) == 0 or ends.max() > len(content):
        raise ValueError(f"the pixels end beyond the file's {len(content)} bytes")
    promised = math.prod(page.shape) * np.dtype(page.dtype).itemsize
    if promised > DEFLATE_RATIO * len(content):
        raise ValueError(f"{len(content)} bytes can't hold {page.shape} numbers")
    stored, wanted = np.count_nonzero(page.databytecounts), math.prod(page.chunked)
    if stored != wanted or (page.compression == UNPACKED and sum(page.databytecounts) < promised):
        raise ValueError(
            f"{stored} of {wanted} strips or tiles are there, with {sum(page.databytecounts)} bytes"
        )
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if page.compression not in DEFLATE or count * DEFLATE_RATIO <= MAX_BYTES:
            continue
        unpacked = zlib.decompressobj().decompress(content[start : start + count], promised + 1)
        if len(unpacked) > promised:  # tifffile itself sets no bound
            raise ValueError(f"a strip holds more than the image's {promised} bytes")


def _check_pixels(path: str | Path, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise SampleFileError(path, f"has no pixels: its size is {width}x{height}")
    if width * height > MAX_PIXELS:
        raise SampleFileError(
            path, f"is too large: {width}x{height} pixels, at most {MAX_PIXELS} are read", SHRINK
        )


def _refuse_kind(path: str | Path, content: bytes, problem: str) -> NoReturn:
    """Raise SampleFileError that tells what the file is instead, or `problem` where that is not known."""
    if not content:
        raise SampleFileError(path, f"{problem} but empty")
    kind = kind_of(content)
    if kind is None:
        raise SampleFileError(path, problem)
    raise SampleFileError(path, f"{problem}: it is {kind.name} named {Path(path).suffix}", kind.remedy)


def _read_bytes(path: str | Path) -> bytes:
    path = Path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise SampleFileError(path, "is no regular file", "put the file itself there")
        if found.st_size > MAX_BYTES:
            raise SampleFileError(path, f"is too large: {found.st_size} bytes", SHRINK)
        return path.read_bytes()
    except OSError as error:
        remedy = "check the path and its permissions"
        raise SampleFileError(path, f"can't be read ({error.strerror})", remedy) from error


def foreign_images(folder: Path, suffix: str) -> list[Path]:
    """Images in a folder whose names do not end in `suffix`, sorted: nobody would read them."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix != suffix and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
