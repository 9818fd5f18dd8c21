"""Reading the three files of a sample as data, and the errors about files that can't be used."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from utils import image_files
from utils.image_files import (
    SampleFileError,
    encode_png,
    encode_xyz,
    read_mask,
    read_rgb,
    read_xyz,
    write_png,
    write_xyz,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
CLOUD = np.random.default_rng(1).normal(size=(12, 9, 3)).astype(np.float32)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_png(tmp_path / "new" / "rgb.png", PIXELS)
    write_xyz(tmp_path / "new" / "xyz.tiff", CLOUD)
    np.testing.assert_array_equal(read_rgb(tmp_path / "new" / "rgb.png"), PIXELS)
    np.testing.assert_array_equal(read_xyz(tmp_path / "new" / "xyz.tiff"), CLOUD)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["rgb.png", "xyz.tiff"]


def test_mask_codes_are_kept(tmp_path: Path) -> None:
    mask = np.array([[0, 252, 253], [254, 255, 1]], dtype=np.uint8)
    write_png(tmp_path / "gt.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "gt.png"), mask)


def test_mask_of_one_bit_is_read_as_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "gt.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "gt.png"), [[255, 0]])


def test_float64_and_big_endian_clouds_become_float32(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "64.tiff", CLOUD.astype(np.float64), photometric="rgb")
    tifffile.imwrite(tmp_path / "big.tiff", CLOUD, photometric="rgb", byteorder=">")
    for name in ("64.tiff", "big.tiff"):
        cloud = read_xyz(tmp_path / name)
        assert cloud.dtype == np.float32
        assert cloud.dtype.isnative
        np.testing.assert_array_equal(cloud, CLOUD)


def test_same_content_gives_same_bytes() -> None:
    assert encode_png(PIXELS) == encode_png(PIXELS.copy())
    assert encode_xyz(CLOUD) == encode_xyz(CLOUD.copy())


def test_pixels_are_writable(tmp_path: Path) -> None:
    write_png(tmp_path / "rgb.png", PIXELS)
    write_xyz(tmp_path / "xyz.tiff", CLOUD)
    assert read_rgb(tmp_path / "rgb.png").flags.writeable
    assert read_xyz(tmp_path / "xyz.tiff").flags.writeable


def _png(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(PIXELS).convert(mode).save(path, format="PNG")


def _tiff(array: np.ndarray, **options: object) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, array, **options)


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _claim(path: Path, width: int, height: int) -> None:
    """A small valid png that claims another size: only the header is changed, with its checksum."""
    header = b"IHDR" + struct.pack(">II", width, height) + bytes([8, 2, 0, 0, 0])
    content = encode_png(PIXELS)
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])


def _claim_tiff(path: Path) -> None:
    tifffile.imwrite(path, CLOUD, photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["ImageWidth"].overwrite(100_000)
        tiff.pages.first.tags["ImageLength"].overwrite(100_000)


def _pages(path: Path) -> None:
    for axis in range(3):
        tifffile.imwrite(path, CLOUD[..., axis], append=axis > 0, photometric="minisblack")


DEEP = np.arange(12, dtype=np.uint16).reshape(3, 4)
DEEP_PNG = partial(Image.fromarray(DEEP).save, format="PNG")
JPEG = partial(Image.fromarray(PIXELS).save, format="JPEG")
BAD_FILES = {  # reader, what writes the file, the problem and the remedy that are named
    "missing rgb": (read_rgb, lambda path: None, "can't be read (No such file", "check the path"),
    "missing xyz": (read_xyz, lambda path: None, "can't be read (No such file", "check the path"),
    "gray rgb": (read_rgb, _png("L"), "is gray with 8 bits a channel, expected RGB", "utils/convert.py"),
    "rgb with alpha": (read_rgb, _png("RGBA"), "is RGBA", "utils/convert.py"),
    "palette rgb": (read_rgb, _png("P"), "is palette", "utils/convert.py"),
    "rgb mask": (
        read_mask,
        _png("RGB"),
        "is RGB with 8 bits a channel, expected gray",
        "utils/convert.py",
    ),
    "16-bit mask": (read_mask, DEEP_PNG, "16 bits", "utils/convert.py"),
    "jpeg as png": (read_rgb, JPEG, "it is a JPEG named .bin", "utils/convert.py"),
    "bmp as png": (read_mask, _bytes(b"BM" + bytes(60)), "it is a BMP", "utils/convert.py"),
    "web page as png": (read_rgb, _bytes(b"<!DOCTYPE html>"), "an HTML page", "download it again"),
    "lfs pointer": (
        read_xyz,
        _bytes(b"version https://git-lfs.github.com/spec/v1"),
        "Git LFS",
        "git lfs pull",
    ),
    "ply as tiff": (read_xyz, _bytes(b"ply\nformat ascii 1.0\n"), "it is a PLY file", "utils/convert.py"),
    "pcd as tiff": (read_xyz, _bytes(b"# .PCD v0.7"), "it is a PCD file", "utils/convert.py"),
    "png as tiff": (read_xyz, _png("RGB"), "it is a PNG", "utils/convert.py"),
    "text as png": (read_rgb, _bytes(b"not an image"), "not a png", "restore"),
    "empty png": (read_mask, _bytes(b""), "not a png file but empty", "restore"),
    "half a png": (read_rgb, _bytes(encode_png(PIXELS)[:150]), "cut short", "restore"),
    "png header only": (read_rgb, _bytes(encode_png(PIXELS)[:33]), "cut short", "restore"),
    "png signature only": (read_rgb, _bytes(encode_png(PIXELS)[:8]), "cut short", "restore"),
    "text as tiff": (read_xyz, _bytes(b"not an image"), "no readable tiff", "restore"),
    "empty tiff": (read_xyz, _bytes(b""), "no readable tiff but empty", "restore"),
    "half a tiff": (read_xyz, _bytes(encode_xyz(CLOUD)[:700]), "cut short", "restore"),
    "tiff signature only": (read_xyz, _bytes(encode_xyz(CLOUD)[:4]), "cut short", "restore"),
    "depth image": (read_xyz, _tiff(DEEP), "shape (3, 4) of uint16, like a depth image", "utils/convert.py"),
    "channels first": (
        read_xyz,
        _tiff(CLOUD.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"),
        "has shape (3, 12, 9)",
        "last axis",
    ),
    "four channels": (
        read_xyz,
        _tiff(np.concatenate([CLOUD, CLOUD[..., :1]], axis=2), photometric="rgb"),
        "(12, 9, 4)",
        "last axis",
    ),
    "integers": (read_xyz, _tiff(PIXELS, photometric="rgb"), "holds uint8", "float32"),
    "half floats": (read_xyz, _tiff(CLOUD.astype(np.float16), photometric="rgb"), "holds float16", "float32"),
    "three pages": (read_xyz, _pages, "has 3 pages, expected one", "channels of one page"),
    "huge tiff": (read_xyz, _claim_tiff, "is too large: 100000x100000 pixels", "shrink"),
    "huge png": (
        read_rgb,
        partial(_claim, width=100_000, height=2000),
        "is too large: 100000x2000",
        "shrink",
    ),
    "folder": (read_rgb, Path.mkdir, "is no regular file", "put the file itself there"),
    "pipe": (read_xyz, os.mkfifo, "is no regular file", "put the file itself there"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_named_with_what_is_wrong_and_a_remedy_that_helps(case: str, tmp_path: Path) -> None:
    read, write, problem, remedy = BAD_FILES[case]
    path = tmp_path / "sample.bin"
    write(path)
    with pytest.raises(SampleFileError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_second_page_is_not_dropped_silently(tmp_path: Path) -> None:
    write_xyz(tmp_path / "xyz.tiff", CLOUD)
    tifffile.imwrite(tmp_path / "xyz.tiff", CLOUD + 1, photometric="rgb", append=True)
    with pytest.raises(SampleFileError, match="has 2 pages"):
        read_xyz(tmp_path / "xyz.tiff")


def test_compressed_strip_that_holds_more_than_the_image_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MAX_BYTES", 50_000)
    tifffile.imwrite(
        tmp_path / "xyz.tiff", np.zeros((100, 90, 3), np.float32), photometric="rgb", compression="zlib"
    )
    with tifffile.TiffFile(tmp_path / "xyz.tiff", mode="r+b") as tiff:
        tiff.pages.first.tags["ImageLength"].overwrite(12)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda _: pytest.fail("unpacked"))
    with pytest.raises(SampleFileError, match="a strip holds more than the image's 12960 bytes"):
        read_xyz(tmp_path / "xyz.tiff")


def test_file_too_small_for_what_it_promises_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "xyz.tiff", CLOUD, photometric="rgb", compression="zlib")
    with tifffile.TiffFile(tmp_path / "xyz.tiff", mode="r+b") as tiff:
        tiff.pages.first.tags["ImageLength"].overwrite(1_000_000)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda _: pytest.fail("unpacked"))
    with pytest.raises(SampleFileError, match="can't hold"):
        read_xyz(tmp_path / "xyz.tiff")


def test_compression_without_a_bound_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "xyz.tiff", CLOUD, photometric="rgb", compression="lzma")
    with pytest.raises(SampleFileError, match=r"LZMA.*not read; write it uncompressed"):
        read_xyz(tmp_path / "xyz.tiff")


def test_compression_that_is_not_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    write_xyz(tmp_path / "xyz.tiff", CLOUD)
    with pytest.raises(SampleFileError, match=r"LZW.*write it uncompressed"):
        read_xyz(tmp_path / "xyz.tiff")


@pytest.mark.parametrize("shape", [(1, 9, 3), (12, 1, 3), (1, 1, 3)])
def test_cloud_of_one_row_or_column_is_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    cloud = np.ones(shape, dtype=np.float32)
    write_xyz(tmp_path / "xyz.tiff", cloud)
    np.testing.assert_array_equal(read_xyz(tmp_path / "xyz.tiff"), cloud)


def test_tiff_in_strips_that_was_cut_is_not_filled_with_zeros(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "whole.tiff", CLOUD, photometric="rgb", rowsperstrip=1)
    content = (tmp_path / "whole.tiff").read_bytes()
    (tmp_path / "cut.tiff").write_bytes(content[:-200])
    with pytest.raises(SampleFileError, match="cut short"):
        read_xyz(tmp_path / "cut.tiff")


def test_error_survives_the_way_between_processes(tmp_path: Path) -> None:
    error = SampleFileError(tmp_path / "a.png", "is damaged")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
