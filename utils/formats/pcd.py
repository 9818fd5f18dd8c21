"""Organised clouds in PCD files: ascii, binary and binary_compressed, by pypcd4."""

from __future__ import annotations

import io
import struct

import numpy as np
from pypcd4 import Encoding, MetaData, PointCloud

from utils.formats.organised import CloudOptions, FormatError, StoredCloud, check_pixels, grid_size, rows_of

LONGEST_HEADER = 1 << 14  # bytes
MOST_COLUMNS = 1000  # numbers a point; descriptors have a few hundred
BEST_COMPRESSION = 100  # LZF makes at most 264 bytes of 3
SIZES_BYTES = 8  # of the two lengths before compressed data
COLOR_FIELDS = ("rgb", "rgba")  # PCL packs blue, green, red, alpha into 4 bytes


def read_pcd(content: bytes, options: CloudOptions) -> StoredCloud:
    """The cloud of a PCD file, with its colours if it has any. Raises FormatError.

    Whatever pypcd4 or NumPy raises on damaged content goes through.
    """
    header, body = _split(content)
    _check_claims(header, body)
    points = np.atleast_1d(PointCloud.from_fileobj(io.BufferedReader(io.BytesIO(content))).pc_data)
    if len(points) != header.points:
        raise FormatError(f"claims {header.points} points but ends after {len(points)}", "copy it again")
    if not {"x", "y", "z"} <= set(points.dtype.names or ()):
        raise FormatError("has no fields x, y and z", "export it as a point cloud")
    organised = header.height > 1
    size = (header.width, header.height) if organised else grid_size(len(points), None, options)
    xyz = np.stack([points[name] for name in "xyz"], axis=-1)
    xyz = xyz.astype(np.float32 if xyz.dtype == np.float32 else np.float64, copy=False)
    return StoredCloud(rows_of(xyz, size), _colors(points, size))


def _split(content: bytes) -> tuple[MetaData, bytes]:
    """The header and what follows its last line, DATA."""
    start, lines = 0, list[str]()
    while not (lines and lines[-1].startswith("DATA")):
        end = content.find(b"\n", start, LONGEST_HEADER)
        if end < 0:
            raise FormatError("has no PCD header", "export it again")
        lines.append(content[start:end].decode("utf-8").strip())
        start = end + 1
    return MetaData.parse_header(lines), content[start:]


def _check_claims(header: MetaData, body: bytes) -> None:
    """Refuse what the bytes can't hold before anything is allocated for it."""
    check_pixels(header.width, header.height)
    if sum(header.count) > MOST_COLUMNS:
        raise FormatError(f"claims {sum(header.count)} numbers a point", "export it again")
    if header.points != header.width * header.height:
        raise FormatError(
            f"claims {header.points} points for {header.width}x{header.height} pixels", "export it again"
        )
    dtype = header.build_dtype()
    row, columns = dtype.itemsize, len(dtype.names or ())
    least = {
        Encoding.ASCII: 2 * columns * header.points - 1,  # the last line may lack its end
        Encoding.BINARY: row * header.points,
    }.get(header.data, SIZES_BYTES + row * header.points // BEST_COMPRESSION)
    if least > len(body):
        raise FormatError(
            f"claims {header.points} points, more than its {len(body)} bytes can hold: cut short or damaged",
            "export or copy it again",
        )
    if header.data not in (Encoding.ASCII, Encoding.BINARY):
        packed, unpacked = struct.unpack_from("<II", body)
        if unpacked != row * header.points or packed > len(body) - SIZES_BYTES:
            raise FormatError(
                f"claims {packed} bytes that unpack to {unpacked}, but has {len(body) - SIZES_BYTES} "
                f"for {header.points} points of {row}",
                "export or copy it again",
            )


def _colors(points: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    for name in COLOR_FIELDS:
        if name in (points.dtype.names or ()) and points[name].dtype.itemsize == 4:
            packed = np.ascontiguousarray(points[name]).view(np.uint32)
            return rows_of(
                np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8),
                size,
            )
    return None
