"""What a file really is, by its first bytes, whatever its name says."""

from __future__ import annotations

from typing import NamedTuple

HEADER_BYTES = 64  # enough for every signature below
CONVERT = "convert it: python utils/convert.py --input ROOT --tree --output DIR"
REPLACE = "put the real file in its place"


class FileKind(NamedTuple):
    """What a file is, as in "is a PLY file", and what to do with one where an image or cloud should be."""

    name: str
    remedy: str


_PLY = FileKind("a PLY file", CONVERT)
_PCD = FileKind("a PCD file", CONVERT)
_TIFF = FileKind("a TIFF", CONVERT)
_PNM = FileKind("a PGM or PPM image", CONVERT)
_HTML = FileKind("an HTML page", "a download failed: download it again")

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", FileKind("a PNG", CONVERT)),
    (b"\xff\xd8\xff", FileKind("a JPEG", CONVERT)),
    (b"II*\x00", _TIFF),
    (b"MM\x00*", _TIFF),
    (b"II+\x00", _TIFF),  # BigTIFF
    (b"MM\x00+", _TIFF),
    (b"ply\n", _PLY),
    (b"ply\r", _PLY),
    (b"# .PCD", _PCD),
    (b"VERSION .7", _PCD),
    (b"VERSION 0.7", _PCD),
    (b"\x93NUMPY", FileKind("a NumPy array", "write it as tiff: utils/image_files.py, write_xyz")),
    (b"v/1\x01", FileKind("an OpenEXR image", CONVERT)),
    (b"BM", FileKind("a BMP", CONVERT)),
    (b"GIF8", FileKind("a GIF", CONVERT)),
    (b"P5\n", _PNM),
    (b"P6\n", _PNM),
    (b"version https://git-lfs", FileKind("a Git LFS pointer", "fetch the file itself: git lfs pull")),
    (b"<!DOCTYPE", _HTML),
    (b"<!doctype", _HTML),
    (b"<html", _HTML),
    (b"PK\x03\x04", FileKind("a zip archive", REPLACE)),
    (b"\x1f\x8b", FileKind("a gzip file", REPLACE)),
    (b"\x89HDF", FileKind("an HDF5 file", REPLACE)),
    (b"MATLAB 5.0", FileKind("a MATLAB file", REPLACE)),
    (b"%PDF", FileKind("a PDF", REPLACE)),
)


def kind_of(content: bytes) -> FileKind | None:
    """What the file with this beginning is; None when its signature is not known."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return FileKind("a WebP image", CONVERT)
    return next((kind for signature, kind in _SIGNATURES if content.startswith(signature)), None)
