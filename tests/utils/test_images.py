"""Images in common formats become 8-bit RGB, masks 8-bit grey; what was changed is said."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sensor_files import mutated
from utils.formats.images import ORIENTATION, load_image, load_mask, read_image
from utils.image_files import SampleFileError

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = np.full((6, 9, 1), 7, np.uint8)
DEEP = GREY.astype(np.uint16) << 8 | 77


def deep_png(path: Path) -> None:
    """RGB of 16 bits, which Pillow can't write."""
    pixels = RGB.astype(">u2") << 8
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 9, 6, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
        )
    )


def _save(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(array).save(path)


def _palette(path: Path) -> None:
    image = Image.fromarray(GREY // 64).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.save(path, transparency=1)


THREE_GREYS = np.repeat(GREY[..., None], 3, axis=2)
IMAGES = {
    "png": ("a.png", _save(RGB), RGB, None),
    "bmp": ("a.bmp", _save(RGB), RGB, None),
    "tiff": ("a.tif", _save(RGB), RGB, None),
    "alpha": ("a.png", _save(np.concatenate([RGB, ALPHA], axis=2)), RGB, "alpha dropped"),
    "grey": ("a.png", _save(GREY), THREE_GREYS, "grey made RGB"),
    "grey alpha": ("a.png", _save(np.dstack([GREY, ALPHA])), THREE_GREYS, "grey with alpha made RGB"),
    "16-bit grey": (
        "a.png",
        _save(DEEP),
        THREE_GREYS,
        f"of 16 bits made RGB of 8, the brightest is now {GREY.max()}",
    ),
    "16-bit grey tiff": ("a.tif", _save(DEEP), THREE_GREYS, "grey of 16 bits"),
    "16-bit rgb": ("a.png", deep_png, RGB, "16 bits a channel made 8"),
    "palette": (
        "a.png",
        _palette,
        np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], np.uint8)[GREY // 64],
        "palette made RGB",
    ),
    "one bit": ("a.png", _save(GREY > 99), np.where(THREE_GREYS > 99, 255, 0), "one bit a pixel made RGB"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_image_becomes_8_bit_rgb_and_says_what_changed(case: str, tmp_path: Path) -> None:
    name, save, expected, note = IMAGES[case]
    save(tmp_path / name)
    image = load_image(tmp_path / name)
    assert image.pixels.dtype == np.uint8
    np.testing.assert_array_equal(image.pixels, expected)
    assert [note in text for text in image.notes] == ([True] if note else [])
    np.testing.assert_array_equal(read_image(tmp_path / name), image.pixels)


def test_jpg_is_read(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None], (64, 48, 3))
    Image.fromarray(np.ascontiguousarray(smooth)).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").astype(int), smooth, atol=3)


TURNS = {  # EXIF's orientation: how the stored pixels are turned upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_image_is_turned_upright_by_its_exif_tag(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"a{suffix}"
    Image.fromarray(RGB).save(path, exif=exif)
    image = load_image(path)
    np.testing.assert_array_equal(image.pixels, TURNS[orientation](RGB))
    assert f"orientation {orientation}" in image.notes[0]
    assert image.turned_aside == (orientation >= 5)


def test_mask_codes_are_kept_and_colours_become_255(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "grey.png").pixels, GREY)
    coloured = np.zeros((6, 9, 4), np.uint8)
    coloured[..., 3] = 255
    coloured[2, 3, 2] = 1
    Image.fromarray(coloured).save(tmp_path / "rgba.png")
    Image.fromarray(coloured[..., 2].astype(np.uint16) * 300).save(tmp_path / "deep.png")
    for name in ("rgba.png", "deep.png"):
        mask = load_mask(tmp_path / name)
        np.testing.assert_array_equal(mask.pixels, coloured[..., 2] * 255)
        assert mask.notes == ("mask: every pixel that is not black made 255",)


def _cut(path: Path) -> None:
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[:100])


def _two_pages(path: Path) -> None:
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(RGB)])


def _huge(path: Path) -> None:
    Image.fromarray(RGB).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 9000, 9000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


BAD_IMAGES = {
    "missing": ("a.png", lambda path: None, "No such file"),
    "text": ("a.jpg", lambda path: path.write_text("no image"), "no readable image"),
    "empty": ("a.bmp", lambda path: path.write_bytes(b""), "no readable image"),
    "cut": ("a.png", _cut, "no readable image"),
    "two pages": ("a.tif", _two_pages, "holds several pictures"),
    "huge": ("a.png", _huge, "claims 9000x9000 pixels"),
    "floats": ("a.tif", _save(RGB[..., 0].astype(np.float32)), "mode F"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image_is_named(case: str, tmp_path: Path) -> None:
    name, make, problem = BAD_IMAGES[case]
    make(tmp_path / name)
    with pytest.raises(SampleFileError, match=problem) as caught:
        load_image(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_lossy_mask_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "mask.jpg")
    with pytest.raises(SampleFileError, match="save masks as png or bmp"):
        load_mask(tmp_path / "mask.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.webp"])
@pytest.mark.filterwarnings("ignore")
def test_every_mutant_is_read_or_ends_in_the_one_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(RGB).save(path)
    content, rng = path.read_bytes(), np.random.default_rng([2, *name.encode()])
    refused = 0
    for _ in range(100):
        path.write_bytes(mutated(content, rng))
        for load in (load_image, load_mask):
            try:
                assert load(path).pixels.dtype == np.uint8
            except SampleFileError:
                refused += 1
    assert refused > 0
