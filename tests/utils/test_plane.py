"""Least-squares planes and their RANSAC."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference.preprocessing import OPEN3D, PLANE_DEPTH_M, PLANE_NORMAL, make_scene, plain_plane
from utils.preprocess.plane import fit_planes, plane_distance, ransac_plane
from utils.preprocess.sample import Parameters, background_plane

PLANE = np.append(PLANE_NORMAL, -PLANE_DEPTH_M)


def _points_on_plane(count: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    x, y = rng.uniform(-0.1, 0.1, (2, count))
    z = (PLANE_DEPTH_M - PLANE_NORMAL[0] * x - PLANE_NORMAL[1] * y) / PLANE_NORMAL[2]
    return np.stack([x, y, z + rng.normal(0, noise, count)], axis=1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fit_is_the_least_squares_plane_along_the_axis_nearest_to_the_normal(axis: int) -> None:
    points = np.roll(_points_on_plane(200, 1e-3, np.random.default_rng(0)), axis + 1, axis=1)
    others = [k for k in range(3) if k != axis]
    design = np.column_stack([points[:, others], np.ones(len(points))])
    slope_a, slope_b, offset = np.linalg.lstsq(design, points[:, axis], rcond=None)[0]
    expected = np.zeros(4)
    expected[[*others, axis, 3]] = -slope_a, -slope_b, 1.0, -offset
    expected /= np.linalg.norm(expected[:3])
    np.testing.assert_allclose(fit_planes(points[None])[0], expected, atol=1e-9)


def test_fits_of_a_batch_are_the_fits_of_each() -> None:
    rng = np.random.default_rng(1)
    sets = np.stack([np.roll(_points_on_plane(60, 1e-3, rng), k, axis=1) for k in range(5)])
    each = [fit_planes(points[None])[0] for points in sets]
    np.testing.assert_allclose(fit_planes(sets), each, rtol=1e-12)


def test_distance_is_that_of_geometry() -> None:
    points = _points_on_plane(50, 0.0, np.random.default_rng(2))
    np.testing.assert_allclose(plane_distance(points + 0.03 * PLANE_NORMAL, PLANE), 0.03, atol=1e-12)
    both = plane_distance(points, np.stack([PLANE, -PLANE]))
    assert both.shape == (2, 50)
    np.testing.assert_allclose(both, 0.0, atol=1e-12)


@pytest.mark.parametrize("outlier_share", [0.0, 0.02, 0.1, 0.3])
def test_plane_is_found_among_outliers(outlier_share: float) -> None:
    rng = np.random.default_rng(3)
    points = _points_on_plane(4000, 3e-4, rng)
    outliers = int(outlier_share * len(points))
    points[:outliers] -= rng.uniform(0.005, 0.03, (outliers, 1)) * PLANE_NORMAL
    plane = ransac_plane(points, 0.004, 50, 1000, np.random.default_rng(0))
    assert plane is not None
    np.testing.assert_allclose(plane, PLANE, atol=1e-4 if outlier_share == 0 else 5e-3)
    assert np.linalg.norm(plane[:3]) == pytest.approx(1)


def test_same_seed_same_plane_other_seed_other_plane() -> None:
    rng = np.random.default_rng(4)
    points = _points_on_plane(1000, 2e-3, rng)
    first, again, other = (ransac_plane(points, 0.004, 50, 100, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_inliers_give_the_fit_of_all_whatever_the_seed() -> None:
    points = _points_on_plane(1000, 3e-4, np.random.default_rng(7))
    for seed in range(3):
        plane = ransac_plane(points, 0.004, 50, 1000, np.random.default_rng(seed))
        np.testing.assert_array_equal(plane, fit_planes(points[None])[0])


def test_no_plane_from_too_few_or_collinear_points() -> None:
    rng = np.random.default_rng(8)
    line = rng.uniform(-1, 1, (100, 1)) * np.array([[1.0, 2.0, 3.0]]) + 0.5
    for points in (np.empty((0, 3)), _points_on_plane(49, 0.0, rng), line, np.full((100, 3), 0.6)):
        assert ransac_plane(points, 0.004, 50, 100, rng) is None


@pytest.mark.skipif(OPEN3D is None, reason="Open3D's system libraries are missing")
def test_border_plane_of_a_scene_is_open3ds() -> None:
    cloud, _, _ = make_scene(150, 200, np.random.default_rng(9))
    ours = background_plane(cloud, Parameters(), np.random.default_rng(0))
    plain = plain_plane(cloud)
    assert ours is not None
    np.testing.assert_allclose(ours * np.sign(ours[2]), plain * np.sign(plain[2]), atol=1e-9)
