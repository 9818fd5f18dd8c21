"""Damaged, false and hostile cloud files: each ends in one error that names the file, and takes no memory."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pypcd4 import Encoding

from tests.sensor_files import CAMERA, made_up_cloud, made_up_image, mutated, write_pcd, write_ply
from utils.formats.cameras import PinholeCamera
from utils.formats.clouds import CloudOptions, read_cloud
from utils.image_files import SampleFileError, encode_xyz

CLOUD = made_up_cloud()
OPTIONS = CloudOptions(unit="m", size=(30, 20), camera=CAMERA, depth_scale=1e-4)
HUGE = 10**12
PLY_HEADER = "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
PCD_HEADER = (
    "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {}\nHEIGHT {}\n"
    "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {}\nDATA {}\n"
)


def ply_bytes(tmp_path: Path, **variant: object) -> bytes:
    return write_ply(tmp_path / "whole.ply", CLOUD, **variant).read_bytes()


def pcd_bytes(tmp_path: Path, encoding: Encoding) -> bytes:
    return write_pcd(tmp_path / "whole.pcd", CLOUD, encoding).read_bytes()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, xyz=array)
    return buffer.getvalue()


def _npz_of_zeros(_: Path) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("xyz.npy", "w") as member,
    ):
        zeros = np.zeros((1000, 1000), np.uint8)
        np.lib.format.write_array_header_1_0(
            member, {"shape": (50, 1000, 1000), "fortran_order": False, "descr": "|u1"}
        )
        for _ in range(50):
            member.write(zeros.tobytes())
    return buffer.getvalue()


def _large_tiff(_: Path) -> bytes:
    content = bytearray(encode_xyz(CLOUD))
    for side in (30, 20):  # entries of type SHORT or LONG, one value
        at = next(
            content.index(struct.pack("<HI", kind, 1) + struct.pack("<I", side))
            for kind in (3, 4)
            if struct.pack("<HI", kind, 1) + struct.pack("<I", side) in content
        )
        content[at : at + 10] = struct.pack("<HII", 4, 1, 100_000)
    return bytes(content)


def _tiff(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def _header(template: str, *values: object) -> Callable[[Path], bytes]:
    return lambda _: template.format(*values).encode()


BAD_FILES: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "empty ply": (".ply", lambda _: b"", "no PLY header"),
    "text as ply": (".ply", lambda _: b"not a cloud\n" * 99, "no PLY header"),
    "ply without end": (".ply", lambda t: ply_bytes(t)[:60], "no PLY header"),
    "half a binary ply": (".ply", lambda t: ply_bytes(t)[:3000], "claims 600 rows of vertex, more than"),
    "half an ascii ply": (".ply", lambda t: ply_bytes(t, text=True)[:4000], "no readable PLY"),
    "ascii ply without its last rows": (
        ".ply",
        lambda t: ply_bytes(t, text=True).rsplit(b"\n", 300)[0],
        "claims 600 vertices but ends after",
    ),
    "ply of words": (".ply", _header(PLY_HEADER + "a b c\n" * 600, "ascii", 600), "no readable PLY"),
    "ply of two columns": (".ply", _header(PLY_HEADER + "1 2\n" * 900, "ascii", 600), "no readable PLY"),
    "huge binary ply": (".ply", _header(PLY_HEADER, "binary_little_endian", HUGE), f"claims {HUGE} rows"),
    "huge ascii ply": (".ply", _header(PLY_HEADER, "ascii", HUGE), f"claims {HUGE} rows"),
    "negative ply": (".ply", _header(PLY_HEADER, "ascii", -3), "claims -3 rows"),
    "ply without a number": (".ply", _header(PLY_HEADER, "ascii", "many"), "no readable PLY"),
    "unknown ply format": (".ply", _header(PLY_HEADER, "zipped", 600), "no readable PLY"),
    "ply without z": (
        ".ply",
        lambda t: ply_bytes(t).replace(b"float z", b"float q"),
        "no properties x, y and z",
    ),
    "ply without vertices": (
        ".ply",
        lambda t: ply_bytes(t).replace(b"vertex", b"corner"),
        "no element vertex",
    ),
    "ply of lists": (
        ".ply",
        lambda t: ply_bytes(t).replace(b"property float z", b"property list uchar float z"),
        "has lists in its element vertex",
    ),
    "empty pcd": (".pcd", lambda _: b"", "no PCD header"),
    "text as pcd": (".pcd", lambda _: b"not a cloud\n" * 9999, "no PCD header"),
    "pcd without fields": (".pcd", lambda _: b"WIDTH 3\nDATA ascii\n", "no readable PCD"),
    "half a binary pcd": (
        ".pcd",
        lambda t: pcd_bytes(t, Encoding.BINARY)[:3000],
        "claims 600 points, more than",
    ),
    "half an ascii pcd": (".pcd", lambda t: pcd_bytes(t, Encoding.ASCII)[:9000], "no readable PCD"),
    "ascii pcd without its last rows": (
        ".pcd",
        lambda t: pcd_bytes(t, Encoding.ASCII).rsplit(b"\n", 300)[0],
        "claims 600 points but ends after",
    ),
    "pcd of a thousand million columns": (
        ".pcd",
        lambda t: pcd_bytes(t, Encoding.BINARY).replace(b"COUNT 1", b"COUNT 1000000000"),
        "claims 1000000003 numbers a point",
    ),
    "half a compressed pcd": (
        ".pcd",
        lambda t: pcd_bytes(t, Encoding.BINARY_COMPRESSED)[:3000],
        "bytes that unpack to",
    ),
    "huge pcd": (".pcd", _header(PCD_HEADER, HUGE, 1, HUGE, "binary"), f"claims {HUGE}x1 pixels"),
    "large ascii pcd": (
        ".pcd",
        _header(PCD_HEADER, 8000, 8000, 64 * 10**6, "ascii"),
        "more than its 0 bytes",
    ),
    "large compressed pcd": (
        ".pcd",
        _header(PCD_HEADER + "\x01\x00\x00\x00\xff", 8000, 8000, 64 * 10**6, "binary_compressed"),
        "claims 64000000 points, more than",
    ),
    "pcd whose counts differ": (".pcd", _header(PCD_HEADER, 30, 20, 601, "binary"), "601 points for 30x20"),
    "pcd without z": (
        ".pcd",
        lambda t: pcd_bytes(t, Encoding.BINARY).replace(b"x y z", b"x y q"),
        "no fields x, y and z",
    ),
    "pickle as npy": (".npy", lambda _: _npy(np.array([{}], dtype=object)), "claims an array"),
    "huge npy": (
        ".npy",
        lambda _: _npy(CLOUD).replace(b"(20, 30, 3), }     ", b"(9999999, 30, 3), }"),
        "claims an",
    ),
    "npy of four channels": (".npy", lambda _: _npy(np.zeros((20, 30, 4))), "has shape (20, 30, 4)"),
    "text as npz": (".npz", lambda _: b"not an archive", "no readable npz"),
    "npz bomb with an honest header": (".npz", _npz_of_zeros, "has shape (50, 1000, 1000)"),
    "ply named tiff": (".tiff", ply_bytes, "is a PLY file by its content; rename it to sample.ply"),
    "pcd named ply": (".ply", lambda t: pcd_bytes(t, Encoding.ASCII), "is a PCD file by its content"),
    "tiff named png": (".png", lambda _: encode_xyz(CLOUD), "is a tiff file by its content"),
    "half a tiff": (".tiff", lambda _: encode_xyz(CLOUD)[:3000], "cut short"),
    "huge tiff": (".tiff", _large_tiff, "claims 100000x100000 pixels"),
    "tiff of two pages": (".tif", lambda _: _tiff(np.stack([CLOUD] * 2), photometric="rgb"), "has 2 pages"),
    "colour image as tiff": (".tiff", lambda _: _tiff(made_up_image(), photometric="rgb"), "holds uint8"),
    "colour image as depth": (".png", lambda _: _png(made_up_image()), "one channel of 16 bits"),
    "depth of 8 bits": (".png", lambda _: _png(made_up_image()[..., 0]), "has lost the distances"),
    "half a depth png": (
        ".png",
        lambda _: _png(np.arange(600, dtype=np.uint16).reshape(20, 30))[:90],
        "no readable",
    ),
    "stl": (".stl", lambda _: b"solid", "unknown suffix '.stl'; clouds end in .ply, .pcd"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_cloud_ends_in_one_line_and_takes_no_memory(case: str, tmp_path: Path) -> None:
    suffix, make, problem = BAD_FILES[case]
    path = tmp_path / f"sample{suffix}"
    path.write_bytes(make(tmp_path))
    read_cloud(write_ply(tmp_path / "warm.ply", CLOUD), OPTIONS)
    tracemalloc.start()
    with pytest.raises(SampleFileError) as caught:
        read_cloud(path, OPTIONS)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert "\n" not in message
    assert "; " in message
    assert most < 10 * 2**20


def test_missing_cloud_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleFileError, match="No such file"):
        read_cloud(tmp_path / "none.ply", OPTIONS)


# Mutants

SMALL = made_up_cloud(6, 4)
SMALL_OPTIONS = CloudOptions(unit="m", size=(6, 4), camera=PinholeCamera(9, 9, 3, 2), depth_scale=1e-4)
DEPTH = np.arange(5000, 5024, dtype=np.uint16).reshape(4, 6)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


SEEDS = {
    "ascii.ply": lambda path: write_ply(path, SMALL, text=True, extras=True),
    "little.ply": lambda path: write_ply(path, SMALL, colors=made_up_image(6, 4)),
    "big.ply": lambda path: write_ply(path, SMALL, byte_order=">", dtype="f8", extras=True),
    "ascii.pcd": lambda path: write_pcd(path, SMALL, Encoding.ASCII),
    "binary.pcd": lambda path: write_pcd(path, SMALL, Encoding.BINARY, colors=made_up_image(6, 4)),
    "compressed.pcd": lambda path: write_pcd(path, SMALL, Encoding.BINARY_COMPRESSED),
    "cloud.npy": lambda path: write(path, _npy(SMALL)),
    "cloud.npz": lambda path: write(path, _npz(SMALL)),
    "cloud.tiff": lambda path: write(path, encode_xyz(SMALL)),
    "depth.tiff": lambda path: write(path, _tiff(DEPTH, compression="zlib")),
    "depth.png": lambda path: write(path, _png(DEPTH)),
}
MUTANTS = 150  # of each


@pytest.mark.parametrize("seed", SEEDS)
def test_every_mutant_is_read_or_ends_in_the_one_error(seed: str, tmp_path: Path) -> None:
    content = SEEDS[seed](tmp_path / seed).read_bytes()
    rng = np.random.default_rng([1, *seed.encode()])
    refused = 0
    for _ in range(MUTANTS):
        (tmp_path / seed).write_bytes(mutated(content, rng))
        try:
            cloud = read_cloud(tmp_path / seed, SMALL_OPTIONS)
        except SampleFileError:
            refused += 1
        else:
            assert cloud.dtype == np.float32
            assert np.isfinite(cloud).all()
    assert 0 < refused < MUTANTS
