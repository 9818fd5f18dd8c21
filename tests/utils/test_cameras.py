"""Camera models: rays and projection belong together, known values, and files that describe no camera."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from utils.formats.cameras import CameraError, DivisionCamera, PinholeCamera, pixel_directions, read_camera
from utils.image_files import SampleFileError

HALCON = {
    "camera_type": "area_scan_division",
    "focus": 0.01,
    "kappa": -2205.0,
    "sx": 4e-6,
    "sy": 4e-6,
    "cx": 200.5,
    "cy": 190.0,
    "image_width": 400,
    "image_height": 380,
}
PINHOLE = {"fx": 2500.0, "fy": 2501, "cx": 200.5, "cy": 190}
CAMERAS = {
    "pinhole": PinholeCamera(**PINHOLE),
    "brown": PinholeCamera(400, 401, 200.5, 190, k1=-0.3, k2=0.1, k3=-0.02, p1=1e-3, p2=-2e-3),
    "division": DivisionCamera(0.01, -2205.0, 4e-5, 4e-5, 200.5, 190.0),
    "pincushion": DivisionCamera(0.01, 1000.0, 4e-5, 4e-5, 200.5, 190.0),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_points_along_a_pixels_ray_are_seen_by_that_pixel(name: str) -> None:
    x, y = pixel_directions(CAMERAS[name], 400, 380)
    depth = np.random.default_rng(0).uniform(0.3, 2, x.shape)
    columns, rows = CAMERAS[name].project(np.stack([x * depth, y * depth, depth], axis=-1).reshape(-1, 3))
    np.testing.assert_allclose(columns.reshape(x.shape), np.broadcast_to(np.arange(400), x.shape), atol=0.011)
    np.testing.assert_allclose(
        rows.reshape(x.shape), np.broadcast_to(np.arange(380)[:, None], x.shape), atol=0.011
    )


def test_pinhole_ray_is_that_of_the_textbook() -> None:
    x, y = PinholeCamera(100, 50, 10, 20).directions(np.array([60.0]), np.array([0.0]))
    assert (x[0], y[0]) == (0.5, -0.4)


def test_brown_distortion_is_that_of_opencv() -> None:
    """Values by hand: r2 = 0.05, radial = 1.0051..., and the tangential terms of OpenCV's manual."""
    camera = PinholeCamera(1, 1, 0, 0, k1=0.1, k2=0.01, k3=0.001, p1=0.02, p2=0.03)
    x, y, r2 = 0.2, 0.1, 0.05
    radial = 1 + 0.1 * r2 + 0.01 * r2**2 + 0.001 * r2**3
    expected = (
        x * radial + 2 * 0.02 * x * y + 0.03 * (r2 + 2 * x * x),
        y * radial + 0.02 * (r2 + 2 * y * y) + 2 * 0.03 * x * y,
    )
    columns, rows = camera.project(np.array([[x, y, 1.0]]))
    assert (columns[0], rows[0]) == pytest.approx(expected, rel=1e-12)


def test_division_model_is_halcons() -> None:
    """u~ = 2 u / (1 + sqrt(1 - 4 kappa r2)) on the chip in metres, then divided by the pixel pitch."""
    camera = DivisionCamera(focus=0.01, kappa=-2000, sx=4e-6, sy=5e-6, cx=100, cy=50)
    u, v = 0.01 * 0.03 / 0.5, 0.01 * -0.02 / 0.5
    scale = 2 / (1 + math.sqrt(1 + 4 * 2000 * (u * u + v * v)))
    columns, rows = camera.project(np.array([[0.03, -0.02, 0.5]]))
    assert columns[0] == pytest.approx(100 + u * scale / 4e-6)
    assert rows[0] == pytest.approx(50 + v * scale / 5e-6)
    assert abs(columns[0] - 100) < u / 4e-6  # a negative kappa is a barrel


def test_camera_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    (tmp_path / "halcon.json").write_text(json.dumps(HALCON))
    (tmp_path / "pinhole.json").write_text("\ufeff" + json.dumps({**PINHOLE, "k1": -0.1}), encoding="utf-8")
    assert read_camera(tmp_path / "halcon.json").size == (400, 380)
    assert read_camera(tmp_path / "pinhole.json") == PinholeCamera(2500.0, 2501, 200.5, 190, k1=-0.1)


@pytest.mark.real_data
def test_the_real_calibration_is_read(real_data: Path) -> None:
    camera = read_camera(real_data / "mvtec3d" / "cable_gland" / "calibration" / "camera_parameters.json")
    assert isinstance(camera, DivisionCamera)
    assert camera.size == (400, 400)


def test_distortion_that_cannot_be_undone_is_an_error() -> None:
    for camera in (PinholeCamera(100, 100, 50, 50, k1=-5), DivisionCamera(0.01, -1e6, 4e-5, 4e-5, 50, 50)):
        with pytest.raises(CameraError, match="can't be undone at"):
            pixel_directions(camera, 100, 100)


BAD_FILES = {
    "text": ("no json", "is no camera's JSON"),
    "empty": ("", "is no camera's JSON"),
    "a list": ("[1, 2]", "no object"),
    "deep": ("[" * 100_001, "too many"),
    "less deep": ("[" * 90_000, "is no camera's JSON"),
    "without cy": (json.dumps({**PINHOLE, "cy": None}), "cy None is not a finite number"),
    "fx alone": ('{"fx": 1}', "fy, cx, cy missing"),
    "unknown key": (json.dumps({**PINHOLE, "k4": 1}), "would change the result unseen: k4"),
    "text value": (json.dumps({**PINHOLE, "fx": "1"}), "fx '1' is not a finite number"),
    "NaN": (json.dumps({**PINHOLE, "fx": math.nan}), "fx nan is not"),
    "true": (json.dumps({**PINHOLE, "fx": True}), "fx True is not"),
    "fx of 0": (json.dumps({**PINHOLE, "fx": 0}), "fx 0 is not above 0"),
    "huge number": (json.dumps(PINHOLE).replace("2501", "1" + "0" * 5000), "is no camera's JSON"),
    "telecentric": (
        json.dumps({**HALCON, "camera_type": "area_scan_telecentric_division"}),
        "is not known, only",
    ),
    "halcon without focus": (json.dumps({k: v for k, v in HALCON.items() if k != "focus"}), "focus missing"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_file_that_describes_no_camera_is_named(case: str, tmp_path: Path) -> None:
    content, problem = BAD_FILES[case]
    path = tmp_path / "camera.json"
    path.write_text(content)
    with pytest.raises(SampleFileError) as caught:
        read_camera(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)
    assert "fx, fy, cx, cy" in str(caught.value)


def test_missing_camera_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleFileError, match="No such file"):
        read_camera(tmp_path / "none.json")
