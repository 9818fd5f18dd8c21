"""Grid DBSCAN gives the labels of the plain algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from tests.reference.preprocessing import OPEN3D, make_scene, plain_dbscan
from utils.preprocess.clustering import dbscan


def _random_case(seed: int) -> tuple[np.ndarray, float, int]:
    rng = np.random.default_rng(seed)
    count, stretch = rng.integers(1, 1500), rng.random(3) * rng.choice([1.0, 5.0])
    return (rng.random((count, 3)) - 0.5) * stretch, rng.uniform(0.02, 0.3), int(rng.integers(1, 40))


def _sklearn_labels(points: np.ndarray, eps: float, min_points: int) -> np.ndarray:
    return DBSCAN(eps=eps, min_samples=min_points).fit(np.asarray(points, dtype=np.float64)).labels_


@pytest.mark.parametrize("seed", range(40))
def test_labels_equal_scikit_learns_on_random_points(seed: int) -> None:
    case = _random_case(seed)
    np.testing.assert_array_equal(dbscan(*case), _sklearn_labels(*case))


@pytest.mark.skipif(OPEN3D is None, reason="Open3D's system libraries are missing")
@pytest.mark.parametrize("seed", range(20))
def test_labels_equal_open3ds_on_random_points(seed: int) -> None:
    case = _random_case(seed)
    np.testing.assert_array_equal(dbscan(*case), plain_dbscan(*case))


def test_labels_equal_scikit_learns_on_a_cloud() -> None:
    cloud, _, _ = make_scene(160, 160, np.random.default_rng(0), stray_blob=True)
    points = cloud[cloud.all(axis=2)]
    labels = dbscan(points, 0.006, 30)
    np.testing.assert_array_equal(labels, _sklearn_labels(points, 0.006, 30))
    assert labels.max() >= 1


def test_clusters_are_numbered_by_their_first_core_point() -> None:
    line = np.zeros((6, 3))
    line[:, 0] = [9.0, 1.0, 5.0, 1.1, 5.1, 9.1]
    np.testing.assert_array_equal(dbscan(line, 0.5, 2), [0, 1, 2, 1, 2, 0])


def test_border_point_between_two_clusters_joins_the_lower_numbered() -> None:
    line = np.zeros((7, 3))
    line[:, 0] = [0.0, 2.0, 2.1, 2.2, 0.9, -0.1, -0.2]  # 0.9 is near 0.0 and 2.0, but no core point
    for flip in (1, -1):
        points = line * flip
        labels = dbscan(points, 1.15, 4)
        np.testing.assert_array_equal(labels, _sklearn_labels(points, 1.15, 4))
        assert labels[4] == 0


def test_a_distance_of_exactly_eps_is_too_far() -> None:
    points = np.array([[0.0, 0, 0], [1, 0, 0], [1.75, 0, 0]])
    np.testing.assert_array_equal(dbscan(points, 1.0, 2), [-1, 0, 0])


def test_stray_points_far_away_change_nothing() -> None:
    points, eps, min_points = _random_case(3)
    strays = np.array([[1e30, 0, 0], [-1e30, 1e18, 5], [0, -3e7, 0]])
    labels = dbscan(np.concatenate([points, strays]), eps, min_points)
    np.testing.assert_array_equal(labels[:-3], dbscan(points, eps, min_points))
    np.testing.assert_array_equal(labels[-3:], -1)


def test_equal_points_count_each() -> None:
    points = np.full((30, 3), 0.25, dtype=np.float32)
    np.testing.assert_array_equal(dbscan(points, 0.006, 30), 0)
    np.testing.assert_array_equal(dbscan(points, 0.006, 31), -1)


def test_no_points_have_no_labels() -> None:
    assert dbscan(np.empty((0, 3), dtype=np.float32), 0.006, 30).shape == (0,)


@pytest.mark.parametrize(("eps", "min_points"), [(0.0, 30), (float("nan"), 30), (0.006, 0)])
def test_impossible_parameters_are_refused(eps: float, min_points: int) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        dbscan(np.zeros((1, 3)), eps, min_points)
