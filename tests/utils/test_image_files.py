"""Reading the three files of a sample as data, and the errors about files that can't be used."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

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


DEEP = np.arange(12, dtype=np.uint16).reshape(3, 4)
BAD_FILES = {
    "missing rgb": (read_rgb, lambda path: None, "can't be read"),
    "missing xyz": (read_xyz, lambda path: None, "can't be read"),
    "gray rgb": (read_rgb, _png("L"), "is gray with 8 bits a channel, expected RGB"),
    "rgb with alpha": (read_rgb, _png("RGBA"), "is RGBA"),
    "palette rgb": (read_rgb, _png("P"), "is palette"),
    "rgb mask": (read_mask, _png("RGB"), "is RGB with 8 bits a channel, expected gray"),
    "16-bit mask": (read_mask, lambda path: Image.fromarray(DEEP).save(path, format="PNG"), "16 bits"),
    "text as png": (read_rgb, _bytes(b"not an image"), "not a png"),
    "empty png": (read_mask, _bytes(b""), "not a png"),
    "half a png": (read_rgb, _bytes(encode_png(PIXELS)[:150]), "cut short"),
    "png header only": (read_rgb, _bytes(encode_png(PIXELS)[:33]), "cut short"),
    "text as tiff": (read_xyz, _bytes(b"not an image"), "no readable tiff"),
    "empty tiff": (read_xyz, _bytes(b""), "no readable tiff"),
    "half a tiff": (read_xyz, _bytes(encode_xyz(CLOUD)[:700]), "cut short"),
    "one channel": (read_xyz, _tiff(CLOUD[..., 0]), "has shape (12, 9)"),
    "channels first": (
        read_xyz,
        _tiff(CLOUD.transpose(2, 0, 1), photometric="minisblack"),
        "has shape",
    ),
    "four channels": (
        read_xyz,
        _tiff(np.concatenate([CLOUD, CLOUD[..., :1]], axis=2), photometric="rgb"),
        "(12, 9, 4)",
    ),
    "integers": (read_xyz, _tiff(PIXELS, photometric="rgb"), "holds uint8"),
    "half floats": (read_xyz, _tiff(CLOUD.astype(np.float16), photometric="rgb"), "holds float16"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_named_with_what_is_wrong_and_a_remedy(case: str, tmp_path: Path) -> None:
    read, write, problem = BAD_FILES[case]
    path = tmp_path / "sample.bin"
    write(path)
    with pytest.raises(SampleFileError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert problem in message
    assert "restore" in message


def test_tiff_in_strips_that_was_cut_is_not_filled_with_zeros(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "whole.tiff", CLOUD, photometric="rgb", rowsperstrip=1)
    content = (tmp_path / "whole.tiff").read_bytes()
    (tmp_path / "cut.tiff").write_bytes(content[:-200])
    with pytest.raises(SampleFileError, match="cut short"):
        read_xyz(tmp_path / "cut.tiff")


def test_error_survives_the_way_between_processes(tmp_path: Path) -> None:
    error = SampleFileError(tmp_path / "a.png", "is damaged")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
