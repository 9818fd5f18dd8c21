"""Sensor files made for the tests: organised clouds as PLY and PCD, and the camera that saw them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement
from pypcd4 import Encoding, MetaData, PointCloud

from utils.formats.cameras import PinholeCamera

CAMERA = PinholeCamera(fx=300.0, fy=301.0, cx=14.6, cy=9.7, width=30, height=20)


def made_up_cloud(width: int = 30, height: int = 20, seed: int = 0) -> np.ndarray:
    """(H, W, 3) float32 in metres, as the camera sees it at half a metre; a tenth of the pixels not measured."""
    rng = np.random.default_rng(seed)
    columns, rows = np.arange(width), np.arange(height)[:, None]
    x, y = CAMERA.directions(*np.broadcast_arrays(columns.astype(float), rows.astype(float)))
    z = 0.5 + 0.01 * rng.random((height, width))
    cloud = np.stack([x * z, y * z, z], axis=-1).astype(np.float32)
    cloud[rng.random((height, width)) < 0.1] = 0
    return cloud


def made_up_image(width: int = 30, height: int = 20, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_ply(
    path: Path,
    points: np.ndarray,
    *,
    text: bool = False,
    byte_order: str = "<",
    dtype: str = "f4",
    colors: np.ndarray | None = None,
    extras: bool = False,
    obj_info: tuple[str, ...] = (),
    comments: tuple[str, ...] = (),
) -> Path:
    """Vertices of points (..., 3) in row-major order; `extras` adds normals, a quality and a camera element."""
    points = points.reshape(-1, 3)
    names = ["nx", "ny", "nz"] if extras else []
    types = [*((n, dtype) for n in "xyz"), *((n, "f4") for n in names)]
    types += [(name, "u1") for name in ("red", "green", "blue")] if colors is not None else []
    vertices = np.zeros(len(points), dtype=[*types, ("quality", "i2")] if extras else types)
    for i, name in enumerate("xyz"):
        vertices[name] = points[:, i]
    if colors is not None:
        for i, name in enumerate(("red", "green", "blue")):
            vertices[name] = colors.reshape(-1, 3)[:, i]
    elements = [PlyElement.describe(vertices, "vertex")]
    if extras:
        camera = np.array([(0.0, 1.0)], dtype=[("view_px", "f4"), ("view_py", "f4")])
        elements.append(PlyElement.describe(camera, "camera"))
        faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
        elements.append(PlyElement.describe(faces, "face"))
    path.parent.mkdir(parents=True, exist_ok=True)
    order = "=" if text else byte_order
    data = PlyData(elements, text=text, byte_order=order, obj_info=list(obj_info), comments=list(comments))
    if text and not extras:  # plyfile's own way takes 20 times longer
        path.write_text(data.header + "\n" + _text_of(vertices), encoding="ascii")
    else:
        data.write(str(path))
    return path


def write_pcd(
    path: Path,
    cloud: np.ndarray,
    encoding: Encoding = Encoding.BINARY,
    *,
    colors: np.ndarray | None = None,
    organised: bool = True,
) -> Path:
    """A cloud (H, W, 3) float32 or float64, with packed colours where given, and a field that nobody reads."""
    height, width = cloud.shape[:2] if organised else (1, cloud[..., 0].size)
    flat = cloud.reshape(-1, 3)
    arrays = [*flat.T, np.arange(len(flat), dtype=np.uint16)]
    fields, types = ["x", "y", "z", "ring"], [cloud.dtype] * 3 + [np.dtype(np.uint16)]
    if colors is not None:
        red, green, blue = colors.reshape(-1, 3).T.astype(np.uint32)
        arrays.append(red << 16 | green << 8 | blue)
        fields.append("rgb")
        types.append(np.dtype(np.uint32))
    made = PointCloud.from_points([np.ascontiguousarray(a) for a in arrays], fields, types)
    metadata = MetaData.model_validate(
        {**made.metadata.model_dump(), "width": width, "height": height, "data": encoding}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if encoding is Encoding.ASCII:  # pypcd4 writes ten decimals, which are too few for small float32
        path.write_text(metadata.compose_header() + _text_of(made.pc_data), encoding="ascii")
    else:
        PointCloud(metadata, made.pc_data).save(path, encoding)
    return path


def _text_of(rows: np.ndarray) -> str:
    """Rows of a structured array with all digits that float32 or float64 have."""
    text = io.StringIO()
    digits = {"f4": "%.9g", "f8": "%.17g"}
    formats = [digits.get(rows.dtype[name].str[1:], "%d") for name in rows.dtype.names or ()]
    np.savetxt(text, rows, fmt=formats)
    return text.getvalue()


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, cut out, doubled, or replaced by a large number; half of the times in the header."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, 300 if rng.random() < 0.5 else len(data) + 1))
        length = int(rng.integers(1, 20))
        action = rng.integers(0, 5)
        if action == 0:
            data[at : at + 1] = rng.bytes(1)
        elif action == 1:
            del data[at : at + length]
        elif action == 2:
            data[at:at] = data[at : at + length]
        elif action == 3:
            data[at : at + 2] = b"9" * length
        else:
            del data[at:]
    return bytes(data)
