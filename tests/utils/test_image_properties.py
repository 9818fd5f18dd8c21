"""Images, masks and clouds of any size, mode and value: read as what they are, or refused by name."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pypcd4 import Encoding

from dataset import load_sample
from tests.odd_samples import LARGEST, Cloud, clouds, loaded, sizes
from tests.sensor_files import write_pcd, write_ply
from utils.formats.clouds import CloudOptions, read_cloud
from utils.formats.images import TURNED_ASIDE, load_image, load_mask, read_image
from utils.formats.organised import in_metres
from utils.image_files import SampleFileError, encode_png, encode_xyz, read_mask, read_rgb, read_xyz
from utils.plausibility import guess_unit
from utils.preprocess.sample import Parameters, preprocess_sample

ORIENTATION = 0x0112
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")
SEEDS = st.integers(0, 2**16)
CODES = np.array([0, 1, 7, 252, 253, 254, 255], np.uint8)


def _stored(content: bytes, suffix: str, read: object) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        return read(path)  # type: ignore[operator]


def _pixels(size: tuple[int, int], seed: int) -> np.ndarray:
    if size == LARGEST:  # quick to pack
        return (
            np.tile(np.arange(size[0]) // 8 % 256, (size[1], 1))[..., None].repeat(3, axis=2).astype(np.uint8)
        )
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def _image(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    pixels = _pixels(size, seed)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 + pixels[..., 1])
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(pixels).convert(mode)
        image.putalpha(Image.fromarray(pixels[..., 2]))  # also where nothing is opaque
        return image
    return Image.fromarray(pixels).convert(mode)


def _encoded(image: Image.Image, orientation: int = 1) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF's eight orientations mean, by NumPy."""
    turned = np.swapaxes(pixels, 0, 1) if orientation in TURNED_ASIDE else pixels
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    return turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned


@given(st.sampled_from(MODES), sizes(), SEEDS, st.integers(0, 9))
def test_an_image_of_any_mode_is_upright_rgb_of_8_bits(
    mode: str, size: tuple[int, int], seed: int, orientation: int
) -> None:
    image = _image(mode, size, seed)
    loaded = _stored(_encoded(image, orientation), ".png", load_image)
    if mode == "I;16":
        shown = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    else:
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(loaded.pixels, _upright(shown, orientation))
    assert loaded.pixels.dtype == np.uint8
    assert bool(loaded.notes) == (mode != "RGB" or orientation in range(2, 9))


@given(sizes(), SEEDS, st.sampled_from(("L", "1", "P", "RGBA", "I;16")))
def test_a_mask_keeps_its_codes_or_marks_whatever_is_not_black(
    size: tuple[int, int], seed: int, mode: str
) -> None:
    codes = np.random.default_rng(seed).choice(CODES, (size[1], size[0]))
    image = Image.fromarray(codes)
    if mode == "I;16":
        image = Image.fromarray(codes.astype(np.uint16))  # 255 of 65535 is a defect too
    elif mode != "L":
        image = Image.fromarray(np.where(codes > 0, np.uint8(255), np.uint8(0))).convert(mode)
    found = _stored(_encoded(image), ".png", load_mask).pixels
    expected = codes if mode == "L" else np.where(codes > 0, 255, 0)
    np.testing.assert_array_equal(found, expected)
    if mode in ("L", "1"):
        np.testing.assert_array_equal(_stored(_encoded(image), ".png", read_mask), expected)


@given(st.sampled_from(MODES), sizes(), SEEDS)
def test_a_data_set_s_image_is_read_as_it_is_or_refused_by_name(
    mode: str, size: tuple[int, int], seed: int
) -> None:
    content = _encoded(_image(mode, size, seed))
    if mode == "RGB":
        np.testing.assert_array_equal(_stored(content, ".png", read_rgb), _pixels(size, seed))
        return
    with pytest.raises(SampleFileError, match=r"a\.png: is .* expected RGB with 8"):
        _stored(content, ".png", read_rgb)


@given(clouds())
def test_a_cloud_comes_back_to_the_bit_with_its_nan_and_infinity(cloud: Cloud) -> None:
    np.testing.assert_array_equal(_stored(encode_xyz(cloud.points), ".tiff", read_xyz), cloud.points)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 90), LARGEST])
def test_clouds_and_images_of_one_pixel_and_of_millions_are_read(width: int, height: int) -> None:
    cloud = np.random.default_rng(0).random((height, width, 3), np.float32)
    np.testing.assert_array_equal(_stored(encode_xyz(cloud), ".tiff", read_xyz), cloud)
    pixels = _pixels((width, height), 0)
    for read in (read_rgb, read_image):
        np.testing.assert_array_equal(_stored(encode_png(pixels), ".png", read), pixels)
    np.testing.assert_array_equal(_stored(encode_png(pixels[..., 0]), ".png", read_mask), pixels[..., 0])
    sample = load_sample(pixels, cloud, 16)
    assert sample.image.shape == (3, 16, 16)
    assert len(sample.points) == 16 * 16


@given(clouds(), st.sampled_from(("ply", "text.ply", "pcd", "text.pcd", "npy")))
def test_sensor_files_give_the_measured_points_in_metres_and_zeros_elsewhere(cloud: Cloud, form: str) -> None:
    unit, points = "mm" if cloud.scale == 1000 else "m", cloud.points
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{form}"
        if form == "npy":
            np.save(path, points)
        elif form.endswith("ply"):
            write_ply(path, points, text="text" in form)
        else:
            write_pcd(path, points, Encoding.ASCII if "text" in form else Encoding.BINARY)
        found = read_cloud(path, CloudOptions(unit=unit, size=points.shape[1::-1]))
    measured = np.isfinite(points).all(axis=2) & (points[..., 2] != 0)
    np.testing.assert_array_equal(found.any(axis=2), measured)
    np.testing.assert_allclose(found[measured], points[measured] / cloud.scale, rtol=1e-6)


@given(clouds())
def test_the_unit_of_a_part_is_told_right_or_not_at_all(cloud: Cloud) -> None:
    if cloud.count < 100 or cloud.ruined or cloud.shape == "equal":
        return
    told = None
    with suppress(ValueError):  # which asks for --unit
        told = guess_unit([in_metres(cloud.points, "m")])
    assert told in (None, "mm" if cloud.scale == 1000 else "m")


@given(clouds(), st.sampled_from((8, 32, 56)))
def test_a_sample_s_points_are_finite_and_stand_where_they_were_seen(cloud: Cloud, image_size: int) -> None:
    sample = loaded(cloud, image_size)
    if sample is None:
        return
    assert sample.image.shape == (3, image_size, image_size)
    assert np.isfinite(sample.image).all()
    assert np.isfinite(sample.points).all()
    assert (sample.points != 0).all()
    assert len(sample.points) == len(sample.pixel_index)
    bounded = np.concatenate([[-1], sample.pixel_index, [image_size**2]])
    assert (np.diff(bounded) > 0).all()
    assert bool(sample.remarks) == (not np.isfinite(cloud.points).all())
    seen = {point.tobytes() for point in cloud.points.reshape(-1, 3)}
    assert all(point.tobytes() in seen for point in sample.points)


@given(clouds())
def test_preprocessing_keeps_points_as_they_are_or_erases_them(cloud: Cloud) -> None:
    points, image = cloud.points, cloud.image
    rng = np.random.default_rng(0)
    found, pixels, report = preprocess_sample(points, image, Parameters(plane_draws=20), rng)
    assert found.shape == pixels.shape == (100, 100, 3)
    inner = found[30:70, 30:70]
    kept = inner.any(axis=2)
    np.testing.assert_array_equal(inner[kept], points[kept])
    assert np.count_nonzero(found.any(axis=2)) == np.count_nonzero(kept)
    assert np.isfinite(found).all()
    assert report.kept == np.count_nonzero(found.all(axis=2))
    assert report.kept or report.odd
