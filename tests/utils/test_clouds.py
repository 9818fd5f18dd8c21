"""Organised clouds of all formats: what is written is read again, in metres."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pypcd4 import Encoding

from tests.sensor_files import CAMERA, made_up_cloud, made_up_image, write_pcd, write_ply
from utils.formats.cameras import DivisionCamera, PinholeCamera, read_camera
from utils.formats.clouds import CloudOptions, load_cloud, read_cloud
from utils.image_files import SampleFileError, read_xyz

CLOUD = made_up_cloud()
METRES = CloudOptions(unit="m", size=(30, 20))
ENCODINGS = (Encoding.ASCII, Encoding.BINARY, Encoding.BINARY_COMPRESSED)
PLY_VARIANTS = {
    "ascii": {"text": True},
    "ascii with extras": {"text": True, "extras": True},
    "little endian": {"byte_order": "<"},
    "big endian": {"byte_order": ">"},
    "double": {"dtype": "f8"},
    "double in ascii": {"dtype": "f8", "text": True},
    "with extras": {"extras": True},
}


def with_nan(cloud: np.ndarray) -> np.ndarray:
    """NaN where nothing was measured."""
    return np.where(cloud.any(axis=2, keepdims=True), cloud, np.float32("nan"))


@pytest.mark.parametrize("variant", PLY_VARIANTS)
@pytest.mark.parametrize("missing", ["zero", "nan"])
def test_ply_is_read_again_to_the_bit(tmp_path: Path, variant: str, missing: str) -> None:
    stored = CLOUD if missing == "zero" else with_nan(CLOUD)
    path = write_ply(tmp_path / "part.ply", stored, **PLY_VARIANTS[variant])
    np.testing.assert_array_equal(read_cloud(path, METRES), CLOUD)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("missing", ["zero", "nan"])
def test_pcd_is_read_again_to_the_bit(tmp_path: Path, encoding: Encoding, missing: str) -> None:
    stored = CLOUD if missing == "zero" else with_nan(CLOUD)
    path = write_pcd(tmp_path / "part.pcd", stored, encoding)
    np.testing.assert_array_equal(read_cloud(path, CloudOptions(unit="m")), CLOUD)


def test_arrays_are_read_again_to_the_bit(tmp_path: Path) -> None:
    np.save(tmp_path / "part.npy", CLOUD)
    np.savez_compressed(tmp_path / "alone.npz", anything=CLOUD)
    np.savez(tmp_path / "named.npz", xyz=CLOUD, mask=np.zeros(3))
    tifffile.imwrite(tmp_path / "part.tiff", CLOUD)
    for name in ("part.npy", "alone.npz", "named.npz", "part.tiff"):
        np.testing.assert_array_equal(read_cloud(tmp_path / name, CloudOptions(unit="m")), CLOUD)


@pytest.mark.parametrize("text", [False, True])
def test_line_ends_of_windows_and_its_nan_are_read(tmp_path: Path, text: bool) -> None:
    path = write_ply(tmp_path / "part.ply", with_nan(CLOUD), text=text, comments=("Prufling",))
    content = path.read_bytes().replace(b"Prufling", b"Pr\xfcfling")
    header, body = content.split(b"end_header\n")
    if text:
        body = body.replace(b"nan", b"-nan(ind)").replace(b"\n", b"\r\n")
    path.write_bytes(header.replace(b"\n", b"\r\n") + b"end_header\r\n" + body)
    np.testing.assert_array_equal(read_cloud(path, METRES), CLOUD)


@pytest.mark.parametrize(
    "notes",
    [
        {"obj_info": ("num_cols 30", "num_rows 20")},
        {"comments": ("Width: 30", "Height: 20")},
        {"comments": ("image_width=30 image_height=20",)},
    ],
)
def test_size_of_a_ply_is_taken_from_its_header(tmp_path: Path, notes: dict) -> None:
    path = write_ply(tmp_path / "part.ply", CLOUD, **notes)
    np.testing.assert_array_equal(read_cloud(path, CloudOptions(unit="m")), CLOUD)


def test_size_is_that_of_the_image_where_nothing_else_tells(tmp_path: Path) -> None:
    options = CloudOptions(unit="m", image_size=(30, 20))
    np.testing.assert_array_equal(read_cloud(write_ply(tmp_path / "a.ply", CLOUD), options), CLOUD)
    flat = write_pcd(tmp_path / "a.pcd", CLOUD, organised=False)
    np.testing.assert_array_equal(read_cloud(flat, options), CLOUD)


def test_flags_win_over_the_header_and_the_image(tmp_path: Path) -> None:
    path = write_ply(tmp_path / "part.ply", CLOUD, comments=("width 20", "height 30"))
    assert read_cloud(path, METRES).shape == (20, 30, 3)
    assert read_cloud(path, CloudOptions(unit="m", image_size=(30, 20))).shape == (30, 20, 3)


def test_flags_that_contradict_an_organised_file_are_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", CLOUD)
    for path in (write_pcd(tmp_path / "a.pcd", CLOUD), tmp_path / "a.npy"):
        with pytest.raises(SampleFileError, match="has 30x20 pixels, --width and --height say otherwise"):
            read_cloud(path, CloudOptions(unit="m", size=(20, 30)))


@pytest.mark.parametrize("suffix", [".ply", ".pcd"])
@pytest.mark.parametrize(
    "options", [METRES, CloudOptions(unit="m"), CloudOptions(unit="m", image_size=(30, 20))]
)
def test_cloud_whose_points_were_dropped_is_refused(
    tmp_path: Path, suffix: str, options: CloudOptions
) -> None:
    kept = CLOUD[CLOUD.any(axis=2)][None]  # one row, as PCL writes it
    path = tmp_path / f"part{suffix}"
    write_ply(path, kept) if suffix == ".ply" else write_pcd(path, kept)
    with pytest.raises(
        SampleFileError, match=f"holds {kept.shape[1]} points, which are not one a pixel"
    ) as caught:
        read_cloud(path, options)
    assert "keep invalid points" in str(caught.value)
    assert "--width" in str(caught.value)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_colours_of_clouds_are_read(tmp_path: Path, encoding: Encoding) -> None:
    colors = made_up_image()
    for path in (
        write_ply(tmp_path / "a.ply", CLOUD, colors=colors),
        write_ply(tmp_path / "b.ply", CLOUD, colors=colors, text=True),
        write_pcd(tmp_path / "a.pcd", CLOUD, encoding, colors=colors),
    ):
        np.testing.assert_array_equal(load_cloud(path, METRES).colors, colors)
    assert load_cloud(write_ply(tmp_path / "c.ply", CLOUD), METRES).colors is None


def test_millimetres_become_metres_by_flag_or_by_looking(tmp_path: Path) -> None:
    path = write_ply(tmp_path / "part.ply", CLOUD * 1000)
    for unit in ("mm", "auto"):
        np.testing.assert_allclose(read_cloud(path, CloudOptions(unit=unit, size=(30, 20))), CLOUD, rtol=2e-7)
    np.testing.assert_allclose(read_cloud(path, METRES), CLOUD * 1000, rtol=2e-7)


def test_unit_that_distances_do_not_tell_is_an_error_with_the_flag(tmp_path: Path) -> None:
    path = write_ply(tmp_path / "part.ply", CLOUD * 10)
    with pytest.raises(SampleFileError, match="--unit m or --unit mm"):
        read_cloud(path, CloudOptions(size=(30, 20)))


def test_points_on_the_axis_stay_measured(tmp_path: Path) -> None:
    cloud = CLOUD.copy()
    cloud[3, 4] = 0, 0.1, 0.5
    cloud[3, 5] = 0.1, 0.1, 0
    read = read_cloud(write_ply(tmp_path / "part.ply", cloud), METRES)
    np.testing.assert_array_equal(read[3, 4], np.float32([1e-12, 0.1, 0.5]))
    assert not read[3, 5].any()


# Depth images


def depth_codes(cloud: np.ndarray, scale: float) -> np.ndarray:
    return np.round(cloud[..., 2] / scale).astype(np.uint16)


CAMERAS = {
    "pinhole": CAMERA,
    "brown": PinholeCamera(300, 301, 14.6, 9.7, k1=-0.3, k2=0.1, k3=0.01, p1=1e-3, p2=-2e-3),
    "division": DivisionCamera(focus=0.01, kappa=-2205.03, sx=3.3e-5, sy=3.3e-5, cx=14.6, cy=9.7),
}


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_depth_image_gives_points_on_their_pixels_rays(tmp_path: Path, camera: str, suffix: str) -> None:
    depth = depth_codes(CLOUD, 1e-4)
    path = tmp_path / f"depth{suffix}"
    Image.fromarray(depth).save(path) if suffix == ".png" else tifffile.imwrite(path, depth)
    read = read_cloud(path, CloudOptions(camera=CAMERAS[camera], depth_scale=1e-4))
    np.testing.assert_array_equal(read[..., 2], (depth * np.float64(1e-4)).astype(np.float32))
    rows, columns = np.nonzero(depth)
    u, v = CAMERAS[camera].project(read[rows, columns].astype(np.float64))
    np.testing.assert_allclose(np.stack([u, v]), np.stack([columns, rows]), atol=0.011)
    assert not read[depth == 0].any()


def test_depth_png_of_a_cloud_gives_it_back_within_the_quantisation(tmp_path: Path) -> None:
    Image.fromarray(depth_codes(CLOUD, 1e-5)).save(tmp_path / "depth.png")
    read = read_cloud(tmp_path / "depth.png", CloudOptions(camera=CAMERA, depth_scale=1e-5))
    np.testing.assert_allclose(read, CLOUD, atol=0.51e-5)


def test_float_depth_is_in_the_unit_of_clouds_unless_scaled(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "depth.tiff", CLOUD[..., 2] * 1000)
    for options in (CloudOptions(camera=CAMERA), CloudOptions(camera=CAMERA, unit="m", depth_scale=1e-3)):
        np.testing.assert_allclose(read_cloud(tmp_path / "depth.tiff", options), CLOUD, rtol=1e-6, atol=1e-9)


def test_largest_code_of_a_depth_image_is_not_measured(tmp_path: Path) -> None:
    depth = np.full((20, 30), 500, np.uint16)
    depth[3, 4] = 65535
    Image.fromarray(depth).save(tmp_path / "depth.png")
    read = read_cloud(tmp_path / "depth.png", CloudOptions(camera=CAMERA, depth_scale=1e-3))
    assert np.count_nonzero(read[..., 2]) == depth.size - 1
    assert not read[3, 4].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CloudOptions(camera=CAMERA), "--depth_scale, 0.001"),
        (CloudOptions(depth_scale=1e-3), "--camera FILE or --fx"),
        (
            CloudOptions(depth_scale=1e-3, camera=PinholeCamera(9, 9, 9, 9, width=31, height=20)),
            "calibrated at 31x20",
        ),
        (
            CloudOptions(depth_scale=1e-3, camera=PinholeCamera(9, 9, 9, 9, k1=-5)),
            "distortion can't be undone",
        ),
    ],
)
def test_depth_image_without_a_fitting_camera_is_refused(
    tmp_path: Path, options: CloudOptions, message: str
) -> None:
    Image.fromarray(depth_codes(CLOUD, 1e-4)).save(tmp_path / "depth.png")
    with pytest.raises(SampleFileError, match=message):
        read_cloud(tmp_path / "depth.png", options)


# The real samples


def real_clouds(real_data: Path) -> list[Path]:
    return sorted((real_data / "mvtec3d" / "cable_gland").glob("*/*/xyz/*.tiff"))[::20]


@pytest.mark.real_data
def test_real_clouds_written_as_ply_and_pcd_come_back_to_the_bit(real_data: Path, tmp_path: Path) -> None:
    for i, path in enumerate(real_clouds(real_data)):
        cloud = read_xyz(path)
        size = CloudOptions(unit="m", size=cloud.shape[1::-1])
        ply = write_ply(tmp_path / "part.ply", with_nan(cloud), text=i % 2 == 0)
        assert zlib.crc32(read_cloud(ply, size).tobytes()) == zlib.crc32(cloud.tobytes())
        pcd = write_pcd(tmp_path / "part.pcd", cloud, ENCODINGS[i % 3])
        assert zlib.crc32(read_cloud(pcd, CloudOptions(unit="auto")).tobytes()) == zlib.crc32(cloud.tobytes())


@pytest.mark.real_data
def test_real_depth_and_calibration_give_the_stored_points(real_data: Path, tmp_path: Path) -> None:
    """The file's principal point is about 1.2 pixels off the stored points, whatever the sample; the lens is not."""
    camera = read_camera(real_data / "mvtec3d" / "cable_gland" / "calibration" / "camera_parameters.json")
    scale = 2e-5
    for path in real_clouds(real_data):
        cloud = read_xyz(path)
        Image.fromarray(depth_codes(cloud, scale)).save(tmp_path / "depth.png")
        read = read_cloud(tmp_path / "depth.png", CloudOptions(camera=camera, depth_scale=scale))
        measured = cloud[..., 2] != 0
        np.testing.assert_array_equal(read[..., 2] != 0, measured)
        np.testing.assert_allclose(read[..., 2], cloud[..., 2], atol=0.51 * scale)
        columns, rows = camera.project(cloud[measured].astype(np.float64))
        error = np.stack([columns, rows]) - np.nonzero(measured)[::-1]
        assert np.median(np.hypot(*error)) < 1.3
        assert np.median(np.hypot(*(error - error.mean(axis=1, keepdims=True)))) < 0.21
