"""Organised clouds of any format that we read, chosen by the file's suffix.

cloud = read_cloud(Path("part.ply"), CloudOptions(unit="mm", size=(1280, 1024)))  # (H, W, 3) float32 metres
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from utils.files import in_short, read_regular
from utils.formats.grids import read_depth_png, read_npy, read_npz, read_tiff
from utils.formats.organised import CloudOptions, FormatError, StoredCloud, in_metres
from utils.formats.pcd import read_pcd
from utils.formats.ply import read_ply
from utils.image_files import SampleFileError
from utils.plausibility import guess_unit

MAX_FILE_BYTES = 2**32


class CloudFormat(NamedTuple):
    """A format's name, how its files begin (empty: in no certain way), and its reader."""

    name: str
    starts: tuple[bytes, ...]
    read: Callable[[bytes, CloudOptions], StoredCloud]


PLY = CloudFormat("PLY", (b"ply\n", b"ply\r"), read_ply)
PCD = CloudFormat("PCD", (b"# .PCD", b"VERSION"), read_pcd)
PNG = CloudFormat("png", (b"\x89PNG",), read_depth_png)
TIFF = CloudFormat("tiff", (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), read_tiff)
NPY = CloudFormat("npy", (b"\x93NUMPY",), read_npy)
NPZ = CloudFormat("npz", (b"PK\x03\x04",), read_npz)

CLOUD_FORMATS = {  # by suffix in lower case
    ".ply": PLY,
    ".pcd": PCD,
    ".png": PNG,
    ".tiff": TIFF,
    ".tif": TIFF,
    ".npy": NPY,
    ".npz": NPZ,
}


def read_cloud(path: Path, options: CloudOptions) -> np.ndarray:
    """Organised cloud (H, W, 3) float32 in metres, (0, 0, 0) where nothing was measured.

    With unit "auto" the cloud's own distances tell the unit. Raises SampleFileError.
    """
    stored = load_cloud(path, options)
    if stored.in_metres:
        return in_metres(stored.points, "m")
    return in_metres(stored.points, told_unit(path, stored) if options.unit == "auto" else options.unit)


def load_cloud(path: Path, options: CloudOptions) -> StoredCloud:
    """The cloud as it is stored. Raises SampleFileError when the file can't be used, whatever is in it."""
    suffix = path.suffix.lower()
    if suffix not in CLOUD_FORMATS:
        raise SampleFileError(
            path, f"has the unknown suffix '{path.suffix}'", f"clouds end in {', '.join(CLOUD_FORMATS)}"
        )
    content = _content(path)
    expected = CLOUD_FORMATS[suffix]
    for other in CLOUD_FORMATS.values():
        if other is not expected and content.startswith(other.starts):
            raise SampleFileError(
                path,
                f"is a {other.name} file by its content",
                f"rename it to {path.stem}.{other.name.lower()}",
            )
    try:
        stored = expected.read(content, options)
    except FormatError as error:
        raise SampleFileError(path, in_short(error.problem), error.remedy) from error
    except Exception as error:  # damaged bytes may raise anything in a decoder
        raise SampleFileError(
            path,
            f"is no readable {expected.name} file or cut short ({in_short(error)})",
            "export or copy it again",
        ) from error
    _check_size(path, stored, options)
    return stored


def _check_size(path: Path, stored: StoredCloud, options: CloudOptions) -> None:
    height, width = stored.points.shape[:2]
    if options.size not in (None, (width, height)):
        raise SampleFileError(
            path,
            f"has {width}x{height} pixels, --width and --height say otherwise",
            "correct them, or leave them out",
        )


def told_unit(path: Path, stored: StoredCloud) -> Literal["m", "mm"]:
    """The unit that a cloud's distances tell. Raises SampleFileError when they tell none."""
    try:
        return guess_unit([stored.points])
    except ValueError as error:
        raise SampleFileError(path, "is in an unknown unit", str(error)) from error


def _content(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise SampleFileError(path, f"has {size} bytes, too many for a cloud", "export it again")
        return read_regular(path)
    except OSError as error:
        raise SampleFileError(path, f"can't be read ({error.strerror})", "check its name") from error
