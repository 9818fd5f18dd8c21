"""FPFH: equal to Open3D's unless neighbours stand at equal distance, and defined where there is little to see."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataset import existing_points, resize_nearest
from models.fpfh.descriptors import BINS, FPFH_DIMS, fpfh_features, pair_histograms, weigh_histograms
from models.fpfh.normals import estimate_normals, nearest_within, smallest_eigenvector
from tests.reference.fpfh import (
    CLOUDS,
    GOLDENS,
    import_open3d,
    lattice_cloud,
    open3d_fpfh,
    open3d_neighbors,
    wavy_cloud,
)
from utils.image_files import read_xyz

ROUNDING = 1e-9  # of 200; another C library may round a sine differently


@pytest.fixture(scope="module")
def open3d():
    try:
        return import_open3d()
    except ImportError as error:
        pytest.skip(str(error))


def near_ties(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Isolated pairs of points whose normals make all but equal angles with the line between, or lie on it."""
    rng = np.random.default_rng(0)
    ulps = 1 + rng.integers(-1, 2, (count, 3)) * 2.0**-52
    first = np.stack([np.arange(count), np.zeros(count), np.zeros(count)], axis=1)
    second = first + rng.normal(size=(count, 3)) * 0.01
    normal = rng.normal(size=(count, 3))
    normal[::3] = second[::3] - first[::3]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    points, normals = np.stack([first, second], axis=1), np.stack([normal, normal * ulps], axis=1)
    return points.reshape(-1, 3), normals.reshape(-1, 3)


@pytest.mark.parametrize("name", CLOUDS)
def test_features_equal_those_that_open3d_gave(name):
    goldens = np.load(GOLDENS, allow_pickle=False)
    ours = fpfh_features(goldens[f"{name}.points"])
    np.testing.assert_allclose(ours, goldens[f"{name}.fpfh"], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("points", [wavy_cloud(90), wavy_cloud(40)[::-1]])
def test_features_equal_open3d_to_the_last_bit(open3d, points):
    np.testing.assert_array_equal(fpfh_features(points), open3d_fpfh(points))


@pytest.mark.parametrize("points", [wavy_cloud(40), lattice_cloud(1000), np.zeros((50, 3), np.float32)])
@pytest.mark.parametrize(("radius", "most"), [(0.25, 100), (0.03, 7)])
def test_neighbours_are_those_of_open3d_but_for_ties_at_the_last_place(open3d, points, radius, most):
    ours = nearest_within(points.astype(np.float64), radius, most)
    for i, (nearest, distance2) in enumerate(open3d_neighbors(points, radius, most)):
        np.testing.assert_array_equal(ours.distance2[i, : ours.found[i]], distance2)
        nearer = distance2 < distance2[-1]
        assert set(ours.nearest[i, : ours.found[i]][nearer]) == set(nearest[nearer])


def test_pairs_that_all_but_tie_are_seen_from_the_side_that_open3d_chooses(open3d):
    points, normals = near_ties(3000)
    neighbors = nearest_within(points, 0.25, 100)
    ours = weigh_histograms(pair_histograms(points, normals, neighbors), neighbors)
    np.testing.assert_array_equal(ours, open3d_fpfh(points, normals))


@pytest.mark.real_data
def test_features_of_real_clouds_equal_open3d_to_the_last_bit(open3d, real_data):
    paths = sorted((real_data / "mvtec3d").rglob("xyz/*.tiff"))[:3]
    assert paths, f"{real_data} holds no MVTec 3D-AD sample"
    for path in paths:
        points, _ = existing_points(resize_nearest(read_xyz(path), 224))
        np.testing.assert_array_equal(fpfh_features(points), open3d_fpfh(points))


@pytest.mark.real_data
def test_features_of_preprocessed_clouds_equal_open3d_to_the_last_bit(open3d, large_goldens):
    for path in sorted((large_goldens / "cable_gland_preprocessed").rglob("xyz/*.tiff")):
        points, _ = existing_points(resize_nearest(read_xyz(path), 224))
        np.testing.assert_array_equal(fpfh_features(points), open3d_fpfh(points))


@pytest.mark.parametrize(
    "points", [np.random.default_rng(1).random((700, 3)), lattice_cloud(400), np.zeros((30, 3))]
)
def test_neighbours_are_the_nearest_ones_strictly_within_the_radius(points):
    points = points.astype(np.float64)
    neighbors = nearest_within(points, 0.2, 25)
    away = points[:, None] - points[None]
    distance2 = away[..., 0] ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2
    for i, row in enumerate(distance2):
        nearest = neighbors.nearest[i, : neighbors.found[i]]
        expected = np.sort(row[row < 0.2 * 0.2])[:25]
        np.testing.assert_array_equal(neighbors.distance2[i, : neighbors.found[i]], expected)
        np.testing.assert_array_equal(row[nearest], expected)
        assert len(set(nearest)) == len(nearest)


def test_a_point_exactly_at_the_radius_is_no_neighbour():
    points = np.array([[0.0, 0, 0], [0.25, 0, 0], [0.5, 0, 0]])
    assert nearest_within(points, 0.25, 5).found.tolist() == [1, 1, 1]
    assert nearest_within(points, np.nextafter(0.25, 1), 5).found.tolist() == [2, 3, 2]


def test_the_normal_is_the_eigenvector_of_the_smallest_eigenvalue():
    rng = np.random.default_rng(2)
    for _ in range(200):
        spread = rng.normal(size=(3, 3)) * [1, rng.random(), rng.random()]
        m = spread @ spread.T
        normal = smallest_eigenvector((m[0, 0], m[0, 1], m[0, 2], m[1, 1], m[1, 2], m[2, 2]))
        assert abs(np.dot(normal, np.linalg.eigh(m)[1][:, 0])) == pytest.approx(1, abs=1e-6)


def test_normals_use_only_the_nearest_thirty_within_a_tenth_of_a_metre():
    points = wavy_cloud(40).astype(np.float64)
    wide = estimate_normals(points, nearest_within(points, 0.25, 100))
    narrow = estimate_normals(points, nearest_within(points, 0.1, 30))
    np.testing.assert_array_equal(wide, narrow)


def test_on_a_plane_normals_stand_upright_in_either_direction():
    v, u = np.mgrid[0:12, 0:12] / 64
    plane = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    turn, tilt, slope = fpfh_features(plane).reshape(-1, 3, BINS).transpose(1, 0, 2)
    np.testing.assert_allclose(turn[:, [0, 5, 10]].sum(axis=1), 200)  # nothing orients normals
    np.testing.assert_allclose(tilt[:, 5], 200)
    np.testing.assert_allclose(slope[:, 5], 200)


@pytest.mark.parametrize(
    ("other_normal", "bins"),
    [
        ((0.0, math.sin(1.0), math.cos(1.0)), [5, 0, 5]),  # leans across the line: tilt -sin 1
        ((math.sin(0.5), 0.0, math.cos(0.5)), [6, 5, 2]),  # leans along it: turn 0.5, slope -sin 0.5
        ((1.0, 0.0, 0.0), [5, 5, 5]),  # lies on the line: undefined, so all angles are 0
    ],
)
def test_both_points_of_a_pair_count_the_angles_computed_by_hand(other_normal, bins):
    points, normals = np.array([[0.0, 0, 0], [0.1, 0, 0]]), np.array([(0.0, 0.0, 1.0), other_normal])
    spfh = pair_histograms(points, normals, nearest_within(points, 0.25, 100)).reshape(2, BINS, 4)
    assert spfh[:, :, :3].argmax(axis=1).tolist() == [bins, bins]
    assert spfh[:, :, :3].max(axis=1).tolist() == [[100] * 3] * 2


def test_every_histogram_sums_to_200_where_there_are_neighbours():
    sums = fpfh_features(wavy_cloud(30)).reshape(-1, 3, BINS).sum(axis=2)
    np.testing.assert_allclose(sums, 200, rtol=1e-12)


def test_the_order_of_the_points_does_not_matter():
    points = wavy_cloud(30)
    shuffle = np.random.default_rng(3).permutation(len(points))
    np.testing.assert_allclose(fpfh_features(points[shuffle]), fpfh_features(points)[shuffle], atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_points_give_finite_features_and_zeros_without_a_neighbour(count):
    features = fpfh_features(wavy_cloud(30)[:count])
    assert features.shape == (count, FPFH_DIMS)
    assert features.dtype == np.float64
    assert np.isfinite(features).all()
    assert features.any() == (count > 1)


@pytest.mark.parametrize("points", [lattice_cloud(500), np.full((40, 3), 0.3), np.full((300, 3), 0.3)])
def test_coinciding_points_give_finite_features(points):
    features = fpfh_features(points)
    assert np.isfinite(features).all()
    assert 0 <= features.min() <= features.max() <= 200 + ROUNDING


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.zeros((4, 4, 3)), np.array([[0.1, np.nan, 0.2]])])
def test_what_is_no_list_of_finite_points_is_refused(points):
    with pytest.raises(ValueError, match="points"):
        fpfh_features(points)
