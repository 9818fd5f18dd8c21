"""Preprocessing of one sample: what is left of it, what is reported, and that it equals the released way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.preprocessing import OPEN3D, make_scene, plain_preprocess_sample
from utils.image_files import read_rgb, read_xyz
from utils.preprocess.sample import Parameters, Report, background_plane, pad_to_square, preprocess_sample


def _preprocess(
    cloud: np.ndarray, image: np.ndarray, **parameters: Any
) -> tuple[np.ndarray, np.ndarray, Report]:
    return preprocess_sample(cloud, image, Parameters(**parameters), np.random.default_rng(0))


def _intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def test_only_the_part_is_left_and_unmeasured_pixels_keep_their_colour() -> None:
    cloud, image, part = make_scene(100, 100, np.random.default_rng(0))
    new_cloud, new_image, report = _preprocess(cloud, image)
    measured = cloud.any(axis=2)
    np.testing.assert_array_equal(new_cloud.any(axis=2), part & measured)
    np.testing.assert_array_equal(new_cloud[part], cloud[part])
    np.testing.assert_array_equal(new_image.any(axis=2), part | ~measured)
    np.testing.assert_array_equal(new_image[part | ~measured], image[part | ~measured])
    assert (report.kept, report.dropped, report.odd) == (np.count_nonzero(part & measured), 0, {})


def test_smaller_clusters_vanish_and_are_reported() -> None:
    cloud, image, part = make_scene(100, 100, np.random.default_rng(0), stray_blob=True)
    new_cloud, new_image, report = _preprocess(cloud, image)
    np.testing.assert_array_equal(new_cloud.any(axis=2), part & cloud.any(axis=2))
    np.testing.assert_array_equal(new_image.any(axis=2), part | ~cloud.any(axis=2))
    assert report.dropped > 100
    assert report.odd["several clusters"].startswith("2 clusters")


def test_noise_counts_as_a_label_and_its_win_is_reported() -> None:
    cloud, image, part = make_scene(100, 100, np.random.default_rng(0))
    new_cloud, _, report = _preprocess(cloud, image, cluster_min_points=1000)
    np.testing.assert_array_equal(new_cloud.any(axis=2), part & cloud.any(axis=2))
    assert "mostly scattered points" in report.odd


def test_padding_is_centred_with_the_smaller_half_first() -> None:
    rope = np.arange(1, 900 * 400 * 3 + 1, dtype=np.int64).reshape(400, 900, 3)
    padded = pad_to_square(rope)
    assert padded.shape == (900, 900, 3)
    np.testing.assert_array_equal(padded[250:650], rope)
    assert np.count_nonzero(padded) == rope.size
    odd = pad_to_square(np.ones((95, 42), dtype=np.uint8))
    assert odd.shape == (100, 100)
    np.testing.assert_array_equal(np.flatnonzero(odd.any(axis=1))[[0, -1]], [2, 96])
    np.testing.assert_array_equal(np.flatnonzero(odd.any(axis=0))[[0, -1]], [29, 70])


def test_empty_cloud_stays_as_it_is_and_is_reported() -> None:
    image = np.full((100, 100, 3), 7, dtype=np.uint8)
    cloud, new_image, report = _preprocess(np.zeros((100, 100, 3), dtype=np.float32), image)
    assert not cloud.any()
    np.testing.assert_array_equal(new_image, image)
    assert report == Report(0, 0, None, {"no points": "nothing measured"})


def test_cloud_of_background_only_is_reported() -> None:
    cloud, image, part = make_scene(100, 100, np.random.default_rng(0))
    cloud[part] = 0
    new_cloud, _, report = _preprocess(cloud, image)
    assert not new_cloud.any()
    assert report.kept == 0
    assert "no points" in report.odd


def test_preprocessed_sample_has_no_plane_and_is_left_as_it_is() -> None:
    cloud, image, _ = _preprocess(*make_scene(100, 100, np.random.default_rng(0))[:2])
    again, new_image, report = _preprocess(cloud, image)
    np.testing.assert_array_equal(again, cloud)
    np.testing.assert_array_equal(new_image, image)
    assert report.plane is None
    assert list(report.odd) == ["no background plane"]


def test_points_that_are_not_finite_count_as_not_measured_and_are_reported() -> None:
    cloud, image, _ = make_scene(100, 100, np.random.default_rng(0))
    cloud[50, 50] = np.nan
    cloud[2, 3, 1] = np.inf
    new_cloud, new_image, report = _preprocess(cloud, image)
    assert np.isfinite(new_cloud).all()
    np.testing.assert_array_equal(new_cloud[50, 50], 0)
    np.testing.assert_array_equal(new_image[[50, 2], [50, 3]], image[[50, 2], [50, 3]])
    assert report.odd == {"points not finite": "2 taken as not measured"}
    assert np.isnan(cloud[50, 50]).all(), "the caller's arrays are not touched"


@pytest.mark.parametrize("name", ["plane_distance", "plane_draws", "cluster_eps", "seed"])
def test_impossible_parameter_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name} -1"):
        Parameters(**{name: -1})


@pytest.mark.skipif(OPEN3D is None, reason="Open3D's system libraries are missing")
@pytest.mark.parametrize("shape", [(100, 100), (95, 160)])
def test_sample_equals_the_released_way(shape: tuple[int, int]) -> None:
    cloud, image, _ = make_scene(*shape, np.random.default_rng(1), stray_blob=True)
    new_cloud, new_image, _ = _preprocess(cloud, image)
    plain_cloud, plain_image = plain_preprocess_sample(cloud, image)
    np.testing.assert_array_equal(new_cloud, plain_cloud)
    np.testing.assert_array_equal(new_image, plain_image)


def _real_samples() -> list[tuple[str, Path]]:
    root = Path(os.environ.get("M3DM_REAL_DATA", "nowhere")) / "mvtec3d"
    return [(path.relative_to(root).as_posix(), path) for path in sorted(root.glob("*/*/*/xyz/*.tiff"))]


def _rgb_beside(xyz_path: Path) -> Path:
    return xyz_path.parent.parent / "rgb" / f"{xyz_path.stem}.png"


@pytest.mark.real_data
@pytest.mark.skipif(OPEN3D is None, reason="Open3D's system libraries are missing")
@pytest.mark.skipif(not _real_samples(), reason="M3DM_REAL_DATA does not name the real samples")
@pytest.mark.parametrize("number", [0, 25, 50])
def test_real_sample_equals_the_released_way(number: int) -> None:
    _, path = _real_samples()[number]
    cloud, image = read_xyz(path), read_rgb(_rgb_beside(path))
    plane = background_plane(cloud, Parameters(), np.random.default_rng(0))
    ours, our_image, _ = _preprocess(cloud, image)
    plain, plain_image = plain_preprocess_sample(cloud, image, plane)
    kept, plain_kept = ours.any(axis=2), plain.any(axis=2)
    assert _intersection_over_union(kept, plain_kept) >= 0.999
    same = kept == plain_kept
    np.testing.assert_array_equal(our_image[same], plain_image[same])


@pytest.mark.real_data
def test_real_samples_equal_what_the_released_script_wrote(large_goldens: Path) -> None:
    released = large_goldens / "cable_gland_preprocessed"
    pairs = [(path, released / name) for name, path in _real_samples() if (released / name).exists()]
    assert pairs
    for path, released_path in pairs:
        cloud, image, _ = _preprocess(read_xyz(path), read_rgb(_rgb_beside(path)))
        released_cloud = read_xyz(released_path)
        kept, released_kept = cloud.any(axis=2), released_cloud.any(axis=2)
        assert _intersection_over_union(kept, released_kept) >= 0.999, path
        same = kept == released_kept
        np.testing.assert_array_equal(cloud[same], released_cloud[same])
        np.testing.assert_array_equal(image[same], read_rgb(_rgb_beside(released_path))[same])
