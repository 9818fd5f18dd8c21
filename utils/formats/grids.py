"""Clouds and depth images stored as arrays: npy, npz, tiff and png."""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO

import imageio.v3 as iio
import numpy as np
import tifffile

from utils.formats.cameras import CameraError, pixel_directions
from utils.formats.organised import CloudOptions, FormatError, StoredCloud, check_pixels
from utils.image_files import check_png_pixels, check_tiff_pixels

CLOUD_NAMES = ("xyz", "cloud", "points")  # looked for in an npz of several arrays
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
RAW_DEPTH_TYPES = (np.uint16, np.int32)  # what Pillow's releases make of 16 bits


def read_npy(content: bytes, options: CloudOptions) -> StoredCloud:
    """A cloud (H, W, 3) or depth image (H, W). Raises FormatError, and whatever NumPy raises on damaged content."""
    _check_npy_header(io.BytesIO(content), len(content))
    return cloud_of(np.load(io.BytesIO(content), allow_pickle=False), options)


def read_npz(content: bytes, options: CloudOptions) -> StoredCloud:
    """As read_npy, of the only array in the archive, or of the one that is called xyz, cloud or points."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        chosen = [name for name in entries if len(entries) == 1 or name in CLOUD_NAMES]
        if len(chosen) != 1:
            raise FormatError(
                f"holds the arrays {', '.join(entries)[:200] or 'none'}",
                "name the cloud xyz, or save it alone",
            )
        entry = entries[chosen[0]]
        with archive.open(entry) as member:  # its first bytes tell whether it is worth unpacking
            _check_npy_header(member, entry.file_size)
        return read_npy(archive.read(entry), options)


def _check_npy_header(file: IO[bytes], length: int) -> None:
    """Raises FormatError when the array is no cloud or depth image, or more than `length` bytes can hold."""
    version = np.lib.format.read_magic(file)
    if version not in NPY_HEADERS:
        raise FormatError(f"has npy format {version}, expected 1.0 or 2.0", "save it with numpy.save")
    shape, _, dtype = NPY_HEADERS[version](file)
    if dtype.hasobject or dtype.itemsize * math.prod(shape) > length:
        raise FormatError(
            f"claims an array {shape} of {dtype}, which its {length} bytes can't hold", "save it again"
        )
    _check_shape(shape)


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise FormatError(
            f"has shape {shape}, expected a cloud (height, width, 3) or a depth image (height, width)",
            "export an organised cloud",
        )
    check_pixels(shape[1], shape[0])


def read_tiff(content: bytes, options: CloudOptions) -> StoredCloud:
    """A cloud (H, W, 3) or depth image (H, W) of a tiff of one page. Raises FormatError, and what tifffile does."""
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages.first
        if len(tiff.pages) > 1:
            raise FormatError(f"has {len(tiff.pages)} pages, expected one", "export the cloud as one page")
        _check_shape(page.shape)
        check_tiff_pixels(page, content)
        return cloud_of(page.asarray(), options)


def read_depth_png(content: bytes, options: CloudOptions) -> StoredCloud:
    """The cloud of a depth image of 16 bits. Raises FormatError, and what imageio raises on damaged content."""
    check_png_pixels(content)
    header = iio.improps(content, extension=".png", plugin="pillow")
    check_pixels(header.shape[1], header.shape[0])
    if len(header.shape) != 2 or header.dtype not in RAW_DEPTH_TYPES:
        raise FormatError(
            f"holds {header.dtype} of shape {header.shape}, but a depth image has one channel of 16 bits",
            "export the raw depth; a picture of it in colours or 8 bits has lost the distances",
        )
    return cloud_of(iio.imread(content, extension=".png", plugin="pillow").astype(np.uint16), options)


def cloud_of(values: np.ndarray, options: CloudOptions) -> StoredCloud:
    """A cloud (H, W, 3) of floats as it is; a depth image (H, W) or (H, W, 1) by the camera. Raises FormatError."""
    _check_shape(values.shape)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 2:
        return _depth_cloud(values, options)
    if values.dtype.kind != "f" or values.dtype.itemsize < 4:
        raise FormatError(f"holds {values.dtype}, expected float32 coordinates", "is it the colour image?")
    return StoredCloud(values.astype(np.float32 if values.dtype.itemsize == 4 else np.float64))


def _depth_cloud(depth: np.ndarray, options: CloudOptions) -> StoredCloud:
    """0, and the largest value of unsigned integers, which stands for overflow, mean not measured."""
    if depth.dtype.kind not in "fiu" or depth.dtype.itemsize < 2:
        raise FormatError(
            f"holds {depth.dtype}, expected a depth image of 16 bits or floats", "export the raw depth"
        )
    if options.depth_scale is None and depth.dtype.kind != "f":
        raise FormatError(
            f"is a depth image of {depth.dtype} in an unknown unit",
            "name metres a unit with --depth_scale, 0.001 where it counts millimetres",
        )
    overflow = depth == np.iinfo(depth.dtype).max if depth.dtype.kind == "u" else np.zeros(depth.shape, bool)
    z = np.where(overflow, 0, depth).astype(np.float64) * (options.depth_scale or 1.0)
    x, y = _directions(options, depth.shape[1], depth.shape[0])
    with np.errstate(invalid="ignore", over="ignore"):  # infinite depths are not measured
        return StoredCloud(np.stack([x * z, y * z, z], axis=-1), in_metres=options.depth_scale is not None)


def _directions(options: CloudOptions, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    camera = options.camera
    if camera is None:
        raise FormatError(
            "is a depth image, which says nothing of x and y",
            "give the camera with --camera FILE or --fx, --fy, --cx, --cy",
        )
    if camera.size not in (None, (width, height)):
        raise FormatError(
            f"has {width}x{height} pixels, its camera was calibrated at {camera.size[0]}x{camera.size[1]}",
            "use the calibration of this image size; cropping moves cx and cy, resizing scales all four",
        )
    try:
        return pixel_directions(camera, width, height)
    except CameraError as error:
        raise FormatError(f"does not fit its camera: {error}", "check the camera's parameters") from error
