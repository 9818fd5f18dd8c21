"""Organised clouds in PLY files, ascii or binary: plyfile reads the header, NumPy the rows.

plyfile reads rows of text one number at a time (9 s for 1280x1024 points where NumPy takes 0.4 s) and binary ones
from named files only.
"""

from __future__ import annotations

import io
import re

import numpy as np
from plyfile import PlyData, PlyElement, PlyListProperty

from utils.formats.organised import CloudOptions, FormatError, StoredCloud, grid_size, rows_of

LONGEST_HEADER = 1 << 16  # bytes
ELEMENT = re.compile(rb"^(\s*element\s+\S+)\s+(\S+)[^\n]*$", re.MULTILINE)
STATED_WIDTH = re.compile(r"(?:width|cols|columns)\W{0,3}(\d{1,6})\b", re.IGNORECASE)
STATED_HEIGHT = re.compile(r"(?:height|rows)\W{0,3}(\d{1,6})\b", re.IGNORECASE)
COLORS = ("red", "green", "blue")
TEXT_NAN = b"-nan(ind)"  # as Microsoft's C library writes it


def read_ply(content: bytes, options: CloudOptions) -> StoredCloud:
    """The cloud of a PLY file's vertices, with their colours if they have any. Raises FormatError.

    Whatever plyfile or NumPy raises on damaged content goes through.
    """
    header, body = _split(content)
    counts = [int(count) for _, count in ELEMENT.findall(header)]
    ply = PlyData.read(io.BytesIO(ELEMENT.sub(rb"\1 0", header)))  # no rows: nothing is allocated on its word
    vertices = _vertices(ply.elements, counts, body, ply.text, "=" if ply.text else ply.byte_order)
    if not {"x", "y", "z"} <= set(vertices.dtype.names or ()):
        raise FormatError("its vertices have no properties x, y and z", "export it as a point cloud")
    size = grid_size(len(vertices), _stated_size([*ply.comments, *ply.obj_info]), options)
    points = np.stack([vertices[name] for name in "xyz"], axis=-1)
    return StoredCloud(rows_of(_native_float(points), size), _colors(vertices, size))


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Header with line feeds alone, in ascii, and what follows it."""
    end = content.find(b"end_header", 0, LONGEST_HEADER)
    if not content.startswith(b"ply") or end < 0:
        raise FormatError("has no PLY header", "export it again")
    newline = b"\r\n" if content.startswith(b"ply\r\n") else content[3:4]
    header = content[:end].replace(newline, b"\n") + b"end_header\n"
    ascii_header = header.decode("ascii", errors="replace").replace("\ufffd", "?").encode("ascii")
    return ascii_header, content[end + len(b"end_header") + len(newline) :]


def _vertices(
    elements: tuple[PlyElement, ...], counts: list[int], body: bytes, text: bool, byte_order: str
) -> np.ndarray:
    """Structured array of the vertices' rows, one a vertex."""
    start = 0  # rows of text, or bytes
    for element, count in zip(elements, counts, strict=True):
        if any(isinstance(item, PlyListProperty) for item in element.properties):
            raise FormatError(f"has lists in its element {element.name}", "export it as a point cloud")
        dtype = element.dtype(byte_order)
        _check_count(element, count, (2 * len(dtype) if text else dtype.itemsize) * count, len(body))
        if element.name == "vertex":
            return _text_rows(body, dtype, start, count) if text else np.frombuffer(body, dtype, count, start)
        start += count if text else count * dtype.itemsize
    raise FormatError("has no element vertex", "export it as a point cloud")


def _check_count(element: PlyElement, count: int, least_bytes: int, present: int) -> None:
    if (
        count < 0 or least_bytes > present + 1 or not element.properties
    ):  # the last row may lack its line's end
        raise FormatError(
            f"claims {count} rows of {element.name}, more than its {present} bytes can hold: cut short or damaged",
            "export or copy it again",
        )


def _text_rows(body: bytes, dtype: np.dtype, start: int, count: int) -> np.ndarray:
    rows = np.loadtxt(
        io.BytesIO(body.replace(TEXT_NAN, b"nan")),
        dtype=dtype,
        comments=None,
        skiprows=start,
        max_rows=count,
        ndmin=1,
    )
    if len(rows) != count:
        raise FormatError(f"claims {count} vertices but ends after {len(rows)}", "export or copy it again")
    return rows


def _native_float(points: np.ndarray) -> np.ndarray:
    """float32 where it is stored so, else float64."""
    return points.astype(
        np.float32 if points.dtype.itemsize <= 4 and points.dtype.kind == "f" else np.float64
    )


def _stated_size(notes: list[str]) -> tuple[int, int] | None:
    """(width, height) that comments or obj_info tell, such as `num_cols 1280` and `num_rows 1024`."""
    text = "\n".join(notes)
    width, height = STATED_WIDTH.search(text), STATED_HEIGHT.search(text)
    return (int(width[1]), int(height[1])) if width and height else None


def _colors(vertices: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    names = vertices.dtype.names or ()
    if any(name not in names or vertices[name].dtype != np.uint8 for name in COLORS):
        return None
    return rows_of(np.stack([vertices[name] for name in COLORS], axis=-1), size)
